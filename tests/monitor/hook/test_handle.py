"""What the loop hands in, how a run ends, and that mistakes of the caller stay warnings."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import monitor
from monitor.errors import MonitorWarning
from tests.monitor.hook import recorded
from tests.monitor.hook.problems import MLP

ROOT = Path(__file__).parents[3]


def _made():
    model = MLP.made()
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def _step(model, optimizer, mon, **given):
    optimizer.zero_grad()
    loss = MLP.loss(model, *MLP.batch(0))
    loss.backward()
    optimizer.step()
    mon.step(**given)
    return loss


def _exit(mon, attempt=0):
    return json.loads((mon.run_dir / "attempts" / f"{attempt:04d}" / "exit.json").read_text())


def test_values_that_are_accepted(tmp_path):
    model, optimizer = _made()
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        mon.log({"before": 1})
        loss = _step(model, optimizer, mon, loss=torch.tensor(2.5, requires_grad=True), batch_id=7)
        mon.log({
            "int": 3, "bool": True, "float32": np.float32(0.5), "array": np.array([4.0]), "tensor": loss.detach()[None],
            "nan": math.nan, "inf": -math.inf, "none": None, "half": torch.tensor(0.25, dtype=torch.bfloat16),
        })  # fmt: skip
        _step(model, optimizer, mon, loss=1, batch_id="shard-3/17")
        _step(model, optimizer, mon, batch_id="shard-3/17")
    rows = recorded.scalars(mon.run_dir)
    row = rows[1]
    assert (row["train_loss"], row["batch_id"], row["before"]) == (2.5, 7.0, 1.0)
    assert (row["int"], row["bool"], row["float32"], row["array"], row["half"]) == (3.0, 1.0, 0.5, 4.0, 0.25)
    assert row["tensor"] == pytest.approx(loss.item())
    assert math.isnan(row["nan"])
    assert row["inf"] == -math.inf
    assert "none" not in row
    assert "train_loss" not in rows[3]  # absent, not NaN
    assert rows[2]["batch_id"] == rows[3]["batch_id"] == int(rows[2]["batch_id"]) < 2**52


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda mon: mon.log({"a": "high"}), ["'a'", "'high'", "str", "a number or a tensor with one element"]),
        (lambda mon: mon.log({"a": torch.zeros(3)}), ["'a'", "shape (3,)", "one element"]),
        (lambda mon: mon.log({3: 1.0}), ["name is int", "string"]),
        (lambda mon: mon.log([1.0]), ["[1.0]", "mapping"]),
        (lambda mon: mon.log({"a": {"b": 1}}), ["'a'", "dict"]),
        (lambda mon: mon.step(loss="low"), ["loss", "'low'"]),
        (lambda mon: mon.step(loss=torch.zeros(2)), ["loss", "shape (2,)"]),
        (lambda mon: mon.step(tokens="many"), ["tokens", "many"]),
        (lambda mon: mon.step(batch_id=1.5), ["batch_id", "1.5", "integer"]),
        (lambda mon: mon.step(batch_id=2**60), ["batch_id", "2**53"]),
        (lambda mon: mon.event("note", thing=object()), ["event 'note'"]),
    ],
)
def test_a_mistake_of_the_caller_is_one_warning_and_nothing_else(tmp_path, not_strict, call, words):
    model, optimizer = _made()
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for _ in range(3):
            loss = MLP.loss(model, *MLP.batch(0))
            loss.backward()
            optimizer.step()
            call(mon)
            call(mon)
            if mon.step_number == 0:
                mon.step(loss=loss)
    texts = [str(w.message) for w in not_strict]
    if words != ["event 'note'"] or texts:  # the writer may also find a spelling for it
        assert len(texts) == 1, texts
        assert all(word in texts[0] for word in words)
        assert issubclass(not_strict[0].category, MonitorWarning)
    assert recorded.scalars(mon.run_dir)


def test_an_error_of_ours_stays_out_of_the_loop(tmp_path, not_strict, monkeypatch):
    """Every part of the hook fails in every step; the training does not notice."""
    from monitor.hook import gradients
    from monitor.hook.handle import Monitor

    def broken(*args, **kwargs):
        raise RuntimeError("broken on purpose")

    plain, other = _made()
    for _ in range(3):
        other.zero_grad()
        MLP.loss(plain, *MLP.batch(0)).backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.1)
        other.step()
    for target, name in [
        (gradients.Gradients, "_measure"), (gradients.Gradients, "_keep"), (gradients.Gradients, "end_step"),
        (gradients.Gradients, "before_optimizer"), (gradients, "repair_overflow"), (Monitor, "_end_step"),
    ]:  # fmt: skip
        with monkeypatch.context() as patch:
            model, optimizer = _made()
            with monitor.attach(model, optimizer, run=tmp_path) as mon:
                patch.setattr(target, name, broken)
                for _ in range(3):
                    optimizer.zero_grad()
                    MLP.loss(model, *MLP.batch(0)).backward()
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                    optimizer.step()
                    mon.step(loss=1.0)
                    mon.log({"a": 1.0})
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True)), name
    assert not_strict
    assert all("broken on purpose" in str(w.message) for w in not_strict)


def test_measured_names_are_not_overwritten(tmp_path, not_strict):
    model, optimizer = _made()
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        mon.log({"lr": 99.0, "lr/1": 99.0, "train_loss": 99.0, "skipped_steps": 5.0})
        _step(model, optimizer, mon, loss=1.0)
        mon.log({"grad_norm_preclip": -1.0, "mine": 2.0})
    row = recorded.scalars(mon.run_dir)[1]
    assert (row["lr"], row["train_loss"], row["mine"]) == (0.1, 1.0, 2.0)
    assert row["grad_norm_preclip"] > 0
    assert {"lr/1", "skipped_steps"}.isdisjoint(row)
    assert len(not_strict) == 4
    assert all("measured by the monitor; give your own value another name" in str(w.message) for w in not_strict)


def test_values_are_not_lost_at_the_edges_of_a_run(tmp_path):
    model, optimizer = _made()
    with monitor.attach(model, optimizer, run=tmp_path, start_step=500) as mon:
        mon.log({"first": 1.0})  # before anything: of the step in progress
        _step(model, optimizer, mon)
        MLP.loss(model, *MLP.batch(0))
        mon.log({"last": 2.0})  # of a step that never ends
    assert recorded.scalars(mon.run_dir)[501]["first"] == 1.0
    (event,) = recorded.events(mon.run_dir, "log")
    assert (event["step"], event["values"]) == (502, {"last": 2.0})


def test_parameters_replaced_after_attach_are_said(tmp_path):
    model, optimizer = _made()
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        model[0] = torch.nn.Linear(10, 32)
        for module in (model[3], model[5]):
            module.weight = torch.nn.Parameter(module.weight.detach().clone())
            module.bias = torch.nn.Parameter(module.bias.detach().clone())
        optimizer.param_groups[0]["params"] = list(model.parameters())
        _step(model, optimizer, mon)
    (warning,) = recorded.events(mon.run_dir, "warning")
    assert "attach after the model has been moved" in warning["text"]


def test_learning_rates_are_those_the_step_used(tmp_path):
    """Read before the scheduler moves them; a jump is an event, a schedule's own ramp is none."""
    model = MLP.made()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(
        [{"params": parameters[:2], "lr": 1.0}, {"params": parameters[2:], "lr": torch.tensor(10.0)}]
    )
    warmup = [0.1, 0.2, 0.3, 0.3, 0.9, 0.9, 0.3, 0.0, 0.3]  # linear, then a jump up, a drop, zero, a restart
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        for rate in warmup:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.zero_grad()
            MLP.loss(model, *MLP.batch(0)).backward()
            optimizer.step()
            optimizer.param_groups[0]["lr"] = 77.0  # the scheduler
            mon.step()
    assert recorded.series(mon.run_dir, "lr").tolist() == warmup
    assert set(recorded.series(mon.run_dir, "lr/1")) == {10.0}
    jumps = [(e["step"], e["name"], e["before"], e["after"]) for e in recorded.events(mon.run_dir, "lr_change")]
    assert jumps == [(5, "lr", 0.3, 0.9), (7, "lr", 0.9, 0.3), (8, "lr", 0.3, 0.0)]


