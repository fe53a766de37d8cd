"""Three bands with exact edges; whatever was not judged is never passed."""

import math

import pytest

from krea.filters.content_filter import ContentFilter, Outcome
from krea.filters.decision import Decision, Judge, JudgeError, Thresholds, judge

EDGES = Thresholds(0.2, 0.8)


def judge_of(score, thresholds=EDGES):
    return Judge("Test", "1", thresholds, score, "what it looks for")


def fixed(*scores):
    return judge_of(lambda things: [scores[thing] for thing in things])


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
    def score(things):
        if 1 in things:
            raise JudgeError("its model is missing.")
        return [0.0 for _ in things]

    verdicts = judge([judge_of(score)], [0, 1, 2])
    assert [verdict.decision for verdict in verdicts] == [Decision.PASS, Decision.REVIEW, Decision.PASS]
    assert verdicts[1].reasons == ["Not reviewed by Test: its model is missing."]


def test_an_unforeseen_error_does_not_quote_the_prompt():
    def score(things):
        raise ValueError(f"cannot read {things[0]}")

    (verdict,) = judge([judge_of(score)], ["the secret prompt"])
    assert verdict.reasons == ["Not reviewed by Test: ValueError."]


@pytest.mark.parametrize("scores", [[], [0.0, 0.0]])
def test_too_few_or_too_many_scores_are_none(scores):
    (verdict,) = judge([judge_of(lambda _: scores)], [0])
    assert verdict.decision is Decision.REVIEW and "scores for 1" in verdict.reasons[0]


def test_the_users_cancel_goes_on():
    class CancelError(Exception):
        pass

    def score(_):
        raise CancelError

    with pytest.raises(CancelError):
        judge([judge_of(score)], [0, 1], cancel=(CancelError,))


@pytest.mark.parametrize("on", ["on_review", "on_block"])
def test_a_filter_that_lets_flagged_pictures_pass_cannot_be_made(on):
    with pytest.raises(ValueError, match="cannot pass"):
        ContentFilter((), (), **{on: Outcome.PASS})


def test_what_a_prompt_has_counts_for_its_pictures():
    plain = ContentFilter((fixed(0.5),), (fixed(0.1, 0.9),))
    own = plain.with_prompt(plain.judge_prompt([0]), "key")
    assert [plain.outcome(verdict) for verdict in plain.judge_pictures([0, 1])] == [Outcome.PASS, Outcome.BLOCK]
    assert [own.outcome(verdict) for verdict in own.judge_pictures([0, 1])] == [Outcome.HOLD, Outcome.BLOCK]


def test_a_good_prompt_alone_is_no_review_of_a_picture():
    unseen = ContentFilter((fixed(0.0),), ())
    own = unseen.with_prompt(unseen.judge_prompt([0]), "key")
    assert own.outcome(own.judge_pictures([0])[0]) is Outcome.HOLD


def test_a_prompt_that_nobody_judged_sends_its_pictures_to_review():
    unread = ContentFilter((), (fixed(0.0),))
    own = unread.with_prompt(unread.judge_prompt([0]), "key")
    assert unread.outcome(unread.judge_pictures([0])[0]) is Outcome.PASS
    assert own.outcome(own.judge_pictures([0])[0]) is Outcome.HOLD
