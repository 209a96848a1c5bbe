"""Device times from events that are read late: a stream turned by hand in place of CUDA's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monitor.hook.device_time import MOST_MARKS, DeviceClock
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import MLP
from tests.monitor.hook.watching import watched


class Stream:
    """Work takes its milliseconds where it was queued; events have passed once ``done`` says so."""

    def __init__(self) -> None:
        self.queued_ms = 0.0
        self.done = True
        self.asked = 0

    def event(self) -> StreamEvent:
        return StreamEvent(self)


class StreamEvent:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    def record(self) -> None:
        self.at_ms = self._stream.queued_ms

    def query(self) -> bool:
        self._stream.asked += 1
        return self._stream.done

    def elapsed_time(self, end_event: StreamEvent) -> float:
        assert self._stream.done, "this would raise on CUDA"
        return end_event.at_ms - self.at_ms


def test_phases_of_a_loop_take_what_their_work_takes(tmp_path: Path) -> None:
    stream = Stream()

    class Queues(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = MLP.made()

        def forward(self, x):
            stream.queued_ms += 10
            return Work.apply(self.inner(x))

    class Work(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            stream.queued_ms += 20
            return grad

    class SGD(torch.optim.SGD):
        def step(self, closure=None):
            stream.queued_ms += 3
            return super().step(closure)

    model = Queues()
    optimizer = SGD(model.parameters(), lr=0.1)
    with watched(tmp_path, model, optimizer, [], background=False) as mon:
        mon._loop.device = DeviceClock(stream.event)
        for step in range(1, 4):
            for micro in range(2):
                loss = MLP.loss(model, *MLP.batch(micro))
                with mon.phase("eval"):
                    model(MLP.batch(0)[0])
                    stream.queued_ms += 100
                stream.queued_ms += 5  # the rest of the loss
                loss.backward()
                stream.queued_ms += 1000  # what is no part
            optimizer.step()
            stream.queued_ms += 1000
            stream.done = step != 2
            asked = stream.asked
            mon.step()
            assert stream.asked == asked  # nothing is read before the row is taken
            mon.log({"x": 1.0})
            mon._rows.drain()  # rows leave in groups: this one as the stream is now
    rows = recorded.scalars(mon.run_dir)
    assert "forward_device_s" not in rows[2]
    assert (rows[1]["forward_device_s"], rows[1]["backward_device_s"]) == pytest.approx((0.030, 0.040))
    assert rows[3]["optimizer_device_s"] == pytest.approx(0.003)


def test_events_that_have_not_passed_leave_the_times_out() -> None:
    stream = Stream()
    clock = DeviceClock(stream.event)
    for done in (False, True):
        clock.mark("forward")
        stream.queued_ms += 4
        clock.mark("backward")
        stream.queued_ms += 8
        reading = clock.end_step()
        stream.done = done
        assert reading is not None
        scalars = dict(reading.decode([]).scalars)
        assert scalars == (pytest.approx({"forward_device_s": 0.004, "backward_device_s": 0.008}) if done else {})
    assert clock.end_step() is None


def test_a_step_of_very_many_phases_keeps_no_more_events_than_that() -> None:
    made: list[StreamEvent] = []
    stream = Stream()
    clock = DeviceClock(lambda: made.append(stream.event()) or made[-1])
    for _ in range(MOST_MARKS):
        clock.mark("forward")
        clock.mark("backward")
    assert len(made) == MOST_MARKS + 1
    assert clock.end_step() is None