def test_tokens(tmp_path):
    model, optimizer = _made()
    options = {"run": tmp_path, "tokens_per_step": 100, "start_step": 5}
    with monitor.attach(model, optimizer, **options) as mon:
        _step(model, optimizer, mon)
        _step(model, optimizer, mon, tokens=30)
    rows = recorded.scalars(mon.run_dir)
    assert [rows[step]["tokens"] for step in (6, 7)] == [600.0, 630.0]
    assert rows[7]["tokens_per_s"] == pytest.approx(30 / rows[7]["step_time_s"])


def test_a_step_without_the_optimizer_is_said(tmp_path):
    model, optimizer = _made()
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        MLP.loss(model, *MLP.batch(0)).backward()
        mon.step()
    assert sorted(recorded.scalars(mon.run_dir)) == [1]
    (warning,) = recorded.events(mon.run_dir, "warning")
    assert "no optimizer step was seen" in warning["text"]


def test_how_a_run_ends(tmp_path):
    model, optimizer = _made()
    with monitor.attach(model, optimizer, run=tmp_path) as mon:
        _step(model, optimizer, mon)
    assert (_exit(mon)["outcome"], _exit(mon)["step"]) == ("finished", 1)

    with pytest.raises(ZeroDivisionError), monitor.attach(model, optimizer, run=tmp_path) as mon:
        _step(model, optimizer, mon)
        1 / 0  # noqa: B018
    record = _exit(mon)
    assert (record["outcome"], record["reason"]) == ("crashed", "ZeroDivisionError: division by zero")
    assert any("test_how_a_run_ends" in line for line in record["traceback"])
    assert recorded.scalars(mon.run_dir)  # what was measured before is there

    with pytest.raises(KeyboardInterrupt), monitor.attach(model, optimizer, run=tmp_path) as mon:
        raise KeyboardInterrupt
    assert _exit(mon)["outcome"] == "stopped"

    mon = monitor.attach(model, optimizer, run=tmp_path)
    mon.close("stopped", "asked to")
    mon.close("crashed", "no second record")
    assert (_exit(mon)["outcome"], _exit(mon)["reason"]) == ("stopped", "asked to")


