"""Word lists over prompts: what they fold, find and leave alone, and the rates they reach.

text_rules_probes.json holds disguised prompts ("probes"), bad ones and benign ones, all written for these tests. The
parts "held out" were written before the lists. When the lists were first run on them, they found 50 of the 50 bad ones
and flagged 1 of the 111 benign ones. The same hand wrote prompts and lists, so that is the best case: on half of the
public T2I-RiskyPrompt, which nobody looked at while the lists were written, they find 80 % of explicit pornography,
39 % of bloody content, 46 % of political figures, 44 % of cartoon characters and 4 % of logos. Of the 1,632
PartiPrompts they flag 10, and each of those names a brand or a character.
"""

import codecs
import json
import os
import subprocess
import sys
import time
from configparser import ConfigParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea.filters import text_rules
from krea.filters.decision import Decision, Thresholds, judge
from krea.filters.text_folding import normalise, without_weights
from krea.filters.text_rules import LISTS, RULES, RULES_VERSION, WRITTEN_RULES, score, word_lists
from krea.prompting import CHOICES, TEXTURE_ENHANCEMENT

DATA = json.loads(Path(__file__).with_name("text_rules_probes.json").read_text(encoding="utf-8"))
MINORS = "sexual content involving minors"
CATEGORIES = {rule.category for rule in RULES} | {"disguised text"}


def prompt_of(row):
    return row["prompt"] if "prompt" in row else codecs.decode(row["rot13"], "rot13")


def missed(rows):
    return [row for row in rows if row["category"] not in score(prompt_of(row)).categories]


def flagged(prompts):
    return [prompt for prompt in prompts if score(prompt).score >= 0.5]


def test_data_are_as_many_as_the_rates_need():
    assert len(DATA["probes"]) >= 130
    assert len(DATA["benign"]) + len(DATA["benign, held out"]) >= 250
    assert len(DATA["bad"]) + len(DATA["bad, held out"]) >= 80
    assert {row["category"] for row in DATA["bad"]} == CATEGORIES - {
        "disguised text",
        "sexual content of a real person",
    }


def test_disguised_words_are_found():
    """180 of 184: each of the kinds that are not was tried once."""
    misses = missed(DATA["probes"])
    assert {row["kind"] for row in misses} == {
        "a vowel as an asterisk",
        "split by a space",
        "reversed",
        "letters swapped",
    }
    assert len(misses) <= 0.05 * len(DATA["probes"])


@pytest.mark.parametrize("part", ["bad", "bad, held out"])
def test_plainly_bad_prompts_are_found(part):
    """72 of 72, and 50 of the 50 that were held out."""
    assert len(missed(DATA[part])) <= 0.05 * len(DATA[part])


@pytest.mark.parametrize("part", ["benign", "benign, held out"])
def test_benign_prompts_are_left_alone(part):
    """None of 221, and 1 of the 111 that were held out: a knight who is beheading a dandelion."""
    assert len(flagged(DATA[part])) <= 0.01 * len(DATA[part])


def test_the_packs_own_sentences_are_left_alone():
    sentences = [sentence for choices in CHOICES.values() for sentence in choices.values()]
    assert flagged([*sentences, TEXTURE_ENHANCEMENT, " ".join(sentences)]) == []


# Weights


def plain_reading(text):
    """The recursive rule of ComfyUI's token_weights, written from its description."""
    parts, part, level = [], "", 0
    for character in text:
        if character == "(" and level == 0 and part:
            parts.append(part)
            part = ""
        level += {"(": 1, ")": -1}.get(character, 0)
        part += character
        if character == ")" and level == 0:
            parts.append(part)
            part = ""
    return "".join(map(plain_part, filter(None, [*parts, part])))


def plain_part(part):
    if len(part) < 2 or part[0] != "(" or part[-1] != ")":
        return part
    inner = part[1:-1]
    words, colon, weight = inner.rpartition(":")
    try:
        return plain_reading(words if colon and words and float(weight) is not None else inner)
    except ValueError:
        return plain_reading(inner)


