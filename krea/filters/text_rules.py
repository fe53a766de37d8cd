"""A first pass over prompts: word lists for what the licence of FLUX.1 [dev] asks to keep out, and rules over them.

What lists cannot see: what is paraphrased or misspelt, tokens without meaning (SneakyPrompt, Ring-A-Bell), what a LoRA,
an embedding or a reference picture brings, and languages that are not listed (listed: English, and some German, French,
Spanish, Italian, Portuguese and Romanian, which T5 reads). Of living people and trademarks they know a few of the best
known and can never know most. The judges of pictures come after them, and passing here proves nothing.

Nudity in the words of art or of medicine passes: it is not unlawful, and how it looks is for the judges of pictures.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from configparser import ConfigParser
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .decision import Answer, Judge, Thresholds
from .text_folding import normalise

RULES_VERSION = 1
"""Counts the changes of this file and text_folding.py that change what is found; the lists have their hash."""

LISTS = Path(__file__).with_name("text_rules.ini")

THRESHOLDS = Thresholds(review=0.5, block=0.8)
"""Blocks explicit, hateful and terrorist words, and has the rest reviewed."""

_MINORS = "sexual content involving minors"
_REAL_PERSON = "sexual content of a real person"
_EXPLICIT = "explicit sexual content"
_TRADEMARK = "trademark or character"
_DISGUISE = "disguised text"
_SEXUAL = ("explicit", "anatomy", "nudity", "suggestive")


class Rule(NamedTuple):
    """A category that is found where each of `lists` has a word in the prompt and none of `unless` has one.

    The lists are sections of text_rules.ini.
    """

    category: str
    score: float
    lists: tuple[str, ...]
    unless: tuple[str, ...] = ()


RULES = (
    Rule(_MINORS, 1.0, ("minor sexual",)),
    *(Rule(_MINORS, 1.0, ("minor", kind)) for kind in _SEXUAL),
    *(Rule(_REAL_PERSON, 0.9, ("public figure", kind)) for kind in _SEXUAL),
    Rule("terrorism", 0.9, ("terror",)),
    Rule("terrorism", 0.9, ("weapon", "instructions")),
    Rule("terrorism", 0.7, ("terrorists", "propaganda"), unless=("antiquity",)),
    Rule("hate", 0.8, ("hate",)),
    Rule("hate", 0.8, ("slur",)),
    Rule("hate", 0.8, ("group", "dehumanising")),
    Rule("hate", 0.6, ("hate symbol",), unless=("faith",)),
    Rule(_EXPLICIT, 0.8, ("explicit",)),
    Rule(_EXPLICIT, 0.8, ("anatomy",), unless=("medicine",)),
    Rule("graphic violence", 0.6, ("gore",)),
    Rule("nudity", 0.5, ("nudity",), unless=("art", "medicine")),
    Rule("public figure", 0.5, ("public figure",)),
    Rule(_TRADEMARK, 0.5, ("trademark",)),
)
WRITTEN_RULES = (Rule(_TRADEMARK, 0.5, ("brand",)),)
DISGUISE_SCORE = 0.5


class Match(NamedTuple):
    """What the lists found: the highest score of its categories, 0 to 1, and their names, the highest first.

    It holds nothing of the prompt, so that nothing of a refused prompt reaches a log.
    """

    score: float
    categories: tuple[str, ...]


def score(text: str, written: bool = False) -> Match:
    """What the word lists find in a prompt, in time proportional to its length.

    Args:
        written: the text was read in a picture: names of brands count alone there, and a misread letter is no disguise.
    """
    folded, disguised = normalise(text)
    found = set().union(*map(_lists().found, _readings(folded)))
    scores = {_DISGUISE: DISGUISE_SCORE} if disguised and not written else {}
    for rule in RULES + WRITTEN_RULES * written:
        if found.issuperset(rule.lists) and found.isdisjoint(rule.unless):
            scores[rule.category] = max(rule.score, scores.get(rule.category, 0.0))
    categories = sorted(scores, key=scores.__getitem__, reverse=True)
    return Match(max(scores.values(), default=0.0), tuple(categories))


def word_lists(thresholds: Thresholds = THRESHOLDS) -> Judge:
    """The word lists as a judge of prompts; its version names the rules' and a hash of the lists."""

    def ask(texts: Sequence[str]) -> list[list[Answer]]:
        return [[Answer(match.score, ", ".join(match.categories))] for match in map(score, texts)]

    return Judge("Word lists", _lists().version, thresholds, ask, "words of unlawful or infringing content")


