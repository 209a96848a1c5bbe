"""Batch or state: real small trainings with a bad batch in their data, a bad step, or nothing; and what is refused."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from monitor.diagnosis.engine import diagnose
from monitor.errors import ConfigError, GradiometerError, RunError
from monitor.runfile.reader import open_run
from monitor.runfile.writer import RankWriter, begin_attempt, create_run
from tests.test_readme import ROOT
from tests.trainer.conftest import Desk, Trained
from trainer.config import load_config
from trainer.counterfactual import Height, Weighed, judge, share_of_few
from trainer.replay import main, replay
from trainer.tasks import EpochSampler, build_task

BATCH, LENGTH, STEPS = 8, 32, 84
BAD = 75
"""The step whose batch, or whose weights, are spoilt."""
SETTINGS = (
    f"steps={STEPS}", f"batch_size={BATCH}", f"task.seq_len={LENGTH}", "optimizer.lr=5e-3", "checkpoint.every_steps=12",
    "checkpoint.keep_last=20", "checkpoint.background=false", "model.dropout=0.1",
)  # fmt: skip


def text_file(folder: Path, spoilt_step: int | None) -> Path:
    """One file of text in which the sequences that ``spoilt_step`` draws are random bytes."""
    words = random.Random(0).choices(["alpha ", "beta ", "gamma ", "delta\n"], k=12000)
    content = bytearray("".join(words).encode())
    file = folder / "text.txt"
    file.write_bytes(content)
    if spoilt_step is not None:
        task = build_task(load_config(None, [f"task.data={file}", f"task.seq_len={LENGTH}"]))
        sampler = EpochSampler(task.train_size, seed=0)
        sampler.take((spoilt_step - 1) * BATCH)
        for index in sampler.take(BATCH).tolist():
            content[index * LENGTH : (index + 1) * LENGTH] = random.Random(index).choices(range(128, 256), k=LENGTH)
        file.write_bytes(content)
    return file


@pytest.fixture(scope="module")
def spoilt_batch(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("batch")
    file = text_file(folder, BAD)
    return Desk(folder / "runs", file).train(*SETTINGS)


@pytest.fixture(scope="module")
def spoilt_state(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The learning rate is 300 times as high in the step before."""
    folder = tmp_path_factory.mktemp("state")
    fault = f'fault=[{{kind="lr_factor", step={BAD - 1}, steps=1, factor=300}}]'
    return Desk(folder / "runs", text_file(folder, None)).train(*SETTINGS, fault)


def test_a_batch_that_is_bad_in_the_data_is_blamed(spoilt_batch: Trained) -> None:
    found = replay(spoilt_batch.place.run_dir, BAD, rerun=True)
    assert found.verdict == "batch", found.to_text()
    assert [one.step for one in found.weights] == [12, 72]  # none is 100 steps older, so the oldest
    assert all(one.height.raised and one.in_evaluation.raised for one in found.weights)
    assert found.share_of_few < 0.5  # all samples are bad, not a few
    assert found.rerun is not None and found.rerun.differs_at is None, "trained again bit for bit, dropout and all"
    assert found.rerun.again == found.recorded.loss
    assert f"step {BAD}: batch" in found.to_text() and f"{BAD - 12} steps older" in found.to_text()


def test_a_state_that_went_bad_is_blamed(spoilt_state: Trained) -> None:
    found = replay(spoilt_state.place.run_dir, BAD, rerun=True)
    assert found.verdict == "state", found.to_text()
    assert not any(one.height.raised for one in found.weights)
    # the fault is not in the run's configuration, so that the step after it comes out otherwise without it
    assert found.rerun is not None and (found.rerun.first, found.rerun.differs_at) == (73, BAD)


def test_a_healthy_step_is_neither_and_the_raised_one_soon_after_is_named(
    spoilt_batch: Trained, spoilt_state: Trained
) -> None:
    for trained in (spoilt_batch, spoilt_state):
        found = replay(trained.place.run_dir, BAD - 1)
        assert found.verdict == "not told apart"
        assert "nothing to explain" in found.text and found.text.endswith(f"step {BAD} was: replay that")
        assert "replay that" not in replay(trained.place.run_dir, 40).text