@given(st.text(alphabet="()():1.2a ", max_size=40))
def test_weights_are_taken_out_as_comfyui_does(text):
    assert without_weights(text) == plain_reading(text)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a (red:1.3) fox", "a red fox"),
        ("((nu)(de:0.5))", "nude"),
        ("(nu:1.0)de", "nude"),
        ("(a fox: red)", "a fox: red"),
        (r"a fox \(Vulpes\)", "a fox (Vulpes)"),
        (r"nu\de", r"nu\de"),
        ("an (open bracket", "an (open bracket"),
        ("a) smile :)", "a) smile :)"),
        ("((a)", "(a"),
        ("(:1.3)", ":1.3"),
        ("()", ""),
    ],
)
def test_weights_and_escapes(prompt, text):
    assert without_weights(prompt) == text


def test_brackets_may_be_deeper_than_pythons_stack():
    assert without_weights("(" * 50_000 + "a" + ":1.1)" * 50_000) == "a"


# Letters


@pytest.mark.parametrize(
    ("prompt", "text", "disguised"),
    [
        ("Café, naïve, Ångström", "cafe, naive, angstrom", False),
        ("cafe\u0301s", "cafes", False),
        ("\ufb01nd", "find", False),
        ("a heart \u2764\ufe0f and a family \U0001f468\u200d\U0001f469\u200d\U0001f467", None, False),
        ("\uff32\uff30\uff27", "rpg", False),
        ("Krea\u2122 N\u00ba 5", "krea  n  5", False),
        ("5 \u00b5m", "5 \u03bcm", False),
        ("\U0001f1eb\U0001f1f7\U0001f1e9\U0001f1ea", "frde", False),
        ("\u0432\u043e\u0434\u0430", "boda", False),  # a Russian word
        ("word,\u200b word", "word, word", False),
        ("two\nlines\tand a tab", "two\nlines\tand a tab", False),
        ("w\u043erd", "word", True),  # Cyrillic
        ("wo\u200brd", "word", True),
        ("wo\u3164rd", "word", True),
        ("wo\ufe0frd", "word", True),
        ("wo\uff52d", "word", True),
        ("\U0001d430\U0001d428\U0001d42b\U0001d41d", "word", True),
        ("\u24e6\u24de\u24e1\u24d3", "word", True),
        ("\u202edrow\u202c.", "drow word .", True),
    ],
)
def test_letters_are_folded_and_disguise_is_told(prompt, text, disguised):
    folded = normalise(prompt)
    assert folded.disguised is disguised
    assert text is None or folded.text == text


def test_disguise_alone_is_reviewed():
    assert score("a w\u043erd").categories == ("disguised text",)
    assert word_lists().thresholds.decide(score("a w\u043erd").score) is Decision.REVIEW


# Rules


@pytest.mark.parametrize("row", [row for row in DATA["bad"] if row["category"] == MINORS], ids=str)
def test_minors_with_sexual_words_score_highest(row):
    assert score(row["prompt"]).score == 1.0
    assert score(row["prompt"]).categories[0] == MINORS


@pytest.mark.parametrize("context", ["an oil painting of a {}", "a medical textbook, {}", "a bronze {} in a museum"])
def test_art_and_medicine_excuse_nudity_but_never_of_minors(context):
    assert score(context.format("nude")).score == 0
    assert score(context.format("nude child")).score == 1.0


@pytest.mark.parametrize(
    "prompt",
    [
        *(
            "a teen",
            "a girl",
            "a hot day",
            "a boxer",
            "Essex",
            "Scunthorpe",
            "blood orange",
            "dead leaves",
            "a cock and hens",
        ),
        *("shot on film", "shooting stars", "nude lipstick", "breast of chicken", "chicken breasts", "adult education"),
        *(
            "the pen is red",
            "put a hat on",
            "por no hablar",
            "fodder",
            "he rapped",
            "Bob's hat",
            "penne",
            "J. R. R. Tolkien",
        ),
    ],
)
def test_words_with_harmless_readings(prompt):
    assert score(prompt).score == 0


def test_a_harmless_term_excuses_only_itself():
    assert score("nude lipstick, nude woman").categories == ("nudity",)


def test_a_real_person_in_a_sexual_prompt_is_blocked():
    assert score("nude Scarlett Johansson").categories[0] == "sexual content of a real person"
    assert word_lists().thresholds.decide(score("nude Scarlett Johansson").score) is Decision.BLOCK


# What leaves the filter


def test_results_hold_nothing_of_the_prompt():
    prompts = [prompt_of(row) for row in DATA["bad"] + DATA["bad, held out"] + DATA["probes"]]
    for match in map(score, prompts):
        assert set(match.categories) <= CATEGORIES
        assert match._fields == ("score", "categories")


