"""A task of the user's own: found, checked, trained from a terminal, and never run because a run directory says so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.errors import ConfigError
from monitor.runfile.reader import open_run
from tests.test_readme import ROOT, blocks
from trainer import loop
from trainer.config import load_config
from trainer.launch import resume
from trainer.place import resumed_run
from trainer.stop import StopFlag
from trainer.tasks import build_task

(EXAMPLE,) = (block for block in blocks("python") if "(Task)" in block)


def train(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trainer", "--set", "threads=1", *words]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)


def test_example_of_the_readme_trains_and_is_resumed_by_name_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_tasks.py").write_text(EXAMPLE)
    done = train(tmp_path, "--task", "my_tasks:build", "--steps", "200", "--set", "schedule.warmup_steps=5")
    assert done.returncode == 0, done.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    run = open_run(run_dir)
    loss = run.series("train_loss").value
    assert len(loss) == 200 and loss[-5:].mean() < 0.8 * loss[:5].mean()
    assert run.series("tokens").value[-1] == 200 * 16
    assert run.series("val_loss").step.tolist() == [200]

    for refused in (
        lambda: resumed_run(run_dir, ["steps=205"], lambda message: None),
        lambda: resume(run_dir, ["steps=205"]),
    ):
        with pytest.raises(ConfigError, match=r"Name it yourself to go on: --set task\.kind=my_tasks:build$"):
            refused()
    assert len(open_run(run_dir).attempts) == 1
    monkeypatch.syspath_prepend(tmp_path)
    config, place = resumed_run(run_dir, ["task.kind=my_tasks:build", "steps=205"], lambda message: None)
    loop.train(config, place, StopFlag())
    assert open_run(run_dir).last_step == 205


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("none_such.there:build", "", "there is no module none_such. Looked in "),
        ("{module}.inner:build", "", "there is no module {module}.inner. Looked in "),
        ("{module}:build", "def made(config): ...", "has no function build. It has: made."),
        ("{module}:build", "build = 3", "has no function build. It has: none."),
        (
            "{module}:build",
            "def build(config): return 7",
            "the function gave back a int; it must give back an object of",
        ),
        ("{module}:build", "{task}", "Mine has no attribute val_size. A task needs name, train_size, val_size"),
        ("{module}:build", "{task}\n    val_size = 0", "Mine.val_size is 0; it must be a whole number, 1 or more."),
    ],
    ids=["module", "submodule", "function", "no function", "type", "attribute", "size"],
)
def test_what_is_wrong_is_said_in_one_message(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    kind: str,
    source: str,
    message: str,
) -> None:
    module = "own_" + re.sub(r"\W", "_", request.node.callspec.id)
    task = (
        "from trainer.tasks import Task\n"
        "def build(config): return Mine()\n"
        "class Mine(Task):\n"
        "    name, train_size = 'mine', 3\n"
        "    build_model = train_batch = val_batch = loss = None"
    )
    (tmp_path / f"{module}.py").write_text(source.replace("{task}", task))
    monkeypatch.syspath_prepend(tmp_path)
    kind = kind.replace("{module}", module)
    with pytest.raises(ConfigError) as caught:
        build_task(load_config(None, [f"task.kind={kind}"]))
    assert str(caught.value).startswith(f"task.kind = {kind}: ")
    assert message.replace("{module}", module) in str(caught.value)


def test_an_import_that_fails_within_the_module_keeps_its_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_broken.py").write_text("import none_such_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="none_such_at_all"):
        build_task(load_config(None, ["task.kind=own_broken:build"]))


@pytest.mark.parametrize("kind", ["gtp", "a b:c", "module:", ":build", "../x:build", "m:build:x", "os.path"])
def test_other_words_are_refused_by_the_configuration(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown\..*Choose from: gpt, charmlp, mlp, cnn, package\.module:build\."):
        load_config(None, [f"task.kind={kind}"])