_WORD = re.compile(r"[^\W_]+")
_LETTER = re.compile("[a-z]")
_REPEATED = re.compile(r"(.)\1+")
_EXCLAMATION = re.compile(r"!+(?!\w)")  # elsewhere the sign may be an i
_LEET = [str.maketrans("0123456789@$€+|!", f"o{one}zeasgtbgaset{one}{one}") for one in "il"]
_HARMLESS = "harmless"
_SHIFTED = " (shifted)"  # by half of the alphabet, so that nobody reads a slur by chance
_HALF = str.maketrans("abcdefghijklmnopqrstuvwxyz", "nopqrstuvwxyzabcdefghijklm")
_AGES = """1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 one two three four five six seven eight nine ten eleven twelve
thirteen fourteen fifteen sixteen seventeen""".split()


def _readings(folded: str) -> set[str]:
    """The text, and the text with the digits and signs that stand for letters ("p0rn", "t!t$") as letters."""
    text = _EXCLAMATION.sub("", folded)
    return {folded, *(" ".join(_letters(run, table) for run in text.split()) for table in _LEET)}


def _letters(run: str, table: dict[int, int]) -> str:
    """A number stays one, but a digit on its own may be one of the letters of a word that is spaced out."""
    return run.translate(table) if not run.isalpha() and (len(run) == 1 or _LETTER.search(run)) else run


def _groups(text: str) -> list[list[str]]:
    """The words of a text, those together that may be parts of one: "nu-de", and letters on their own, "n u d e"."""
    groups: list[list[str]] = []
    for run in text.split():
        words = [run] if run.isalpha() else _WORD.findall(run)
        if words and groups and len(words[0]) == len(groups[-1][-1]) == 1:
            groups[-1] += words
        elif words:
            groups.append(words)
    return groups


def _squeeze(word: str) -> str:
    """The word without repeated letters."""
    return _REPEATED.sub(r"\1", word)


class _Lists:
    """The word lists, ready to look up."""

    def __init__(self, text: str):
        self.version = f"{RULES_VERSION}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
        self._names: dict[str, set[str]] = {}  # of the lists a term is on; of none where it is harmless
        self._longest: dict[str, int] = {}  # how many words the longest term with this first word has
        for name, term in _terms(text):
            words = _WORD.findall(normalise(term).text)
            for ending in ("", "s"):
                self._names.setdefault(" ".join(words) + ending, set()).update({name} - {_HARMLESS})
        for term in self._names:
            first, *others = term.split()
            self._longest[first] = max(self._longest.get(first, 0), 1 + len(others))
        self._words = dict.fromkeys(word for term in self._names for word in term.split())
        by_harm = sorted(self._words, key=lambda word: bool(self._names.get(word)))  # of two alike the last one counts
        self._squeezed = {_squeeze(word): word for word in by_harm if len(_squeeze(word)) > 2}
        self._beginnings = {_squeeze(word)[:end] for word in self._words for end in range(1, len(word) + 1)}
        self._longest_word = max(map(len, self._words))

    def found(self, text: str) -> set[str]:
        """The names of the lists that have a term in a folded text; at each place the longest term counts."""
        found: set[str] = set()
        words: list[str] = []
        for parts in _groups(text):
            words += map(self._known, parts)
            for word in self._joined(parts) if len(parts) > 1 else ():
                found |= self._names.get(word, set())
        place = 0
        while place < len(words):
            length = self._longest.get(words[place], 0)
            while length and (term := " ".join(words[place : place + length])) not in self._names:
                length -= 1
            if length:
                found |= self._names[term]
            place += max(length, 1)
        return found

    def _joined(self, parts: list[str]) -> Iterator[str]:
        """What two or more parts in a row make, as far as a listed word can begin so."""
        parts = [part for index, part in enumerate(parts) if parts[index - 2 : index] != [part, part]]
        for first, word in enumerate(parts):
            for last in range(first + 1, len(parts)):
                word += parts[last]
                if len(word) > self._longest_word or _squeeze(word) not in self._beginnings:
                    break
                yield self._known(word)

    def _known(self, word: str) -> str:
        """The listed word that this one is with letters repeated, else itself."""
        if word in self._words or not _REPEATED.search(word):
            return word
        return self._squeezed.get(_squeeze(word), word)


def _terms(text: str) -> Iterator[tuple[str, str]]:
    """(list, term) for every term of text_rules.ini: sections of lines of terms between commas."""
    parser = ConfigParser(allow_no_value=True, delimiters=("=",), comment_prefixes=("#",), interpolation=None)
    parser.read_string(text)
    for section in parser.sections():
        terms = ",".join(parser[section])
        if section.endswith(_SHIFTED):
            terms = terms.translate(_HALF)
        for term in terms.split(","):
            for age in _AGES if "{age}" in term else ("",):
                yield section.removesuffix(_SHIFTED), term.replace("{age}", age)


@cache
def _lists() -> _Lists:
    return _Lists(LISTS.read_text(encoding="utf-8"))