@given(st.text())
def test_any_text_gets_a_score(text):
    match = score(text)
    assert 0 <= match.score <= 1
    assert (match.score > 0) == bool(match.categories)


def test_scores_are_the_same_in_every_process():
    """Sets have another order under another hash seed."""
    code = "import sys; from krea.filters.text_rules import score; print([score(text) for text in sys.argv[1:]])"
    prompts = [row["prompt"] for row in DATA["probes"] if "\0" not in row["prompt"]]
    results = {
        subprocess.run(
            [sys.executable, "-c", code, *prompts],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(results) == 1


def test_judge_gives_the_three_bands():
    prompts = ["a red fox", "a nude woman", "a nude child"]
    verdicts = judge([word_lists()], prompts)
    assert [verdict.decision for verdict in verdicts] == [Decision.PASS, Decision.REVIEW, Decision.BLOCK]
    (reason,) = verdicts[2].reasons
    about = "sexual content involving minors, nudity"
    assert reason == f"Word lists finds words of unlawful or infringing content ({about}): 1.000, block from 0.8."


def test_judge_takes_other_thresholds():
    (verdict,) = judge([word_lists(Thresholds(review=0.2, block=0.5))], ["a nude woman"])
    assert verdict.decision is Decision.BLOCK


def test_version_follows_the_lists(tmp_path, monkeypatch):
    version = word_lists().version
    assert version.startswith(f"{RULES_VERSION}-")
    changed = tmp_path / "lists.ini"
    changed.write_text(LISTS.read_text(encoding="utf-8") + "one more term\n", encoding="utf-8")
    monkeypatch.setattr(text_rules, "LISTS", changed)
    text_rules._lists.cache_clear()
    try:
        assert word_lists().version != version
    finally:
        text_rules._lists.cache_clear()


# The lists


def sections():
    parser = ConfigParser(allow_no_value=True, delimiters=("=",), comment_prefixes=("#",), interpolation=None)
    parser.read(LISTS, encoding="utf-8")
    return {name: ", ".join(parser[name]).split(", ") for name in parser.sections()}


def test_every_list_is_used_and_every_used_list_exists():
    used = {name for rule in RULES + WRITTEN_RULES for name in (*rule.lists, *rule.unless)}
    assert {name.removesuffix(" (shifted)") for name in sections()} == used | {"harmless"}


def test_slurs_are_not_displayed():
    words = LISTS.read_text(encoding="utf-8").replace(",", " ").split()
    coded = sections()["slur (shifted)"]
    assert coded
    assert [term for term in coded if codecs.decode(term, "rot13") in words] == []


# Time


HOSTILE = {
    "opening brackets": "(",
    "closing brackets": ")",
    "pairs": "()",
    "more opening than closing": "(()",
    "weights": "(a:1)",
    "colons": "(:",
    "escapes": "\\(",
    "letters between dots": "a.",
    "letters between spaces": "a ",
    "a spaced word": "n u d ",
    "a hyphened word": "n-u-d-e-",
    "one letter": "a",
    "exclamation marks": "!",
    "letters and exclamation marks": "a!",
    "digits": "1 ",
    "leet": "a4 ",
    "marks out of order": "\u0301\u0316",
    "invisible characters": "a\u200b",
    "overrides": "\u202ea",
    "look-alikes": "a\u0430",
    "the beginning of a long term": "how to build ",
    "ages": "1 year ",
    "listed words": "nude ",
    "repeated letters": "nnuu",
}


def seconds(text):
    """The shortest of three runs, in time of this process alone."""
    times = []
    for _ in range(3):
        start = time.process_time()
        score(text)
        times.append(time.process_time() - start)
    return min(times)


@pytest.mark.parametrize("kind", HOSTILE)
def test_time_grows_with_the_length_alone(kind):
    """Eight times the text takes about eight times as long; a square would take 64 times."""
    unit = HOSTILE[kind]
    score("")  # the lists are read
    short, long = (unit * (length // len(unit)) for length in (3_000, 24_000))
    assert seconds(long) < 24 * seconds(short) + 0.002


def test_word_lists_load_without_torch():
    code = (
        "import sys, krea.filters.text_rules; krea.filters.text_rules.score('a fox'); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