def test_the_verdict_is_added_to_the_run_and_the_doctor_weighs_causes_with_it(
    spoilt_batch: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = shutil.copytree(spoilt_batch.place.run_dir, tmp_path / "run")
    attempts = contents(run_dir / "attempts")
    run = open_run(run_dir)
    before = blamed(run_dir)
    assert f"gradiometer replay {run_dir} --step {BAD}" in before.remedy_text or before.confidence > 0.9
    assert main([str(run_dir), "--step", str(BAD), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"], told["step"]) == ("batch", BAD)
    assert contents(run_dir / "attempts") == attempts
    assert run.events("replay") == [] and run.refresh()
    (event,) = run.events("replay")
    assert (event.step, event.attempt, event.fields["verdict"]) == (BAD, 0, "batch")
    assert event.fields["weights"] == told["weights"] and [one["step"] for one in told["weights"]] == [12, 72]
    after = blamed(run_dir)
    assert after.confidence > 0.95 and "gradiometer replay" not in after.remedy_text

    # a rewind makes the step anew, and what was found out about the old one no longer counts
    begin_attempt(run_dir, parent=0, resume_step=60)
    writer = RankWriter(run_dir, 1)
    writer.scalars(61, 0.0, {"train_loss": 1.0})
    writer.close()
    assert open_run(run_dir).events("replay") == []


def test_a_batch_that_was_changed_on_its_way_is_told_by_its_fingerprint(tmp_path: Path) -> None:
    desk = Desk(tmp_path / "runs", text_file(tmp_path, None))
    trained = desk.train(*SETTINGS, f'fault=[{{kind="random_bytes", step={BAD}, steps=1}}]')
    found = replay(trained.place.run_dir, BAD)
    assert found.recorded.raised and found.verdict == "not told apart"
    assert "another batch than the data have in its place" in found.text


@dataclass(frozen=True, slots=True)
class Blamed:
    confidence: float
    """Of a bad batch."""
    remedy_text: str


def blamed(run_dir: Path) -> Blamed:
    finding = next(one for one in diagnose(run_dir).findings if one.id == "loss-spike")
    assert finding.remedy is not None and finding.causes[0].id == "bad-batch"
    return Blamed(finding.causes[0].confidence, finding.remedy.text)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "settings",
    [
        ("task.kind=charmlp", "grad_accum_steps=4"),
        ("task.kind=mlp", "adversarial.epsilon=0.1", "task.val_fraction=0.2"),
        ("task.kind=cnn", "grad_accum_steps=2", "model.batch_norm=true", "task.noise_std=0.2", "task.val_fraction=0.2"),
        ("task.kind=gpt", "curriculum.kind=linear", "curriculum.first_len=8", "curriculum.steps=9", "loss.z_loss=1e-3"),
    ],
    ids=["charmlp", "mlp", "cnn", "gpt"],
)
def test_the_step_after_a_checkpoint_comes_out_as_recorded(desk: Desk, settings: tuple[str, ...]) -> None:
    """Batch, micro-batches, dropout and running statistics are those of the training: its own loss is the reference."""
    steps = ("steps=9", "checkpoint.every_steps=3", "checkpoint.keep_last=5", "checkpoint.keep_best=false")
    trained = desk.train(*SETTINGS[1:4], *steps, "model.dropout=0.2", *settings)
    found = replay(trained.place.run_dir, 7, others=4, rerun=True)
    assert [one.step for one in found.weights] == [3, 6] and found.random == "recorded" and found.others == 4
    assert found.weights[-1].height.loss == pytest.approx(trained.losses()[6], rel=1e-6)
    assert found.weights[-1].in_evaluation.loss != pytest.approx(trained.losses()[6], rel=1e-6)
    assert found.rerun is not None and found.rerun.differs_at is None


OWN = """
import torch
from torch import nn
from trainer.tasks import Batch, EpochSampler, Task

class Points(Task):
    name, train_size, val_size = "points", 4000, 64

    def __init__(self, config):
        sampler = EpochSampler(self.train_size, config.seed)
        sampler.take({step} * config.batch_size)
        self.bad = sampler.take(config.batch_size)[:1]

    def build_model(self):
        return nn.Linear(4, 2)

    def train_batch(self, indices):
        inputs = torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(int(i))) for i in indices])
        targets = (inputs.sum(1) > 0).long()
        spoilt = torch.isin(indices, self.bad)
        inputs[spoilt] *= 1000 * (1 - 2 * targets[spoilt, None])  # and on the wrong side
        targets[spoilt] = 1 - targets[spoilt]
        return Batch(inputs, targets)

    val_batch = train_batch

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch.inputs), batch.targets, reduction="sum")

build = Points
"""


def test_one_bad_sample_of_a_task_of_ones_own_is_found(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "points_of_mine.py").write_text(OWN.replace("{step}", "49"))
    monkeypatch.syspath_prepend(tmp_path)
    own = "task.kind=points_of_mine:build"
    trained = desk.train(own, "steps=60", "batch_size=32", *SETTINGS[3:6], "optimizer.lr=1e-2")
    with pytest.raises(ConfigError, match=r"Name it yourself .*points_of_mine:build"):
        replay(trained.place.run_dir, 50)
    found = replay(trained.place.run_dir, 50, overrides=[own])
    assert found.verdict == "batch", found.to_text()
    sampler = EpochSampler(4000, 0)
    sampler.take(49 * 32)
    assert found.samples[0].index == sampler.take(32)[0] and found.share_of_few > 0.9


# --- what cannot be replayed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "more", "message"),
    [
        (0, {}, r"step 0 cannot be replayed: run .* has no loss of it; it has the losses of steps 1 to 84\.$"),
        (85, {}, r"it has the losses of steps 1 to 84\.$"),
        (12, {}, r"no checkpoint from before it that can be used \(complete ones of steps: 12, 24, .*keep_last=20$"),
        (BAD, {"overrides": ["optimizer.lr=1"]}, r"^optimizer\.lr: a replay is of the training as it was\. Only task"),
        (BAD, {"overrides": ["task.data=/none/such"]}, r"task\.data.*/none/such"),
    ],
)
def test_what_cannot_be_replayed_is_said_in_one_message(
    spoilt_batch: Trained, step: int, more: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(GradiometerError, match=message):
        replay(spoilt_batch.place.run_dir, step, **more)


def test_data_that_have_changed_are_noticed(spoilt_batch: Trained, tmp_path: Path) -> None:
    whole = (spoilt_batch.place.run_dir.parents[1] / "text.txt").read_bytes()
    other = tmp_path / "other.txt"
    other.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"the data hold .* training examples now"):
        replay(spoilt_batch.place.run_dir, BAD, overrides=[f"task.data={other}"])
    other.write_bytes(whole[::-1])
    with pytest.raises(RunError, match=r"step 75 cannot be replayed: the loss of step 13, taken anew"):
        replay(spoilt_batch.place.run_dir, BAD, overrides=[f"task.data={other}"])
    other.write_bytes(whole)
    assert replay(spoilt_batch.place.run_dir, BAD, overrides=[f"task.data={other}"]).verdict == "batch"


def test_a_run_of_somebody_else_is_refused(tmp_path: Path) -> None:
    plain = create_run(tmp_path, name="theirs")
    configured = create_run(tmp_path, name="theirs too", config={"lr": 1e-3})
    imported = create_run(tmp_path, name="read", config={"seed": 1}, code={"import": {"format": "csv"}})
    for run_dir in (plain, imported):
        with pytest.raises(RunError, match="was not made by this trainer"):
            replay(run_dir, 5)
    begin_attempt(configured)
    writer = RankWriter(configured, 0)
    writer.scalars(5, 0.0, {"train_loss": 1.0})
    writer.close()
    with pytest.raises(RunError, match=r"was not made by this version of this trainer: .*lr"):
        replay(configured, 5)


def test_a_checkpoint_of_other_settings_or_of_a_rewound_attempt_is_not_used(desk: Desk) -> None:
    steps = ("checkpoint.every_steps=4", "checkpoint.keep_last=9", "checkpoint.keep_best=false")
    trained = desk.train(*SETTINGS[1:4], *steps, "steps=8")
    resumed = desk.resume(trained, ["steps=16", "batch_size=16"], at_step=4)
    with pytest.raises(RunError, match="checkpoint 4 is from before a resume that changed batch_size"):
        replay(resumed.place.run_dir, 7)
    with pytest.raises(RunError, match=r"no checkpoint .* is from before a resume that changed batch_size"):
        replay(resumed.place.run_dir, 8, rerun=True)
    found = replay(resumed.place.run_dir, 11, others=4)
    assert [one.step for one in found.weights] == [8]
    longer = desk.resume(resumed, ["steps=20", "optimizer.lr=1e-4"], at_step=12)
    assert [one.step for one in replay(longer.place.run_dir, 19, others=4).weights] == [8, 16]
    for step in (12, 16):
        shutil.rmtree(longer.place.checkpoints / f"{step:08d}")
    with pytest.raises(RunError, match="the last checkpoint, 8, is from before the resume after step 12"):
        replay(longer.place.run_dir, 19, rerun=True)


def test_the_command(spoilt_state: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = shutil.copytree(spoilt_state.place.run_dir, tmp_path / "one")
    words = ["replay", "one", "--runs", str(tmp_path), "--step", str(BAD), "--others", "8", "--set", "threads=1"]
    line = [sys.executable, "-m", "app.cli", *words]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert f"one, step {BAD}: state" in done.stdout and done.stderr == ""
    assert [event.fields["others"] for event in open_run(run_dir).events("replay")] == [8]
    assert main([str(run_dir), "--step", "3"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: step 3 cannot be replayed") and told.err.count("\n") == 1


# --- the verdict alone ------------------------------------------------------------------------------------------------


def weighed(loss: float, usual: float, z: float, before: int = 100) -> Weighed:
    height = Height(loss, usual, z)
    return Weighed(500 - before, before, height, height)


SPIKE = Height(6.0, 2.0, 90.0)


@pytest.mark.parametrize(
    ("recorded", "weights", "verdict", "words"),
    [
        (SPIKE, [weighed(5.8, 2.2, 80)], "batch", "100 steps older"),
        (SPIKE, [weighed(2.2, 2.2, 0)], "state", "is ordinary"),
        (SPIKE, [weighed(2.2, 2.2, 0), weighed(2.1, 2.1, 0, 10)], "state", "leaves the 10 steps since"),
        (SPIKE, [weighed(2.2, 2.2, 0), weighed(6.0, 2.1, 50, 10)], "state", "is high with those of step 490"),
        (SPIKE, [weighed(2.2, 2.2, 0), weighed(6.0, 5.9, 1, 10)], "state", "every batch is high"),
        (SPIKE, [weighed(2.52, 2.2, 8)], "state", "shows 8 % of the rise"),
        (SPIKE, [weighed(3.4, 2.2, 30)], "not told apart", "shows only 30 % of the rise"),
        (SPIKE, [weighed(3.4, 2.2, 30), weighed(5.9, 2.1, 60, 10)], "batch", "100 steps older"),
        (SPIKE, [weighed(5.0, 4.9, 1)], "not told apart", "too little trained"),
        (SPIKE, [weighed(5.8, 2.2, 80, 19)], "not told apart", "only 19 steps older"),
        (SPIKE, [weighed(2.2, 2.2, 0), weighed(2.1, 2.1, 0, 1)], "not told apart", "does not come out again"),
        (SPIKE, [weighed(2.2, math.nan, 0)], "not told apart", "no finite loss on other batches"),
        (Height(2.1, 2.0, 4.0), [weighed(5.8, 2.2, 80)], "not told apart", "nothing to explain"),
        (Height(6.0, math.nan, 0.0), [weighed(5.8, 2.2, 80)], "not told apart", "no step before"),
        (Height(math.nan, 2.0, math.inf), [weighed(math.nan, 2.2, math.inf)], "batch", "100 steps older"),
        (Height(math.nan, 2.0, math.inf), [weighed(2.2, 2.2, 0)], "state", "is ordinary"),
        (Height(math.inf, 2.0, math.inf), [weighed(9.0, 2.2, 80)], "batch", "100 steps older"),
    ],
)
def test_verdicts(recorded: Height, weights: list[Weighed], verdict: str, words: str) -> None:
    found, text = judge(500, recorded, weights)
    assert (found, words in text) == (verdict, True), text


def test_how_much_of_the_excess_a_few_samples_hold() -> None:
    assert share_of_few([2.0] * 19 + [50.0], usual=2.0) == 1.0
    assert share_of_few([5.0] * 20, usual=2.0) == pytest.approx(0.1)
    assert share_of_few([9.0] * 10 + [math.nan] * 10, usual=2.0) == pytest.approx(0.2)  # 2 of the 10 infinite ones
    assert math.isnan(share_of_few([1.0] * 20, usual=2.0))