@pytest.mark.parametrize(("ending", "outcome"), [("", "finished"), ("raise ValueError('lost')", "crashed")])
def test_a_script_that_never_closes(tmp_path, ending, outcome):
    code = f"""
import monitor, torch
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
mon = monitor.attach(model, optimizer, run={str(tmp_path)!r})
model(torch.ones(2)).sum().backward()
optimizer.step()
mon.step(loss=1.0)
{ending}
"""
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    (run_dir,) = tmp_path.iterdir()
    record = json.loads((run_dir / "attempts" / "0000" / "exit.json").read_text())
    assert record["outcome"] == outcome
    assert sorted(recorded.scalars(run_dir)) == [1]
    if outcome == "crashed":
        assert record["reason"] == "ValueError: lost"


def test_heartbeat_states(tmp_path):
    model, optimizer = _made()

    def state():
        mon._beat()
        mon._writer.flush()
        return json.loads((mon.run_dir / "attempts/0000/rank-00000/heartbeat.json").read_text())

    with monitor.attach(model, optimizer, run=tmp_path, planned_steps=9, budget=0.03) as mon:
        assert state()["state"] == "idle"
        _step(model, optimizer, mon)
        beat = state()
        assert (beat["state"], beat["step"], beat["planned_steps"]) == ("training", 1, 9)
        assert beat["step_time_s"] > 0
        assert 0 < beat["monitor_share"] < 1
        assert beat["monitor_budget"] == 0.03
        with mon.phase("eval"):
            assert state()["state"] == "eval"
            with mon.phase("checkpoint"):
                assert state()["state"] == "checkpoint"
        with mon.phase("warming the cache"):
            assert state()["state"] == "training"
    assert state()["state"] == "closing"


def test_attach_into_a_run(tmp_path):
    from monitor.errors import RunError
    from monitor.runfile.writer import RankWriter, begin_attempt, create_run

    model, optimizer = _made()
    with monitor.attach(model, optimizer, run=tmp_path, name="demo", config={"lr": 0.1}, task="toy") as first:
        _step(model, optimizer, first)
    record = json.loads((first.run_dir / "run.json").read_text())
    assert (record["name"], record["config"], record["task"]) == ("demo", {"lr": 0.1}, "toy")

    with monitor.attach(model, optimizer, run=first.run_dir, start_step=1, planned_steps=3) as second:
        _step(model, optimizer, second)
    assert (second.run_dir, second.attempt) == (first.run_dir, 1)
    attempt = json.loads((first.run_dir / "attempts/0001/attempt.json").read_text())
    assert (attempt["parent"], attempt["resume_step"], attempt["planned_steps"]) == (0, 1, 3)
    assert attempt["environment"]["torch"] == torch.__version__
    assert sorted(recorded.scalars(first.run_dir, attempt=1)) == [2]

    run_dir = create_run(tmp_path, name="launched")
    (run_dir / "attempts" / "0000").mkdir()  # as a launcher leaves it
    with monitor.attach(model, optimizer, run=run_dir, attempt=0) as third:
        _step(model, optimizer, third)
    assert sorted(recorded.scalars(run_dir)) == [1]

    run_dir = create_run(tmp_path, name="begun")
    number = begin_attempt(run_dir)
    with monitor.attach(model, optimizer, writer=RankWriter(run_dir, number)) as fourth:
        _step(model, optimizer, fourth)
    assert (fourth.run_dir, fourth.attempt) == (run_dir, 0)
    assert _exit(fourth)["outcome"] == "finished"

    with pytest.raises(RunError, match="not a run directory"):
        monitor.attach(model, optimizer, run=tmp_path, attempt=0)
    with pytest.raises(RunError, match="cannot know which attempt"):
        monitor.attach(model, optimizer, run=tmp_path, rank=1, world_size=2)
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        monitor.attach(optimizer, model, run=tmp_path)
    with pytest.raises(TypeError, match=r"torch\.optim\.Optimizer"):
        monitor.attach(model, "sgd", run=tmp_path)


def test_names_lose_the_prefixes_of_wrappers():
    from monitor.hook.layers import layer_table, plain_name

    assert plain_name("module._orig_mod.blocks.0._checkpoint_wrapped_module.weight") == "blocks.0.weight"
    assert plain_name("inner.module.weight") == "inner.module.weight"

    class Clash(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.module = torch.nn.Linear(1, 1)

    assert layer_table(Clash()).names == ("weight", "module.weight", "module.bias")  # two would be called "weight"


def test_no_warning_in_an_ordinary_loop(tmp_path):
    model, optimizer = _made()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with monitor.attach(model, optimizer, run=tmp_path) as mon:
            for _ in range(5):
                _step(model, optimizer, mon, loss=1.0, tokens=3, batch_id="b")
    assert recorded.events(mon.run_dir, "warning") == []
