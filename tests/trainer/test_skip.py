"""Batches left out of the data stream, and an end before the last step: exact, and the same across a resume."""

from __future__ import annotations

from tests.trainer.conftest import Desk, assert_same

SKIP = ("skip.after_step=4", "skip.batches=3")
COMMON = ("steps=12", "model.dropout=0.2", "checkpoint.every_steps=4", "checkpoint.keep_last=9")


def test_skipped_batches_are_those_that_the_data_would_have_given_next(desk: Desk) -> None:
    plain, skipped = desk.train(*COMMON), desk.train(*COMMON, *SKIP)
    ids = plain.run.series("batch_id").value.tolist()
    assert skipped.run.series("batch_id").value.tolist() == [*ids[:4], *ids[7:], *(ids[-1] + n * 16 for n in (1, 2, 3))]
    assert skipped.losses()[:4] == plain.losses()[:4]
    assert skipped.losses()[4] != plain.losses()[4]


def test_a_resume_skips_what_lies_ahead_of_its_checkpoint_and_not_again_what_lies_behind(desk: Desk) -> None:
    whole = desk.train(*COMMON, *SKIP)
    for stop_after in (4, 6):  # the batches are still ahead of the one checkpoint, and behind the other
        half = desk.train(*COMMON, *SKIP, f"stop_after={stop_after}")
        assert (half.outcome.word, half.outcome.step) == ("stopped", stop_after)
        assert half.outcome.reason == f"stop_after = {stop_after} of 12 steps"
        assert half.run.series("lr").value.tolist() == whole.run.series("lr").value[:stop_after].tolist()
        rest = desk.resume(half, ["stop_after=none"])
        assert rest.losses() == whole.losses()
        assert_same(rest.weights(), whole.weights())
