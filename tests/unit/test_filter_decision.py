"""Three bands with exact edges; whatever was not judged is never passed."""

import math

import pytest

from krea.filters.content_filter import ContentFilter, Outcome
from krea.filters.decision import Answer, Decision, Judge, JudgeError, Thresholds, judge

EDGES = Thresholds(0.2, 0.8)


def judge_of(ask, thresholds=EDGES):
    return Judge("Test", "1", thresholds, ask, "what it looks for")


def fixed(*scores):
    """A judge that gives the thing with this number this score."""
    return judge_of(lambda things: [[Answer(scores[thing])] for thing in things])


def answering(*answers):
    """A judge that gives these answers about whatever it is asked."""
    return judge_of(lambda things: [list(answers) for _ in things])


@pytest.mark.parametrize(
    "score, decision",
    [
        (0.0, Decision.PASS),
        (math.nextafter(0.2, 0), Decision.PASS),
        (0.2, Decision.REVIEW),
        (math.nextafter(0.8, 0), Decision.REVIEW),
        (0.8, Decision.BLOCK),
        (1.0, Decision.BLOCK),
    ],
)
def test_an_edge_belongs_to_the_band_above(score, decision):
    (verdict,) = judge([fixed(score)], [0])
    assert verdict.decision is decision
    assert (verdict.reasons == []) is (decision is Decision.PASS)


@pytest.mark.parametrize("score", [math.nan, math.inf, -0.1, 1.1])
def test_a_score_that_is_none_means_review(score):
    (verdict,) = judge([fixed(score)], [0])
    assert verdict.decision is Decision.REVIEW and verdict.findings[0].score is None
    assert verdict.reasons == [f"Not reviewed by Test: its score is {score}."]


def test_the_strictest_judge_counts():
    verdicts = judge([fixed(0.1, 0.5, 0.1), fixed(0.3, 0.9, 0.0)], [0, 1, 2])
    assert [verdict.decision for verdict in verdicts] == [Decision.REVIEW, Decision.BLOCK, Decision.PASS]
    assert all(len(verdict.findings) == 2 for verdict in verdicts)


def test_without_a_judge_everything_is_reviewed():
    verdicts = judge([], [0, 1])
    assert [verdict.decision for verdict in verdicts] == [Decision.REVIEW] * 2
    assert verdicts[0].reasons == ["Not reviewed: the filter has no judge for it."]


def test_a_failing_judge_means_review_and_does_not_hold_up_the_others():
    def ask(things):
        if 1 in things:
            raise JudgeError("its model is missing.")
        return [[Answer(0.0)] for _ in things]

    verdicts = judge([judge_of(ask)], [0, 1, 2])
    assert [verdict.decision for verdict in verdicts] == [Decision.PASS, Decision.REVIEW, Decision.PASS]
    assert verdicts[1].reasons == ["Not reviewed by Test: its model is missing."]


def test_an_unforeseen_error_does_not_quote_the_prompt():
    def ask(things):
        raise ValueError(f"cannot read {things[0]}")

    (verdict,) = judge([judge_of(ask)], ["the secret prompt"])
    assert verdict.reasons == ["Not reviewed by Test: ValueError."]


@pytest.mark.parametrize("answers", [[], [[Answer(0.0)], [Answer(0.0)]]], ids=["none", "two"])
def test_answers_about_too_few_or_too_many_are_none(answers):
    (verdict,) = judge([judge_of(lambda _: answers)], [0])
    assert verdict.decision is Decision.REVIEW and f"answers about {len(answers)} of 1" in verdict.reasons[0]


def test_no_answer_is_no_pass():
    (verdict,) = judge([answering()], [0])
    assert verdict.reasons == ["Not reviewed by Test: it gave no answer."]


def test_the_finding_says_which_answer_counted():
    (verdict,) = judge([answering(Answer(0.1, "trademark"), Answer(0.9, "hate"), Answer(0.5, "gore"))], [0])
    (finding,) = verdict.findings
    assert (finding.about, finding.score, finding.decision) == ("hate", 0.9, Decision.BLOCK)
    assert verdict.reasons == ["Test finds what it looks for (hate): 0.900, block from 0.8."]


def test_an_answer_with_thresholds_of_its_own_is_held_against_them():
    lenient = Thresholds(0.5, 0.9)
    (verdict,) = judge([answering(Answer(0.45, "a part", lenient), Answer(0.3, "the whole"))], [0])
    (finding,) = verdict.findings
    assert (finding.about, finding.decision, finding.thresholds) == ("the whole", Decision.REVIEW, EDGES)
    (verdict,) = judge([answering(Answer(0.6, "a part", lenient), Answer(0.3, "the whole"))], [0])
    assert verdict.reasons == ["Test finds what it looks for (a part): 0.600, review from 0.5."]
    assert verdict.findings[0].thresholds == lenient


def test_an_answer_that_is_no_number_is_not_outvoted():
    for others, decision in (([0.1], Decision.REVIEW), ([0.1, 0.9], Decision.BLOCK)):
        (verdict,) = judge([answering(Answer(math.nan), *map(Answer, others))], [0])
        assert verdict.decision is decision


def test_the_users_cancel_goes_on():
    class CancelError(Exception):
        pass

    def ask(_):
        raise CancelError

    with pytest.raises(CancelError):
        judge([judge_of(ask)], [0, 1], cancel=(CancelError,))


@pytest.mark.parametrize("on", ["on_review", "on_block"])
def test_a_filter_that_lets_flagged_pictures_pass_cannot_be_made(on):
    with pytest.raises(ValueError, match="cannot pass"):
        ContentFilter((), (), **{on: Outcome.PASS})


def test_what_a_prompt_has_counts_for_its_pictures():
    plain = ContentFilter((answering(Answer(0.5)),), (fixed(0.1, 0.9),))
    own = plain.with_prompt(plain.judge_prompt(["a fox"]), "key")
    assert [plain.outcome(verdict) for verdict in plain.judge_pictures([0, 1])] == [Outcome.PASS, Outcome.BLOCK]
    assert [own.outcome(verdict) for verdict in own.judge_pictures([0, 1])] == [Outcome.HOLD, Outcome.BLOCK]


def test_a_good_prompt_alone_is_no_review_of_a_picture():
    unseen = ContentFilter((answering(Answer(0.0)),), ())
    own = unseen.with_prompt(unseen.judge_prompt(["a fox"]), "key")
    assert own.outcome(own.judge_pictures([0])[0]) is Outcome.HOLD


def test_a_prompt_that_nobody_judged_sends_its_pictures_to_review():
    unread = ContentFilter((), (fixed(0.0),))
    own = unread.with_prompt(unread.judge_prompt(["a fox"]), "key")
    assert unread.outcome(unread.judge_pictures([0])[0]) is Outcome.PASS
    assert own.outcome(own.judge_pictures([0])[0]) is Outcome.HOLD


def test_a_prompt_with_an_embedding_is_reviewed_whatever_the_judges_say():
    harmless = ContentFilter((answering(Answer(0.0)),), ())
    for prompt in ("a fox, embedding:style.pt", "(embedding:style:1.2)", "embedding:x"):
        verdict = harmless.judge_prompt([prompt])
        assert verdict.decision is Decision.REVIEW
        (reason,) = verdict.reasons
        assert reason.startswith("Not reviewed: the prompt names an embedding") and "style" not in reason
    assert harmless.judge_prompt(["embedding stones in clay: a recipe"]).decision is Decision.PASS
    strict = ContentFilter((answering(Answer(0.9)),), ())
    assert strict.judge_prompt(["embedding:x"]).decision is Decision.BLOCK
