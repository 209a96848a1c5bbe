"""Every trial of process control with real processes: the real supervisor over a stand-in trainer."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from monitor.errors import ConfigError, RunError
from monitor.runfile.reader import open_run
from monitor.runfile.store import run_state
from monitor.runfile.writer import create_run
from tests.trainer.launch.conftest import STAND_IN, Desk, processes_of, stand_in
from tests.waiting import until
from trainer.config import FaultConfig, TrainConfig, load_config, with_values
from trainer.launch import JobState, command, is_running, log_path, resume, resume_command, start, status, stop
from trainer.launch.engine import JobSpec
from trainer.launch.local import REPOSITORY, trainer_command
from trainer.launch.processes import Identity


def _record(run_dir: Path, name: str, attempt: int = 0) -> dict[str, Any]:
    return json.loads((run_dir / "attempts" / f"{attempt:04d}" / name).read_text())


def _trainer_pid(run_dir: Path) -> int:
    return until(lambda: _record_or_none(run_dir, "child_pid"), "a trainer process")


def _record_or_none(run_dir: Path, key: str) -> Any:
    path = run_dir / "attempts" / "0000" / "supervisor.json"
    return json.loads(path.read_text()).get(key) if path.exists() else None


def _together(count: int, act: Callable[[], object]) -> list[object]:
    """``act`` in ``count`` threads at the same moment; results and RunErrors."""
    barrier = threading.Barrier(count)

    def one() -> object:
        barrier.wait()
        try:
            return act()
        except RunError as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return [future.result() for future in [pool.submit(one) for _ in range(count)]]


# Start ----------------------------------------------------------------------------------------------------------------


def test_start_returns_a_run_that_is_seen_at_once_and_trains(desk: Desk) -> None:
    launched = desk.launch()
    assert is_running(launched.run_dir)
    assert open_run(launched.run_dir).config == desk.config.record()
    desk.until_training(launched.run_dir)
    now = status(launched.run_dir)
    assert (now.state, now.supervised, now.attempt) == (JobState.RUNNING, True, 0)
    assert _trainer_pid(launched.run_dir) in now.pids
    assert run_state(launched.run_dir).word == "running"
    stop(launched.run_dir)
    desk.until_ended(launched.run_dir)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT to the group"])
def test_training_survives_the_death_of_whoever_started_it(desk: Desk, how: str) -> None:
    program = (
        "import sys, time; from trainer.launch import start; from trainer.config import TrainConfig\n"
        f"launched = start(TrainConfig(steps=9999), {str(desk.runs)!r}, _command={stand_in('trains')!r})\n"
        "print(launched.run_dir, flush=True)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=REPOSITORY, text=True, start_new_session=True
    ) as page:
        assert page.stdout is not None
        run_dir = Path(page.stdout.readline().strip())
        desk.until_training(run_dir)
        before = status(run_dir)
        if how == "SIGINT to the group":
            os.killpg(page.pid, signal.SIGINT)  # Ctrl-C in the terminal of the page
        else:
            page.send_signal(getattr(signal, how))
        page.wait()
    seen = open_run(run_dir).last_step or 0
    until(lambda: (_heartbeat(run_dir) or 0) > seen + 5, "five more steps")
    after = status(run_dir)
    assert after.state is JobState.RUNNING and after.pids == before.pids
    stop(run_dir)
    desk.until_ended(run_dir)
    assert _record(run_dir, "exit.json")["outcome"] == "stopped"


def _heartbeat(run_dir: Path, attempt: int = 0) -> int | None:
    return _record(run_dir, "rank-00000/heartbeat.json", attempt)["step"]


def test_two_starts_of_the_same_run_make_one(desk: Desk) -> None:
    results = _together(6, lambda: desk.launch(run_id="twice"))
    refused = [result for result in results if isinstance(result, RunError)]
    assert len(refused) == 5 and all("exists already" in str(error) for error in refused)
    run_dir = desk.runs / "twice"
    desk.until_training(run_dir)
    assert len(list((run_dir / "attempts").iterdir())) == 1
    stop(run_dir)
    desk.until_ended(run_dir)


def test_trainer_gets_a_safe_environment_and_its_configuration_but_no_file_has_the_fault(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")  # as if the page itself had been started by torchrun
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("PYTHONPATH", f"relative{os.pathsep}")
    monkeypatch.setenv("GRADIOMETER_TRAIN_CONFIG", "{}")
    fault = FaultConfig(kind="grad_factor", step=7, factor=9876.5)
    config = with_values(desk.config, {"fault": [fault.model_dump()]})
    program = "import json, os, sys; print(json.dumps({'env': dict(os.environ), 'path': sys.path, 'cwd': os.getcwd()}))"
    run_dir = start(config, desk.runs, _command=[sys.executable, "-c", program]).run_dir
    desk.until_ended(run_dir)
    path = log_path(run_dir)
    assert path is not None
    seen = json.loads(path.read_text())
    environment = seen["env"]
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(REPOSITORY), str(Path("relative").absolute())]
    assert seen["cwd"] == str(run_dir) and str(run_dir) not in seen["path"] and "" not in seen["path"]
    assert environment["OMP_NUM_THREADS"] == "7" and environment["PYTHONUNBUFFERED"] == "1"
    assert "RANK" not in environment
    assert TrainConfig.model_validate_json(environment["GRADIOMETER_TRAIN_CONFIG"]).fault == [fault]
    path.unlink()  # it printed its environment
    files = [file for file in run_dir.rglob("*") if file.is_file()]
    assert files and not [file for file in files if "9876.5" in file.read_text() or "grad_factor" in file.read_text()]


def test_relative_data_path_is_made_absolute(desk: Desk) -> None:
    config = with_values(desk.config, {"task.data": "some/text"})
    run_dir = start(config, desk.runs, _command=stand_in("finishes")).run_dir
    desk.until_ended(run_dir)
    saved = open_run(run_dir).config
    assert saved is not None and saved["task"]["data"] == str(Path.cwd() / "some/text")


def test_command_that_cannot_be_started_is_a_crash_with_its_reason(desk: Desk) -> None:
    run_dir = start(desk.config, desk.runs, _command=["/nowhere/python"]).run_dir
    desk.until_ended(run_dir)
    assert status(run_dir).state is JobState.FAILED
    assert "could not be started" in _record(run_dir, "exit.json")["reason"]


def test_supervisor_that_cannot_start_is_a_crash_with_its_reason(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.launch.local.sys.executable", "/bin/false")
    run_dir = start(desk.config, desk.runs, _command=stand_in("trains")).run_dir
    until(lambda: status(run_dir).state is JobState.FAILED, "a recorded failure")
    assert "supervisor ended with return code 1" in status(run_dir).reason


# Stop and resume ------------------------------------------------------------------------------------------------------


def test_stop_saves_and_resume_goes_on_from_there(desk: Desk) -> None:
    run_dir = desk.start()
    desk.until_training(run_dir)
    result = stop(run_dir)
    assert result.signalled and result.pids
    desk.until_ended(run_dir)
    assert status(run_dir).state is JobState.CANCELLED
    assert run_state(run_dir).word == "stopped"
    saved = _record(run_dir, "exit.json")["step"]
    assert [point.step for point in open_run(run_dir).checkpoints() if point.complete] == [saved]
    assert _record(run_dir, "supervisor_exit.json")["asked"] is True

    again = desk.resume(run_dir)
    assert again.attempt == 1
    desk.until_training(run_dir)
    assert _record(run_dir, "attempt.json", 1)["resume_step"] == saved
    assert (_heartbeat(run_dir, 1) or 0) > saved
    stop(run_dir)
    desk.until_ended(run_dir)


def test_stopping_state_is_seen_until_the_trainer_has_ended(desk: Desk) -> None:
    run_dir = desk.start("deaf", grace_s=600)
    desk.until_training(run_dir)
    assert stop(run_dir).signalled
    until(lambda: status(run_dir).state is JobState.STOPPING, "the word stopping")
    assert stop(run_dir).signalled and is_running(run_dir)  # asked again: nothing changes
    os.kill(_trainer_pid(run_dir), signal.SIGKILL)
    desk.until_ended(run_dir)


def test_two_resumes_at_once_make_one_attempt(desk: Desk) -> None:
    run_dir = desk.start()
    desk.until_training(run_dir)
    stop(run_dir)
    desk.until_ended(run_dir)
    results = _together(6, lambda: desk.resume(run_dir))
    refused = [result for result in results if isinstance(result, RunError)]
    assert len(refused) == 5, results
    assert sorted(path.name for path in (run_dir / "attempts").iterdir()) == ["0000", "0001"]
    desk.until_training(run_dir)
    assert (
        len([one for one in processes_of(run_dir) if str(STAND_IN) in one.cmdline()]) == 1 + 1
    )  # supervisor names it too
    stop(run_dir)
    desk.until_ended(run_dir)


def test_two_processes_resuming_at_once_make_one_attempt(desk: Desk) -> None:
    run_dir = desk.start()
    desk.until_training(run_dir)
    stop(run_dir)
    desk.until_ended(run_dir)
    program = (
        "import sys; from trainer.launch import resume; from monitor.errors import RunError; sys.stdin.readline()\n"
        f"try: print('attempt', resume({str(run_dir)!r}, _command={stand_in('trains')!r}).attempt)\n"
        "except RunError as error: print('refused')"
    )
    pages = [
        subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, cwd=REPOSITORY, text=True)
        for _ in range(3)
    ]
    for page in pages:
        assert page.stdin is not None
        page.stdin.write("go\n")
        page.stdin.flush()
    assert sorted(page.communicate()[0].strip() for page in pages) == ["attempt 1", "refused", "refused"]
    stop(run_dir)
    desk.until_ended(run_dir)


def test_stop_right_after_start_is_not_lost(desk: Desk) -> None:
    """Before the supervisor has its handlers, before the trainer exists, before the trainer has its own."""
    run_dir = desk.start()
    assert stop(run_dir).signalled
    desk.until_ended(run_dir)
    assert _record(run_dir, "exit.json")["outcome"] == "stopped"
    assert run_state(run_dir).word == "stopped"


def test_stop_before_the_trainer_listens_is_said_so(desk: Desk) -> None:
    run_dir = start(desk.config, desk.runs, _command=[sys.executable, "-c", "import time; time.sleep(600)"]).run_dir
    _trainer_pid(run_dir)
    stop(run_dir)
    desk.until_ended(run_dir)
    ended = _record(run_dir, "exit.json")
    assert (ended["outcome"], ended["reason"], ended["signal"]) == ("stopped", "stopped before the first step", 15)


def test_stop_without_a_handler_after_some_steps_says_what_is_lost(desk: Desk) -> None:
    run_dir = desk.start("no-handler")
    until(lambda: (run_dir / "attempts/0000/rank-00000/heartbeat.json").exists(), "a step")
    stop(run_dir)
    desk.until_ended(run_dir)
    assert "without a last checkpoint" in _record(run_dir, "exit.json")["reason"]


def test_deaf_trainer_is_killed_after_the_grace_time(desk: Desk) -> None:
    run_dir = desk.start("deaf", grace_s=0.3)
    desk.until_training(run_dir)
    stop(run_dir)
    desk.until_ended(run_dir)
    ended = _record(run_dir, "exit.json")
    assert (ended["outcome"], ended["signal"]) == ("stopped", 9)
    assert ended["reason"].startswith("killed 0.3 s after it was asked to stop")


def test_stop_of_an_ended_run_does_nothing(desk: Desk) -> None:
    run_dir = desk.start("finishes")
    desk.until_ended(run_dir)
    assert status(run_dir).state is JobState.SUCCEEDED
    assert not stop(run_dir).signalled


def test_overrides_of_a_resume_reach_the_trainer_as_words_never_as_shell(desk: Desk) -> None:
    run_dir = desk.start()
    desk.until_training(run_dir)
    stop(run_dir)
    desk.until_ended(run_dir)
    arguments = ("--resume", str(run_dir), "--attempt", "1", "--set", "name=$(touch x); `id`")
    spec = JobSpec(run_dir, 1, arguments)
    assert trainer_command(spec)[-len(arguments) :] == arguments


def test_resume_refusals_say_what_to_do(desk: Desk) -> None:
    run_dir = desk.start()
    desk.until_training(run_dir)
    with pytest.raises(RunError, match=r"already running .*Stop it first"):
        resume(run_dir)
    stop(run_dir)
    desk.until_ended(run_dir)
    with pytest.raises(ConfigError, match=r"optimizer\.lr"):
        resume(run_dir, ["optimizer.lr=-1"])
    with pytest.raises(RunError, match=r"nothing is left to train.* Give more steps"):
        resume(run_dir, ["steps=1"])
    for point in (run_dir / "checkpoints").rglob("COMMIT.json"):
        point.unlink()
    with pytest.raises(RunError, match="no complete checkpoint"):
        resume(run_dir)
    with pytest.raises(RunError, match="not a run directory"):
        stop(desk.runs)
    assert [path.name for path in (run_dir / "attempts").iterdir()] == ["0000"]


# Crashes --------------------------------------------------------------------------------------------------------------


def test_exception_is_a_crash_with_its_traceback(desk: Desk) -> None:
    run_dir = desk.start("raises")
    desk.until_ended(run_dir)
    ended = _record(run_dir, "exit.json")
    assert (ended["outcome"], ended["returncode"], ended["signal"]) == ("crashed", 1, None)
    assert ended["reason"] == ended["traceback"][-1] == "ValueError: loss is a string"
    assert ended["traceback"][0] == "Traceback (most recent call last):"
    assert ended["step"] == 5
    assert status(run_dir).state is JobState.FAILED
    assert run_state(run_dir).word == "crashed"


def test_segmentation_fault_is_a_crash_with_its_signal_and_stack(desk: Desk) -> None:
    run_dir = desk.start("segfaults")
    desk.until_ended(run_dir)
    ended = _record(run_dir, "exit.json")
    assert (ended["outcome"], ended["signal"]) == ("crashed", 11)
    assert ended["reason"].startswith("killed by SIGSEGV")
    assert any("string_at" in line for line in ended["traceback"])


def test_killed_trainer_is_a_crash_with_its_signal(desk: Desk) -> None:
    run_dir = desk.start()
    desk.until_training(run_dir)
    os.kill(_trainer_pid(run_dir), signal.SIGKILL)
    desk.until_ended(run_dir)
    ended = _record(run_dir, "exit.json")
    assert (ended["outcome"], ended["signal"]) == ("crashed", 9)
    assert _record(run_dir, "supervisor_exit.json") | {"time": 0} == {
        "returncode": -9, "signal": 9, "asked": False, "killed": False, "trainer_said": False, "time": 0,
    }  # fmt: skip


def test_trainer_that_leaves_without_a_word_is_not_called_finished(desk: Desk) -> None:
    run_dir = desk.start("silent")
    desk.until_ended(run_dir)
    assert _record(run_dir, "exit.json")["outcome"] == "crashed"
    assert "return code 0" in _record(run_dir, "exit.json")["reason"]


def test_word_of_the_trainer_comes_first(desk: Desk) -> None:
    run_dir = desk.start("finishes")
    desk.until_ended(run_dir)
    assert _record(run_dir, "exit.json")["reason"] == "finished by the stand-in"
    assert _record(run_dir, "supervisor_exit.json")["trainer_said"] is True


# The supervisor itself ------------------------------------------------------------------------------------------------


def _kill_supervisor(run_dir: Path) -> None:
    _trainer_pid(run_dir)
    supervisor = _record(run_dir, "supervisor.json")["pid"]
    os.kill(supervisor, signal.SIGKILL)
    until(lambda: not status(run_dir).supervised, "the supervisor's death")


def test_training_without_its_supervisor_is_seen_and_stopped(desk: Desk) -> None:
    run_dir = desk.start()
    desk.until_training(run_dir)
    _kill_supervisor(run_dir)
    now = status(run_dir)
    assert now.state is JobState.RUNNING and "supervisor is gone" in now.reason
    with pytest.raises(RunError, match="already running"):
        resume(run_dir)
    assert stop(run_dir).signalled
    desk.until_ended(run_dir)
    assert _record(run_dir, "exit.json")["reason"] == "stopped by the stand-in"


def test_deaf_training_without_its_supervisor_is_killed_after_the_grace_time(desk: Desk) -> None:
    run_dir = desk.start("deaf")
    desk.until_training(run_dir)
    _kill_supervisor(run_dir)
    stop(run_dir, grace_s=0.3)
    desk.until_ended(run_dir)
    assert _record(run_dir, "exit.json")["reason"].startswith("killed 0.3 s after it was asked to stop")


def test_training_started_in_a_terminal_is_seen_and_stopped(desk: Desk) -> None:
    run_dir = create_run(desk.runs, name="terminal", config=desk.config.record())
    (run_dir / "attempts" / "0000" / "rank-00000").mkdir(parents=True)
    with subprocess.Popen(stand_in("trains"), cwd=run_dir, stdout=subprocess.DEVNULL) as trainer:
        until((run_dir / "attempts/0000/rank-00000/heartbeat.json").exists, "a step")
        assert status(run_dir).pids == (trainer.pid,)
        assert stop(run_dir).pids == (trainer.pid,)  # this process is of the same group and lives on
        assert trainer.wait() == 0
    desk.until_ended(run_dir)
    assert _record(run_dir, "exit.json")["outcome"] == "stopped"


def test_both_killed_is_lost_and_can_be_resumed(desk: Desk) -> None:
    run_dir = desk.start()
    desk.until_training(run_dir)
    trainer = _trainer_pid(run_dir)
    _kill_supervisor(run_dir)
    os.kill(trainer, signal.SIGKILL)
    until(lambda: status(run_dir).state is JobState.LOST, "the word lost")
    assert not stop(run_dir).signalled
    with pytest.raises(RunError, match="no complete checkpoint"):
        resume(run_dir)


def test_reused_pid_is_never_signalled(desk: Desk) -> None:
    run_dir = desk.start("finishes")
    desk.until_ended(run_dir)
    folder = run_dir / "attempts" / "0000"
    (folder / "exit.json").unlink()
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as stranger:
        born = psutil.Process(stranger.pid).create_time()
        reused = {
            "pid": stranger.pid,
            "pid_create_time": born - 30,
            "child_pid": stranger.pid,
            "child_create_time": born - 30,
        }
        (folder / "supervisor.json").write_text(json.dumps(reused))
        attempt = _record(run_dir, "attempt.json") | {"pid": stranger.pid, "pid_create_time": born - 30}
        (folder / "attempt.json").write_text(json.dumps(attempt))
        assert status(run_dir).state is JobState.LOST
        assert not stop(run_dir).signalled
        assert stranger.poll() is None
        stranger.kill()


def test_process_on_another_host_is_never_signalled(desk: Desk) -> None:
    run_dir = desk.start()
    desk.until_training(run_dir)
    path = run_dir / "attempts" / "0000" / "launch.json"
    here = path.read_text()
    path.write_text(json.dumps(json.loads(here) | {"host": "node-17"}))
    with pytest.raises(RunError, match="runs on host node-17"):
        stop(run_dir)
    assert "node-17" in status(run_dir).reason
    path.write_text(here)
    stop(run_dir)
    desk.until_ended(run_dir)


@pytest.mark.parametrize("record", ["{", "[]", '{"pid": "all", "grace_s": "soon", "time": null}', "\x00" * 100])
def test_broken_records_are_no_processes(desk: Desk, record: str) -> None:
    run_dir = desk.start("finishes")
    desk.until_ended(run_dir)
    for name in ("launch.json", "supervisor.json", "attempt.json", "exit.json"):
        (run_dir / "attempts" / "0000" / name).write_text(record)
    assert status(run_dir).state is JobState.LOST
    assert not stop(run_dir).signalled


def test_supervisor_outlives_a_run_directory_that_is_taken_away(desk: Desk) -> None:
    """Or a full disk: it cannot record anything any more, and still ends the trainer."""
    run_dir = desk.start("deaf", grace_s=0.3)
    desk.until_training(run_dir)
    supervisor, trainer = Identity.of(_record(run_dir, "supervisor.json")["pid"]), Identity.of(_trainer_pid(run_dir))
    run_dir.rename(run_dir.with_name("taken-away"))
    os.kill(supervisor.pid, signal.SIGTERM)
    until(lambda: not supervisor.alive and not trainer.alive, "the end of both")


def test_what_a_trainer_leaves_running_is_swept_up(desk: Desk) -> None:
    run_dir = desk.start("leaves-orphan")
    path = until(lambda: log_path(run_dir), "a log")
    line = until(
        lambda: [one for one in path.read_text().splitlines() if one.startswith("orphan")], "the orphan's pid"
    )[0]
    desk.until_ended(run_dir)
    assert not Identity(int(line.split()[1]), 0.0).alive and not psutil.pid_exists(int(line.split()[1]))


def test_launches_in_a_row_leave_no_process_and_no_zombie(desk: Desk) -> None:
    """GRADIOMETER_LAUNCHES=20 for more of them."""
    for _ in range(int(os.environ.get("GRADIOMETER_LAUNCHES", "5"))):
        run_dir = desk.start()
        desk.until_training(run_dir)
        stop(run_dir)
        desk.until_ended(run_dir)
    assert processes_of(desk.runs) == []
    until(lambda: not _zombies_below_us(), "no zombie")


def _zombies_below_us() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.status() == psutil.STATUS_ZOMBIE]


def test_supervisor_is_light() -> None:
    program = (
        "import trainer.launch.supervise, sys\n"
        "heavy = ('torch', 'pandas', 'numpy', 'pyarrow', 'pydantic', 'monitor')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    seen = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "[]"


# Commands to show -----------------------------------------------------------------------------------------------------


def test_command_to_copy_gives_the_same_configuration() -> None:
    config = TrainConfig.model_validate({"steps": 77, "optimizer": {"lr": 3e-4}, "evaluation": {"every_steps": None}})
    words = command(config, "my runs", "first")
    assert words[:7] == ["python", "-m", "trainer", "--runs", "my runs", "--name", "first"]
    overrides = [value for flag, value in zip(words[7::2], words[8::2], strict=True) if flag == "--set"]
    assert load_config(None, overrides) == config


def test_command_for_several_processes_is_torchrun() -> None:
    config = TrainConfig.model_validate({"parallel": {"processes": 2}})
    assert command(config, "runs")[:6] == ["torchrun", "--standalone", "--nproc-per-node", "2", "-m", "trainer"]
    spec = JobSpec(Path("/runs/x"), 0, ("--run-dir", "/runs/x"), world_size=2, grace_s=45)
    words = " ".join(trainer_command(spec))
    assert "-m torch.distributed.run --standalone --local-addr 127.0.0.1 --nproc-per-node 2" in words
    assert "--max-restarts 0 --shutdown-timeout 45" in words
    assert words.endswith("-m trainer --run-dir /runs/x")


def test_command_to_resume() -> None:
    expected = ["python", "-m", "trainer", "--resume", "runs/x", "--set", "steps=9"]
    assert resume_command("runs/x", ["steps=9"]) == expected
