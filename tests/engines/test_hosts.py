"""One training on two hosts, started by hand: they meet, one is lost and comes back, and the meeting place is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from monitor.runfile.reader import Run, open_run
from tests.engines.hosts import ROOT, Hosts, kill_host, left_of
from tests.engines.runs import record
from tests.trainer.conftest import TINY
from tests.waiting import until

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    two = Hosts()
    try:
        two.start()
        yield two
    finally:
        two.stop()


def readme_options() -> list[str]:
    """What the README gives to both hosts alike; its address is that of our host 0."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line.split() for line in readme.splitlines() if line.startswith("python -m trainer.host")]
    first, second = (line[3 : line.index("--host")] for line in lines)
    assert first == second
    return first


def newest(runs: Path) -> Run | None:
    found = [path for path in runs.glob("*") if (path / "run.json").exists()]
    return open_run(found[0]) if found else None


def until_attempt(runs: Path, number: int, world_size: int, beyond: int) -> Run:
    """Attempt ``number`` of the only run there is trains on so many processes and has passed that step."""

    def look() -> Run | None:
        run = newest(runs)
        if run is None or len(run.attempts) <= number or (run.last_step or 0) <= beyond:
            return None
        return run if run.attempts[number].world_size == world_size else None

    run = until(look, f"attempt {number} on {world_size} processes beyond step {beyond}")
    assert run is not None
    return run


def test_host_that_dies_is_done_without_and_joins_again(hosts: Hosts, tmp_path: Path) -> None:
    runs, logs = tmp_path / "runs", [tmp_path / "host0.txt", tmp_path / "host1.txt"]
    values = [*TINY, "steps=100000", "batch_size=4", "checkpoint.every_steps=10", "evaluation.every_steps=none"]
    values += ["checkpoint.background=false", "parallel.timeout_s=20", "task.max_data_mib=0.5"]
    words = ["--runs", str(runs), *(word for value in values for word in ("--set", value))]
    options = [*readme_options(), "--dead-after-s", "6"]
    agents = [hosts.train(host, logs[host], options, words) for host in (0, 1)]
    try:
        # the first comers wait 3 s for others: on a busy machine the second may join a moment later, as attempt 1
        run = until(lambda: newest(runs) if (newest(runs) and (newest(runs).last_step or 0) > 12) else None, "training")
        if run.attempts[-1].world_size == 1:
            run = until_attempt(runs, len(run.attempts), 2, 12)
        first = len(run.attempts) - 1
        assert run.attempts[first].world_size == 2

        kill_host(agents[1])
        saved = max(point.step for point in run.checkpoints() if point.complete)
        run = until_attempt(runs, first + 1, 1, saved + 5)
        assert run.attempts[first + 1].resume_step >= saved
        assert "going on as attempt" in logs[0].read_text()

        agents[1] = hosts.train(1, logs[1], options, words)
        run = until_attempt(runs, first + 2, 2, run.last_step or 0)
        assert run.attempts[first + 2].resume_step >= saved

        kill_host(agents[0])  # where the hosts meet: nothing can go on
        assert agents[1].wait(200) != 0
        said = logs[1].read_text()
        assert f"error: host 1 has lost host 0 at {hosts.addresses[0]}:29400" in said, said[-3000:]
        assert "same --id mine it goes on" in said

        saved = max(point.step for point in open_run(run.path).checkpoints() if point.complete)
        agents = [hosts.train(host, logs[host], options, words) for host in (0, 1)]  # as the message says
        run = until_attempt(runs, first + 3, 2, saved + 5)
        assert run.attempts[first + 3].resume_step == saved

        for agent in agents:
            agent.terminate()
        assert [agent.wait(200) for agent in agents] == [0, 0]
        ended = record(run.path, "exit.json", first + 3)
        assert (ended["outcome"], ended["reason"]) == ("stopped", "asked to stop by SIGTERM"), ended
    finally:
        for agent in agents:
            if agent.poll() is None:
                kill_host(agent)
    assert left_of(tmp_path) == []
