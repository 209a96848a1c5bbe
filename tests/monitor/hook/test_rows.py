"""Rows leave in order, stay open just long enough, and wait for the device without making the loop wait."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import monitor
from monitor.hook.rows import GROUP, MOST_WAITING, Arriving, Row, Rows
from monitor.hook.transfer import HostRead
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import MLP
from tests.waiting import until


class SlowRead:
    """Stands for a copy from a GPU: this machine has none. Arrives when told, like HostRead's CUDA event."""

    def __init__(self, *arrays):
        self.given = [np.array(a) for a in arrays]
        self.arrived = False
        self.waited_for = False

    def ready(self):
        return self.arrived

    def arrays(self):
        self.waited_for = not self.arrived
        return self.given


class Collected:
    def __init__(self):
        self.rows = []

    def scalars(self, step, time, values):
        self.rows.append((step, dict(values)))

    def layers(self, step, time, stats): ...

    def event(self, kind, step=None, **fields): ...


def _rows(**options):
    written = Collected()
    return written, Rows(written, lambda row: None, **options)


def _row(step, read=None):
    return Row(step, 0.0, {}, [Arriving(read, ["x"])] if read else [])


def test_rows_wait_for_their_values_and_keep_their_order():
    written, rows = _rows()
    reads = [SlowRead(float(step)) for step in range(1, 4)]
    for step, read in enumerate(reads, 1):
        rows.end_step(_row(step, read))
    rows.step_begins()
    reads[1].arrived = True
    rows.tend()
    assert written.rows == []  # the second has arrived, the first has not
    reads[0].arrived = True
    rows.tend()
    assert written.rows == [(1, {"x": 1.0}), (2, {"x": 2.0})]
    assert not reads[0].waited_for
    rows.drain()
    assert written.rows[-1] == (3, {"x": 3.0})
    assert reads[2].waited_for


def test_plain_rows_leave_in_groups_and_what_is_urgent_does_not_wait():
    written, rows = _rows()
    for step in range(1, GROUP):
        rows.end_step(_row(step))
        rows.step_begins()
        assert written.rows == []
    rows.end_step(_row(GROUP))
    rows.step_begins()
    assert [step for step, _ in written.rows] == list(range(1, GROUP + 1))
    rows.end_step(_row(GROUP + 1))
    urgent = _row(GROUP + 2)
    urgent.urgent = True
    rows.end_step(urgent)
    rows.step_begins()
    assert [step for step, _ in written.rows] == list(range(1, GROUP + 3))
    rows.end_step(_row(GROUP + 3))
    rows.step_begins()
    rows.tend()  # the thread, four times a second: nobody waits for a slow loop's next steps
    assert written.rows[-1][0] == GROUP + 3


def test_no_more_than_a_few_rows_wait():
    written, rows = _rows()
    reads = [SlowRead(float(step)) for step in range(MOST_WAITING + 3)]
    for step, read in enumerate(reads):
        rows.end_step(_row(step, read))
    rows.step_begins()
    assert [step for step, _ in written.rows] == [0, 1, 2]


def test_a_row_is_open_until_the_next_step_begins():
    written, rows = _rows()
    rows.end_step(_row(1))
    assert written.rows == []
    assert rows.log({"a": 1.0}, {"b": torch.tensor(2.0)})
    rows.step_begins()
    assert not rows.log({"c": 3.0}, {})
    rows.drain()
    assert written.rows == [(1, {"a": 1.0, "b": 2.0})]
    assert not rows.log({"c": 3.0}, {})


def test_a_row_is_taken_after_half_a_second():
    now = 0.0
    written, rows = _rows(monotonic=lambda: now)
    rows.end_step(_row(1))
    rows.tend()
    now = 0.4
    rows.tend()
    assert written.rows == []
    now = 0.6
    rows.tend()
    assert [step for step, _ in written.rows] == [1]
    assert not rows.log({"late": 1.0}, {})


def test_a_row_with_a_bad_value_costs_that_row_only(not_strict):
    written, rows = _rows()
    broken = _row(1, SlowRead(np.zeros(3)))  # not one value
    rows.end_step(broken)
    rows.end_step(_row(2))
    rows.step_begins()
    rows.drain()
    assert [step for step, _ in written.rows] == [2]
    assert len(not_strict) == 1


def test_host_read_keeps_the_precision_of_the_cpu():
    third = 1 / 3
    read = HostRead([torch.tensor(third, dtype=torch.float64), torch.tensor([1.0, 2.0]), torch.tensor(0.5).bfloat16()])
    assert read.ready()
    one, two, three = read.arrays()
    assert (float(one), two.tolist(), float(three)) == (third, [1.0, 2.0], 0.5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_host_read_from_cuda():
    read = HostRead([torch.arange(3.0, device="cuda"), torch.tensor(7.0, device="cuda")])
    torch.cuda.synchronize()
    assert read.ready()
    assert [a.tolist() for a in read.arrays()] == [[0.0, 1.0, 2.0], 7.0]


def test_a_row_is_visible_during_a_long_evaluation(tmp_path):
    model = MLP.made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        MLP.loss(model, *MLP.batch(0)).backward()
        optimizer.step()
        mon.step(loss=2.0)
        with mon.phase("eval"):
            until(lambda: recorded.scalars(mon.run_dir), "the row")
            assert recorded.scalars(mon.run_dir)[1]["train_loss"] == 2.0
        mon.log({"val_loss": 1.5})  # too late for the row
    assert "val_loss" not in recorded.scalars(mon.run_dir)[1]
    (event,) = recorded.events(mon.run_dir, "log")
    assert (event["step"], event["values"]) == (1, {"val_loss": 1.5})
