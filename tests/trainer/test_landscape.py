"""The landscape of real small trainings, from their checkpoints: right numbers, stopped and continued, and refusals."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from monitor.errors import ConfigError, RunError
from monitor.landscape.measures import barrier
from monitor.runfile.reader import open_run
from monitor.runfile.writer import begin_attempt, create_run
from tests.test_readme import ROOT
from tests.trainer.conftest import Desk, Trained
from trainer import landscape
from trainer.landscape import Question, look, main, seconds
from trainer.tasks import build_model, build_task

EXAMPLES = 4


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, texts: Path) -> Trained:
    """Twelve steps with a checkpoint every third."""
    return Desk(tmp_path_factory.mktemp("landscape") / "runs", texts).train(
        "steps=12", "batch_size=8", "checkpoint.every_steps=3", "checkpoint.keep_last=20", "optimizer.lr=1e-2"
    )


@pytest.fixture
def run_dir(trained: Trained, tmp_path: Path) -> Path:
    """A copy of the run, to write to and to spoil."""
    return Path(shutil.copytree(trained.place.run_dir, tmp_path / trained.place.run_dir.name))


class Twin:
    """Builds the model anew and puts weights in by name: none of the code under test."""

    def __init__(self, trained: Trained, data: str = "held-out", seed: int = 0) -> None:
        self.task = build_task(trained.config)
        self.model = build_model(self.task, trained.config).eval()
        size, batch_of = (
            (self.task.val_size, self.task.val_batch)
            if data == "held-out"
            else (self.task.train_size, self.task.train_batch)
        )
        self.batch = batch_of(torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:EXAMPLES])
        self.checkpoints = trained.place.checkpoints

    def weights(self, step: int) -> dict[str, torch.Tensor]:
        return safetensors.torch.load_file(self.checkpoints / f"{step:08d}" / "model.safetensors")

    @torch.no_grad()
    def loss(self, weights: dict[str, torch.Tensor]) -> float:
        self.model.load_state_dict(weights)
        return float(self.task.loss(self.model, self.batch)) / self.batch.tokens


def test_a_connecting_line_has_the_losses_of_mixed_checkpoints(run_dir: Path, trained: Trained) -> None:
    found = look(run_dir, Question("connect", points=5, other=3, examples=EXAMPLES))
    twin = Twin(trained)
    here, there = twin.weights(12), twin.weights(3)
    mixed = [
        twin.loss({name: (1 - t) * here[name] + t * there[name] for name in here}) for t in (0, 0.25, 0.5, 0.75, 1)
    ]
    np.testing.assert_allclose(found.sample.loss, mixed, rtol=1e-5)
    assert found.sample.baseline == found.sample.loss[0] and found.complete
    detail = found.sample.detail
    assert detail["other_step"] == 3
    assert [detail["barrier"], detail["barrier_at"]] == pytest.approx(
        barrier(found.sample.coords, np.array(mixed)), abs=1e-5
    )
    (kept,) = open_run(run_dir).landscape("connect")
    np.testing.assert_array_equal(kept.loss, found.sample.loss)
    assert look(run_dir, Question("connect", points=5, examples=EXAMPLES)).sample.detail["other_step"] == 9


def test_the_last_update_is_as_long_as_the_training_measured(run_dir: Path, trained: Trained) -> None:
    found = look(run_dir, Question("line", "update", points=3, radius=1.0, examples=EXAMPLES), step=9)
    assert found.sample.detail["unit"] == "update" and found.sample.coords.tolist() == [-1, 0, 1]
    twin = Twin(trained)
    assert found.sample.loss[1] == pytest.approx(twin.loss(twin.weights(9)), rel=1e-6)
    (measured,) = trained.run.series("update_norm").between(9, 9).value
    assert found.sample.detail["update_norm"] == pytest.approx(measured, rel=1e-3)


def test_down_the_gradient_the_loss_falls_to_where_the_parabola_has_its_bottom(run_dir: Path) -> None:
    found = look(run_dir, Question("line", "gradient", points=13, examples=EXAMPLES)).sample
    assert found.loss[7] < found.loss[6] < found.loss[5]
    slope = (found.loss[7] - found.loss[5]) / (found.coords[7] - found.coords[5])
    assert slope == pytest.approx(-(found.detail["gradient_norm"] ** 2), rel=0.5)


def test_the_plane_of_the_checkpoints_has_them_where_they_are(run_dir: Path, trained: Trained) -> None:
    found = look(run_dir, Question("plane", "pca", points=3, examples=EXAMPLES)).sample
    path = found.detail["trajectory"]
    assert path["step"] == [3, 6, 9, 12] and (path["x"][-1], path["y"][-1]) == (0, 0)
    twin = Twin(trained)
    last = twin.weights(12)
    for step, x, y, off in zip(*(path[name] for name in ("step", "x", "y", "off")), strict=True):
        own = twin.weights(step)
        distance = math.sqrt(sum(float((own[name] - last[name]).double().square().sum()) for name in own))
        assert math.hypot(x, y, off) == pytest.approx(distance, rel=1e-4, abs=1e-6)
        assert found.coords.min() <= x <= found.coords.max() and found.coords_y.min() <= y <= found.coords_y.max()
    shares = found.detail["variance_explained"]
    assert shares[0] >= shares[1] > 0 and 0.5 < sum(shares) <= 1 + 1e-9


def test_curvature_is_held_against_the_limit_of_the_step_before(run_dir: Path, trained: Trained) -> None:
    found = look(run_dir, Question("curvature", examples=EXAMPLES, eigenvalues=1, trace_samples=2))
    detail = found.sample.detail
    lr = trained.run.series("lr").between(12, 12).value[0]
    assert detail["lr"] == pytest.approx(lr) and detail["limit"] == pytest.approx(38 / lr) and detail["preconditioned"]
    assert found.sample.baseline == pytest.approx(Twin(trained, "training").loss(Twin(trained).weights(12)), rel=1e-4)
    assert detail["eigenvalues"][0] >= detail["along_gradient"] and detail["trace_samples"] == 2 and found.complete
    assert "preconditioned sharpness" in found.to_text() and found.to_dict()["coords"] == []


def test_an_interrupted_curvature_keeps_what_was_found_and_spoils_no_answer(run_dir: Path) -> None:
    def interrupt_at(products: int) -> Callable[[int, int], None]:
        def tell(made: int, of: int) -> None:
            if made == products:
                raise KeyboardInterrupt

        return tell

    question = Question("curvature", examples=EXAMPLES, eigenvalues=1, trace_samples=4)
    whole = look(run_dir, question)
    made = whole.sample.detail["products"]
    with pytest.raises(KeyboardInterrupt):
        look(run_dir, question, tell=interrupt_at(made - 5))
    (kept,) = open_run(run_dir).landscape()
    assert kept.detail == whole.sample.detail  # complete before, so it stays
    whole.file.unlink()
    with pytest.raises(KeyboardInterrupt):
        look(run_dir, question, tell=interrupt_at(made - 5))  # the first two, of gradient and update, are not counted
    (kept,) = open_run(run_dir).landscape()
    assert kept.detail["trace_samples"] == 1 and "trace_error" not in kept.detail
    for name in ("eigenvalues", "sharpness", "along_update"):
        assert kept.detail[name] == whole.sample.detail[name]


def test_an_interrupted_plane_is_continued_to_the_same_bits(
    run_dir: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Question("plane", points=5, examples=EXAMPLES, radius=0.5)
    monkeypatch.setattr("monitor.landscape.surface.READ_EVERY", 1)

    def interrupt(known: int, of: int) -> None:
        if known == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(run_dir, question, tell=interrupt)
    (part,) = open_run(run_dir).landscape("plane")
    assert len(part.loss) == 11 and part.detail["points"] == 25
    assert {(-0.5, -0.5), (0, 0), (0.5, 0.5)} <= set(zip(part.coords, part.coords_y, strict=True))  # coarse first
    seen: list[int] = []
    whole = look(run_dir, question, tell=lambda known, of: seen.append(known))
    assert seen[0] == 11 and whole.complete and len(open_run(run_dir).landscape("plane")) == 1
    again = look(Path(shutil.copytree(trained.place.run_dir, run_dir.parent / "fresh" / run_dir.name)), question)
    np.testing.assert_array_equal(again.sample.loss, whole.sample.loss)
    assert look(run_dir, question, budget_s=1e-9).complete  # nothing is left to do


def test_a_budget_keeps_what_there_was_time_for(run_dir: Path) -> None:
    found = look(run_dir, Question("line", points=51, examples=EXAMPLES), budget_s=1e-9)
    assert not found.complete and len(found.sample.loss) == 0 and math.isfinite(found.sample.baseline)
    assert "the same command goes on" in found.to_text()


def test_the_command_prints_words_or_json(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(run_dir), "--checkpoint", "6", "--points", "3", "--examples", str(EXAMPLES)]
    assert main(words) == 0
    assert "step 6, line along random" in capsys.readouterr().out
    assert main([*words, "--json", "--budget", "5m", "--set", "threads=1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["step"], told["complete"], len(told["loss"])) == (6, True, 3)


def test_ctrl_c_keeps_what_is_done_and_the_command_goes_on(run_dir: Path) -> None:
    """The real command in a process of its own, far from its end when it is interrupted."""
    words = [sys.executable, "-m", "app.cli", "landscape", str(run_dir), "--kind", "plane"]
    endless = [*words, "--points", "501", "--with", f"examples={EXAMPLES}"]
    with subprocess.Popen(endless, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 200
            while not list(run_dir.glob("landscape/*.arrows")):
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=200)
        finally:
            process.kill()
    assert process.returncode == 130 and "the same command goes on" in said
    (part,) = open_run(run_dir).landscape("plane")
    assert 0 < len(part.loss) < part.detail["points"] == 501**2
    again = look(run_dir, Question("plane", points=501, examples=EXAMPLES), budget_s=1e-9)
    assert len(again.sample.loss) == len(part.loss)  # the very answer is continued


def refusal(run_dir: Path, question: Question | None = None, **options: Any) -> str:
    with pytest.raises((RunError, ConfigError)) as caught:
        look(run_dir, question or Question(points=3, examples=EXAMPLES), **options)
    assert not (run_dir / "landscape").exists()
    return str(caught.value)


def test_what_cannot_be_answered_is_one_message(run_dir: Path, tmp_path: Path) -> None:
    assert "no complete checkpoint of step 5 (complete ones: 3, 6, 9, 12)" in refusal(run_dir, step=5)
    assert "is connected with itself" in refusal(run_dir, Question("connect", points=3, other=12))
    assert "no checkpoint before step 3" in refusal(run_dir, Question("connect", points=3), step=3)
    assert "needs two checkpoints before step 3" in refusal(run_dir, Question("plane", "pca", points=3), step=3)
    assert "optimizer.lr" in refusal(run_dir, overrides=["optimizer.lr=1"])
    foreign = create_run(tmp_path / "foreign")
    begin_attempt(foreign)
    assert "mon.landscape(loss_fn, batch)" in refusal(foreign)
    model = run_dir / "checkpoints" / "00000012" / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    assert "damaged" in refusal(run_dir, step=12)
    shutil.rmtree(run_dir / "checkpoints")
    assert "complete ones: none" in refusal(run_dir)


def test_weights_in_pieces_are_explained(run_dir: Path) -> None:
    folder = run_dir / "checkpoints" / "00000012"
    (folder / "model.safetensors").rename(folder / "shard-00001-model.safetensors")
    record = json.loads((folder / "COMMIT.json").read_text())
    record["files"]["shard-00001-model.safetensors"] = record["files"].pop("model.safetensors")
    (folder / "COMMIT.json").write_text(json.dumps(record))
    assert "holds its weights in pieces" in refusal(run_dir)


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ({"kind": "cube"}, "accepted are kinds line"),
        ({"points": 4}, "odd number from 3 to 501"),
        ({"points": 503}, "odd number from 3 to 501"),
        ({"radius": 0.0}, "a number above 0"),
        ({"direction": "pca"}, "a line has no direction pca"),
    ],
)
def test_questions_that_make_no_sense_are_refused(question: dict[str, Any], words: str) -> None:
    with pytest.raises(RunError, match=words):
        Question(**question)


def test_mistakes_on_the_command_line_are_one_line(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run_dir), "--points", "4"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert [seconds(text) for text in ("60", "60s", "5m", "1h", "0.5s")] == [60, 60, 300, 3600, 0.5]
    for text in ("0s", "soon", "-1", "nan"):
        with pytest.raises(landscape.argparse.ArgumentTypeError, match="accepted are times"):
            seconds(text)
