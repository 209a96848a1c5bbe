"""Real engines on this machine: a Slurm cluster, a Ray head, two hosts. `make engines` sets up and runs all of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engines.cluster import Cluster
from tests.engines.ray_head import RayHead
from tests.engines.set_up import WANTED
from tests.trainer.launch.conftest import Desk, processes_of
from tests.waiting import until
from trainer.launch.launcher import ENGINES
from trainer.launch.slurm import _Queue

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Elsewhere than in `make engines` nobody has looked whether Slurm, Ray and network namespaces are to be had."""
    if os.environ.get(WANTED):
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="needs Slurm, Ray and root: `make engines` runs it"))


@pytest.fixture(scope="session")
def whole_cluster() -> Iterator[Cluster]:
    running = Cluster()
    try:
        running.start()
        yield running
    finally:
        left = running.stop()
    assert left == []


@pytest.fixture
def cluster(whole_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Two idle nodes, and an engine that asks squeue more often than a real cluster should be asked."""
    monkeypatch.setattr(ENGINES["slurm"], "_queue", _Queue(0.2))
    yield whole_cluster
    whole_cluster.end_jobs()


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    running = RayHead()
    try:
        running.start()
        yield running
    finally:
        left = running.stop()
    assert left == []


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    yield Desk(tmp_path / "runs")
    # a run has ended when its record says so; what is below it needs a moment more
    until(lambda: not processes_of(tmp_path), "the end of all processes")
