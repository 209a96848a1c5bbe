"""A sweep with real trainings: through a kill of the process that looks after it, a divergence and a stop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from monitor.diagnosis.rule import Finding, Severity
from monitor.errors import RunError
from monitor.runfile.reader import open_run
from monitor.runfile.store import list_runs
from monitor.signals import Signal
from tests.trainer.launch.conftest import processes_of
from tests.waiting import until
from trainer.config import load_config
from trainer.sweep import Sweep, ask_to_stop, begin, go_on, make_plan, open_sweep
from trainer.sweep.driver import final_value, has_diverged, main, reports

SMALL = [
    "task.kind=mlp",
    "model.n_layer=1",
    "model.d_model=16",
    "checkpoint.every_steps=100000",
]


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """A test that fails half-way leaves no training behind: they are detached, and would train on for hours."""
    yield
    for process in processes_of(tmp_path):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def driver_of(sweep: Sweep) -> psutil.Process:
    """Found by its command line: the sweep's own record is not believed."""
    return until(
        lambda: next((p for p in processes_of(sweep.folder) if "trainer.sweep.driver" in p.cmdline()), None), "driver"
    )


def test_a_sweep_survives_its_driver_ends_what_diverged_and_finds_the_better_half(tmp_path: Path) -> None:
    base = load_config(None, [*SMALL, "steps=60", "evaluation.every_steps=20"])
    plan = make_plan(base, ["optimizer.lr=1e-6,1e-2"], trials=3, parallel=2, sampler="random", seed=5)
    sweep = begin(plan, tmp_path, sweep_id="s")
    with pytest.raises(RunError, match="exists already"):
        begin(plan, tmp_path, sweep_id="s")
    until(lambda: open_sweep(tmp_path, "s").trials, "a first trial")
    driver = driver_of(sweep)
    driver.kill()
    driver.wait(60)
    until(lambda: open_sweep(tmp_path, "s").state == "interrupted", "an interrupted sweep")
    went_on = go_on(open_sweep(tmp_path, "s"))
    with pytest.raises(RunError, match="is running"):
        go_on(went_on)
    until(lambda: open_sweep(tmp_path, "s").state == "finished", "the end")
    done = open_sweep(tmp_path, "s")
    assert [trial.state for trial in done.trials] == ["complete"] * 3
    assert {run.id for run in list_runs(tmp_path)} == {"s-0000", "s-0001", "s-0002"}, "no trial was started twice"
    for trial in done.trials:
        run = open_run(tmp_path / trial.run_id)
        assert run.config is not None and run.config["optimizer"]["lr"] == trial.params["optimizer.lr"]
        assert run.meta["tags"] == ["sweep:s"]
        losses = run.series("val_loss")
        assert trial.value == losses.value[-1]
        assert [step for step, _ in trial.reports] == losses.step.tolist()
    assert done.best is not None and done.best.params == {"optimizer.lr": 1e-2}
    with pytest.raises(RunError, match="finished"):
        ask_to_stop(done)
    until(lambda: not processes_of(tmp_path), "no process left")


def test_a_diverged_trial_is_dead_and_a_stopped_sweep_leaves_nothing_running(tmp_path: Path) -> None:
    base = load_config(None, [*SMALL, "steps=200000", "optimizer.kind=sgd", "clip.max_norm=none"])
    plan = make_plan(base, ["optimizer.lr=50,1e-3"], trials=9, parallel=2, metric="train_loss", seed=2)
    rates = {number: params["optimizer.lr"] for number, params in enumerate(_asked(plan, 2))}
    assert set(rates.values()) == {50.0, 1e-3}, "the seed gives one of each"
    begin(plan, tmp_path, sweep_id="s")

    def dead() -> bool:
        return any(trial.state == "dead" for trial in open_sweep(tmp_path, "s").trials)

    until(dead, "a dead trial")
    ask_to_stop(open_sweep(tmp_path, "s"))
    until(lambda: open_sweep(tmp_path, "s").state == "stopped", "a stopped sweep")
    ended = open_sweep(tmp_path, "s").trials
    assert all(trial.ended for trial in ended)
    for trial in ended:
        if trial.state == "dead":
            assert trial.params["optimizer.lr"] == 50.0
            assert any(rule in trial.reason for rule in ("explosion", "divergence", "spike", "non-finite", "nan"))
    healthy = next(number for number, rate in rates.items() if rate == 1e-3)
    assert ended[healthy].state == "stopped"
    assert open_run(tmp_path / ended[healthy].run_id).checkpoints(), "it was asked, not killed"
    until(lambda: not processes_of(tmp_path), "no process left")


