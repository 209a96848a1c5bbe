"""Checkpoints: resuming equals not stopping, bit for bit; incomplete and damaged ones are never resumed from."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch

from monitor.errors import ConfigError, RunError
from tests.trainer.conftest import Desk, Trained, assert_same
from trainer.checkpoint import Saver, restore
from trainer.commit import newest_complete, remove_leftovers
from trainer.config import CheckpointConfig
from trainer.loop import Session, build_session
from trainer.parallel import Parallel
from trainer.place import resumed_run

ROUGH = ("model.dropout=0.2", "grad_accum_steps=2", "batch_size=8")
"""What makes resuming hard: random numbers in forward, and several micro-batches per step."""
ALONE = Parallel(rank=0, world_size=1, device=torch.device("cpu"))


@pytest.mark.parametrize(
    "more",
    [(), ("task.kind=charmlp",), ("precision.kind=fp16", "precision.growth_interval=7"), ("optimizer.kind=sgd",)],
    ids=["gpt", "charmlp", "fp16", "sgd"],
)
def test_forty_steps_are_twenty_and_twenty_more(desk: Desk, more: tuple[str, ...]) -> None:
    straight = desk.train("steps=40", "checkpoint.every_steps=none", *ROUGH, *more)
    halfway = desk.train("steps=40", "checkpoint.every_steps=20", *ROUGH, *more)
    shutil.rmtree(halfway.place.checkpoints / "00000040")
    torch.rand(100)  # whatever the process did in between
    resumed = desk.resume(halfway)
    assert resumed.outcome.step == 40
    assert resumed.losses() == straight.losses()
    assert_same(resumed.weights(), straight.weights())


def test_resumed_run_is_one_line_of_two_attempts(desk: Desk) -> None:
    first = desk.train("steps=10", *ROUGH)
    second = desk.resume(first, ["steps=16", "optimizer.lr=1e-3"])
    third = desk.resume(second, ["steps=20"])
    run = third.run
    assert [(attempt.parent, attempt.resume_step) for attempt in run.attempts] == [(None, 0), (0, 10), (1, 16)]
    assert run.attempts[2].overrides == {"steps": 20, "optimizer.lr": 1e-3}
    assert third.config.optimizer.lr == 1e-3
    assert run.series("train_loss").step.tolist() == list(range(1, 21))
    assert run.series("tokens").value.tolist() == [step * 8 * 32 for step in range(1, 21)]
    assert [(event.step, event.fields["checkpoint"]) for event in run.events("resume")] == [
        (10, "checkpoints/00000010"),
        (16, "checkpoints/00000016"),
    ]


def test_only_the_newest_are_kept_and_an_earlier_one_can_be_chosen(desk: Desk) -> None:
    first = desk.train("steps=8", "checkpoint.every_steps=2", "checkpoint.keep_last=3", *ROUGH)
    assert sorted(path.name for path in first.place.checkpoints.iterdir()) == ["00000004", "00000006", "00000008"]
    rewound = desk.resume(first, ["steps=7", "checkpoint.every_steps=none"], at_step=4)
    assert rewound.run.attempts[1].resume_step == 4
    assert rewound.run.series("train_loss").step.tolist() == list(range(1, 8))
    # the rewound line is the current one, though the line left behind reached a higher step
    assert newest(rewound).name == "00000007"


def test_incomplete_and_damaged_checkpoints_are_skipped_with_a_word(desk: Desk) -> None:
    trained = desk.train("steps=8", "checkpoint.every_steps=2", "checkpoint.keep_last=9", *ROUGH)
    folder = trained.place.checkpoints
    (folder / "00000008" / "COMMIT.json").unlink()
    weights = folder / "00000006" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    said: list[str] = []
    found = newest_complete(folder, said.append)
    assert found is not None and found.step == 4
    assert said == [
        "checkpoint 00000008 is incomplete and is skipped: it has no COMMIT.json, so writing it was cut short",
        "checkpoint 00000006 is damaged and is skipped: the content of model.safetensors has changed",
    ]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda folder: (folder / "training.pt").unlink(), "training.pt is missing"),
        (lambda folder: (folder / "training.pt").write_bytes(b"x"), "training.pt has 1 bytes and had"),
        (lambda folder: (folder / "COMMIT.json").write_text("{"), "COMMIT.json cannot be read"),
        (lambda folder: (folder / "COMMIT.json").write_text('{"step": 2}'), "COMMIT.json cannot be read"),
        (
            lambda folder: (folder / "COMMIT.json").write_text('{"step":2,"attempt":0,"world_size":1,"files":{}}'),
            "COMMIT.json lists no model.safetensors or training.pt",
        ),
    ],
)
def test_every_kind_of_damage_is_named(desk: Desk, spoil: object, reason: str) -> None:
    trained = desk.train("steps=2", *ROUGH)
    spoil(trained.place.checkpoints / "00000002")  # type: ignore[operator]
    said: list[str] = []
    assert newest_complete(trained.place.checkpoints, said.append) is None
    assert reason in said[0]
    with pytest.raises(RunError, match=r"has no complete checkpoint in .* Start it anew"):
        desk.resume(trained, ["steps=9"])


def test_commit_names_every_file_with_size_and_hash(desk: Desk) -> None:
    import hashlib

    trained = desk.train("steps=2", *ROUGH)
    folder = trained.place.checkpoints / "00000002"
    commit = json.loads((folder / "COMMIT.json").read_text())
    assert (commit["step"], commit["attempt"], commit["world_size"]) == (2, 0, 1)
    assert set(commit["files"]) == {"model.safetensors", "training.pt", "rank-00000.pt"}
    for name, recorded in commit["files"].items():
        content = (folder / name).read_bytes()
        assert recorded == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_leftovers_of_a_killed_save_are_cleared_and_a_replaced_checkpoint_comes_back(tmp_path: Path) -> None:
    for name in (".tmp-00000030-1", ".tmp-gone-00000005", ".tmp-old-00000010", ".tmp-old-00000020", "00000020"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    remove_leftovers(tmp_path)
    assert {path.name: (path / "content").read_text() for path in tmp_path.iterdir()} == {
        "00000010": ".tmp-old-00000010",  # its successor never arrived
        "00000020": "00000020",
    }


def test_checkpoint_with_code_in_it_is_refused(desk: Desk) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (print, ("code ran",))

    trained = desk.train("steps=2", *ROUGH)
    folder = trained.place.checkpoints / "00000002"
    (folder / "training.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    recommit(folder)
    with pytest.raises(RunError, match=r"training\.pt cannot be read"):
        desk.resume(trained, ["steps=9"])


def test_checkpoint_of_another_model_is_refused_with_the_shapes(desk: Desk) -> None:
    trained = desk.train("steps=2", *ROUGH)
    with pytest.raises(RunError, match=r"does not fit this configuration: .*size mismatch"):
        desk.resume(trained, ["steps=9", "model.d_model=16"])


def test_checkpoint_of_an_earlier_version_is_refused(desk: Desk) -> None:
    trained = desk.train("steps=2", *ROUGH)
    folder = trained.place.checkpoints / "00000002"
    training = torch.load(folder / "training.pt", weights_only=True)
    torch.save({name: value for name, value in training.items() if name != "best_loss"}, folder / "training.pt")
    recommit(folder)
    with pytest.raises(RunError, match="written by an earlier version of the trainer"):
        desk.resume(trained, ["steps=9"])


def test_nothing_left_to_train_is_said(desk: Desk) -> None:
    trained = desk.train("steps=2", *ROUGH)
    with pytest.raises(RunError, match=r"at step 2 and 2 steps in all, so nothing is left to train. Give more steps"):
        resumed_run(trained.place.run_dir, [], print)
    assert len(trained.run.attempts) == 1  # a refused resume leaves nothing behind
    with pytest.raises(ConfigError, match=r"no such field"):
        resumed_run(trained.place.run_dir, ["optimizer.lrr=3"], print)


def test_changed_data_are_refused(desk: Desk, tmp_path: Path) -> None:
    trained = desk.train("steps=2", *ROUGH)
    other = tmp_path / "other.txt"
    other.write_text("another text " * 500)
    with pytest.raises(RunError, match=r"the data hold .* training examples now"):
        desk.resume(trained, ["steps=4", f"task.data={other}"])


def saver_into(folder: Path, **values: object) -> Saver:
    return Saver(folder, CheckpointConfig.model_validate(values), attempt=0, parallel=ALONE)


@pytest.fixture
def session(desk: Desk) -> Session:
    return build_session(desk.config(*ROUGH), ALONE)


def test_what_changes_after_a_save_in_the_background_is_not_in_it(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = next(session.state.model.parameters())
    before = weight.detach().clone()
    may_write = threading.Event()
    write = safetensors.torch.save_file

    def patient(*arguments: object, **more: object) -> None:
        assert may_write.wait(60)
        write(*arguments, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(safetensors.torch, "save_file", patient)
    saver = saver_into(tmp_path / "checkpoints")
    saver.save(session.state)
    with torch.no_grad():
        weight.zero_()
    assert newest_complete(tmp_path / "checkpoints", lambda message: None) is None
    may_write.set()
    saver.wait()
    (saved,) = saver.reports()
    assert saved.problem is None
    assert saved.copy_size >= sum(tensor.nbytes for tensor in session.state.model.parameters())
    assert restore(saved.path, session.state, ALONE)[0].problem is None
    assert torch.equal(weight, before) and before.any()


def test_never_are_two_written_at_once(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = safetensors.torch.save_file
    writing: list[str] = []
    most = 0

    def counted(*arguments: object, **more: object) -> None:
        nonlocal most
        writing.append(threading.current_thread().name)
        most = max(most, len(writing))
        write(*arguments, **more)  # type: ignore[arg-type]
        writing.pop()

    monkeypatch.setattr(safetensors.torch, "save_file", counted)
    saver = saver_into(tmp_path / "checkpoints", keep_last=9)
    for step in range(1, 7):
        session.state.step = step
        saver.save(session.state)
    saver.wait()
    assert most == 1
    assert [saved.step for saved in saver.reports()] == [1, 2, 3, 4, 5, 6]


def test_the_best_is_kept_beside_the_newest(session: Session, tmp_path: Path) -> None:
    saver = saver_into(tmp_path / "checkpoints", keep_last=2)
    state = session.state
    for step, loss in enumerate([3.0, 2.0, 2.5, float("nan"), 2.0, 4.0], start=1):
        state.step = step
        assert state.evaluated(loss) == (step <= 2)
        saver.save(state)
    saver.wait()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["00000002", "00000005", "00000006"]
    state.best_loss, state.best_step = 0.0, None
    restore(tmp_path / "checkpoints" / "00000006", state, ALONE)
    assert (state.best_loss, state.best_step) == (2.0, 2)


@pytest.mark.parametrize("background", ["true", "false"])
def test_a_checkpoint_that_cannot_be_written_is_told_and_the_training_goes_on(
    desk: Desk, background: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write = safetensors.torch.save_file

    def full_disk_at_the_second(tensors: object, path: Path, **more: object) -> None:
        if "00000004" in str(path):
            raise OSError(28, "No space left on device")
        write(tensors, path, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk_at_the_second)
    trained = desk.train("steps=6", "checkpoint.every_steps=2", f"checkpoint.background={background}", *ROUGH)
    assert trained.outcome.reason == "all 6 steps"
    assert sorted(path.name for path in trained.place.checkpoints.iterdir()) == ["00000002", "00000006"]
    (failed,) = trained.run.events("checkpoint_failed")
    assert (failed.step, failed.fields["text"]) == (4, "OSError: [Errno 28] No space left on device")
    assert "step 4  the checkpoint could not be written, training goes on: OSError" in capsys.readouterr().out


def test_a_last_checkpoint_that_is_lost_is_in_the_reason_of_the_end(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*arguments: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    trained = desk.train("steps=2", *ROUGH)
    assert trained.outcome.reason == "all 2 steps, but its checkpoint could not be written"
    assert not list(trained.place.checkpoints.iterdir())


def newest(trained: Trained) -> Path:
    found = newest_complete(trained.place.checkpoints, lambda message: None)
    assert found is not None
    return found.path


def recommit(folder: Path) -> None:
    """Make COMMIT.json agree with the files again."""
    import hashlib

    commit = json.loads((folder / "COMMIT.json").read_text())
    for name in commit["files"]:
        content = (folder / name).read_bytes()
        commit["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "COMMIT.json").write_text(json.dumps(commit))
