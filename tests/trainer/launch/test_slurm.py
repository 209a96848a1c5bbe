"""What is handed to Slurm and what is made of its absence; tests/engines has the same on a real cluster."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from monitor.errors import ConfigError, RunError
from tests.trainer.launch.conftest import Desk
from trainer.config import LaunchConfig, load_config, with_values
from trainer.config.sections import SBATCH_OPTIONS
from trainer.launch import JobState, command, engines, start, status, statuses, stop
from trainer.launch.engine import Handle, JobSpec
from trainer.launch.slurm import SlurmEngine, batch_script, sbatch_words

ODD = "/runs/a b$(touch x)'\"`id`%j;#\\"


def spec_in(run_dir: str, **more: object) -> JobSpec:
    return JobSpec(Path(run_dir), 3, ("--run-dir", run_dir), **more)  # type: ignore[arg-type]


def test_script_is_shell_and_holds_every_odd_word_as_one_word(tmp_path: Path) -> None:
    script = batch_script(spec_in(ODD), ["srun", ODD, "--set", "name=$(touch x)"])
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    (line,) = [one for one in script.splitlines() if one.startswith("run_dir=")]
    said = subprocess.run(["bash", "-c", f'{line}\nprintf %s "$run_dir"'], capture_output=True, text=True, cwd=tmp_path)
    assert said.stdout == ODD and not list(tmp_path.iterdir())
    (line,) = [one for one in script.splitlines() if one.lstrip().startswith("srun")]
    assert shlex.split(line) == ["srun", ODD, "--set", "name=$(touch x)", "&"]


def test_options_are_words_of_the_command_and_none_is_left_to_the_script() -> None:
    launch = LaunchConfig(
        engine="slurm", nodes=2, partition="gpu", account="lab", time_limit_min=90, save_before_s=60,
        options="gres=gpu:2 --exclusive constraint=a100|h100",
    )  # fmt: skip
    words = sbatch_words(spec_in("/runs/100%j"), launch, Path("/runs/100%j/job.sbatch"))
    assert "--output=/runs/100%%j/attempts/0003/rank-00000/log.txt" in words  # % means something to sbatch
    for word in ("--requeue", "--open-mode=append", "--signal=B:USR1@60", "--nodes=2", "--partition=gpu", "--time=90",
                 "--account=lab", "--gres=gpu:2", "--exclusive", "--constraint=a100|h100"):  # fmt: skip
        assert word in words
    assert "#SBATCH" not in batch_script(spec_in("/runs/x"), ["srun"])


@pytest.mark.parametrize(
    "value", ["wrap=id", "output=/etc/passwd", "export=ALL,LD_PRELOAD=x", "gres=$(id)", "mem=1G;id", "-p"]
)
def test_option_that_is_not_on_the_list_or_no_value_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"launch\.options"):
        load_config(None, [f"launch.options={value}"])


def test_no_option_on_the_list_names_a_file_or_a_command() -> None:
    dangerous = {
        "wrap",
        "output",
        "error",
        "input",
        "chdir",
        "export",
        "export-file",
        "prolog",
        "epilog",
        "bcast",
        "uid",
    }
    assert not dangerous & set(SBATCH_OPTIONS)


@pytest.mark.parametrize("field", ["partition", "account"])
def test_name_with_anything_for_a_shell_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"launch\.{field}"):
        load_config(None, [f"launch.{field}=a b"])


def test_processes_that_cannot_be_shared_out_to_the_nodes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"parallel\.processes = 3 .* launch\.nodes = 2; nearest that fits"):
        load_config(None, ["launch.engine=slurm", "launch.nodes=2", "parallel.processes=3", "batch_size=12"])
    with pytest.raises(
        ConfigError, match=r"launch\.engine = local starts all processes on one host, and launch\.nodes = 2"
    ):
        load_config(None, ["launch.nodes=2", "parallel.processes=2"])


def test_engine_that_is_not_here_is_refused_with_its_reason_and_leaves_no_run(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert engines()["local"] is None
    assert "sbatch is not on the PATH" in (engines()["slurm"] or "")
    with pytest.raises(RunError, match=r"launch\.engine = slurm: sbatch is not on the PATH.*Usable here: local"):
        start(with_values(desk.config, {"launch.engine": "slurm"}), desk.runs)
    assert not desk.runs.exists()


def test_command_to_copy_hands_over_to_the_engine(desk: Desk) -> None:
    words = command(with_values(desk.config, {"launch.engine": "slurm", "parallel.processes": 2}), "runs")
    assert words[:4] == ["gradiometer", "train", "--runs", "runs"] and "launch.engine=slurm" in words


def test_job_of_a_cluster_that_cannot_be_reached_from_here_is_not_lost(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A laptop that looks at a shared folder."""
    run_dir = desk.start("finishes")
    desk.until_ended(run_dir)
    folder = run_dir / "attempts" / "0000"
    folder.joinpath("launch.json").write_text('{"engine": "slurm", "time": 0, "grace_s": 30}')
    folder.joinpath("job.json").write_text('{"engine": "slurm", "job": "17", "time": 0}')
    assert status(run_dir).state is JobState.SUCCEEDED
    folder.joinpath("exit.json").unlink()
    monkeypatch.setenv("PATH", "/nowhere")
    (now,) = SlurmEngine().poll([Handle(run_dir, 0)])
    assert now.state is JobState.RUNNING and "Slurm does not answer: squeue: No such file" in now.reason
    with pytest.raises(RunError, match="Slurm does not answer"):
        stop(run_dir)
    folder.joinpath("job.json").unlink()
    assert status(run_dir).state is JobState.LOST
    assert not stop(run_dir).signalled


def test_several_runs_are_answered_in_their_order(desk: Desk) -> None:
    done, running = desk.start("finishes"), desk.start()
    desk.until_ended(done)
    desk.until_training(running)
    states = [one.state for one in statuses([running, done, running])]
    assert states == [JobState.RUNNING, JobState.SUCCEEDED, JobState.RUNNING]
    stop(running)
    desk.until_ended(running)


def test_each_rank_prints_into_its_own_log_where_the_launcher_asks_for_it(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys; from pathlib import Path; from trainer.rank_log import print_into\n"
        "print_into(); print('first'); subprocess.run(['echo', 'a child']); \n"
        "print_into(Path(sys.argv[1])); print('then'); print('err', file=sys.stderr)"
    )
    one, two = tmp_path / "0000", tmp_path / "0001"
    one.mkdir(), two.mkdir()
    environment = {"RANK": "1", "PYTHONPATH": str(Path.cwd()), "GRADIOMETER_RANK_LOGS": str(one)}
    words = [sys.executable, "-c", program, str(two)]
    subprocess.run(words, env=environment, check=True, capture_output=True)
    assert sorted((one / "rank-00001" / "log.txt").read_text().splitlines()) == ["a child", "first"]
    assert set((two / "rank-00001" / "log.txt").read_text().splitlines()) == {"then", "err"}
    assert len(open_log := list(tmp_path.rglob("log.txt"))) == 2, open_log
    (two / "rank-00001" / "log.txt").unlink()
    (two / "rank-00001" / "log.txt").symlink_to(tmp_path / "outside")
    subprocess.run(words, env=environment, check=True, capture_output=True)
    assert not (tmp_path / "outside").exists()