def _asked(plan: object, count: int) -> list[dict[str, float]]:
    from trainer.sweep.samplers import AtRandom

    sampler = AtRandom(plan.space, plan.seed)  # type: ignore[attr-defined]
    return [sampler.ask(number) for number in range(count)]


def test_there_is_one_driver_and_sigterm_ends_it_and_leaves_the_trainings_alone(tmp_path: Path) -> None:
    base = load_config(None, [*SMALL, "steps=200000"])
    sweep = begin(make_plan(base, ["optimizer.lr=1e-4..1e-3"], trials=2), tmp_path, sweep_id="s")
    run_dir = tmp_path / "s-0000"
    until(lambda: run_dir.exists() and (open_run(run_dir).last_step or 0) > 3, "steps")
    driver = driver_of(sweep)
    assert main([str(sweep.folder)]) == 1
    assert driver.is_running()
    driver.send_signal(signal.SIGTERM)
    driver.wait(60)
    step = open_run(run_dir).last_step or 0
    until(lambda: (open_run(run_dir).last_step or 0) > step + 3, "more steps")
    go_on(open_sweep(tmp_path, "s"))
    ask_to_stop(open_sweep(tmp_path, "s"))
    until(lambda: open_sweep(tmp_path, "s").state == "stopped", "a stopped sweep")
    until(lambda: not processes_of(tmp_path), "no process left")


# What a trial is worth -----------------------------------------------------------------------------------------------


def test_the_value_is_the_median_of_the_last_twentieth() -> None:
    step = np.arange(1, 1001)
    metric = Signal("m", step, np.where(step >= 950, 2.0, 9.0) + (step == 980) * 1e6)
    assert final_value(metric, 1000) == 2.0
    assert final_value(Signal("m", np.array([200, 400]), np.array([3.0, 1.5])), 900) == 1.5
    assert final_value(Signal("m", np.array([], dtype=np.int64), np.array([])), 900) is None


def test_reports_are_of_intervals_that_are_over() -> None:
    step = np.arange(1, 995)
    told = reports(Signal("m", step, step.astype(float)), 1000)
    assert [end for end, _ in told] == list(range(20, 981, 20))
    assert told[0] == (20, 10.5)
    sparse = Signal("m", np.array([200, 400, 1000]), np.array([3.0, 2.0, 1.0]))
    assert reports(sparse, 1000) == [(200, 3.0), (400, 2.0), (1000, 1.0)]
    assert reports(Signal("m", np.array([], dtype=np.int64), np.array([])), 1000) == []


@pytest.mark.parametrize(
    ("rule", "severity", "first", "last", "dead"),
    [
        ("gradient-explosion", Severity.CRITICAL, 100, 200, True),
        ("non-finite", Severity.CRITICAL, 170, 195, True),
        ("gradient-explosion", Severity.CRITICAL, 100, 120, False),  # it has recovered
        ("gradient-explosion", Severity.CRITICAL, 190, 200, False),  # it may recover
        ("loss-spike", Severity.WARNING, 100, 200, False),
        ("replicas-apart", Severity.CRITICAL, 100, 200, False),  # wrong, but not diverged
    ],
)
def test_only_a_lasting_critical_divergence_kills(
    rule: str, severity: Severity, first: int, last: int, dead: bool
) -> None:
    finding = Finding(id=rule, severity=severity, summary="", onset_step=first, first_step=first, last_step=last)
    assert has_diverged(finding, 200) is dead
