"""The machine: what can be read is right, what cannot be read is absent and said once. NVML through a stub library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from monitor.hook.system import SystemSampler, allocator_values

ROOT = Path(__file__).parents[3]
STUB = Path(__file__).with_name("nvml_stub.c")


class Collected:
    def __init__(self):
        self.samples = []

    def system(self, time, values):
        self.samples.append((time, dict(values)))


def test_process_and_host():
    collected, notes = Collected(), []
    sampler = SystemSampler(collected, note=notes.append, clock=lambda: 12.5)
    ballast = bytearray(os.urandom(1 << 20) * 200)
    sampler.sample()
    sampler.close()
    ((time, values),) = collected.samples
    assert time == 12.5
    assert values["rss_gib"] == pytest.approx(psutil.Process().memory_info().rss / 2**30, rel=0.2)
    assert values["rss_gib"] > len(ballast) / 2**30
    assert 0 < values["ram_used_pct"] <= 100
    assert values["cpu_pct"] >= 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")
def test_without_cuda_its_memory_is_absent_not_zero():
    assert allocator_values() == {}


_SAMPLE = """
import json
from monitor.hook.system import SystemSampler
samples, notes = [], []
class Writer:
    def system(self, time, values):
        samples.append(values)
sampler = SystemSampler(Writer(), note=notes.append)
for _ in range(3):
    sampler.sample()
sampler.close()
print(json.dumps([samples, notes]))
"""


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    """Folders with the stub as libnvidia-ml.so.1: the present one and one without power readings."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    folders = {}
    for name, flags in (("new", []), ("old", ["-DOLD_DRIVER"])):
        folder = tmp_path_factory.mktemp(name)
        target = folder / "libnvidia-ml.so.1"
        command = [compiler, "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", *flags, "-o", str(target), str(STUB)]
        subprocess.run(command, check=True, timeout=60)
        folders[name] = folder
    return folders


def _sampled(folder, **environ):
    done = subprocess.run(
        [sys.executable, "-c", _SAMPLE], cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "LD_LIBRARY_PATH": str(folder), **{key: str(value) for key, value in environ.items()}},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _gpu(values):
    return {name: value for name, value in values.items() if name.startswith("gpu")}


def test_nvml_values(stub):
    samples, notes = _sampled(stub["new"], STUB_DEVICES=2)
    assert notes == []
    assert _gpu(samples[-1]) == {
        "gpu_util_pct": 40.0, "gpu_memory_used_gib": 1.0, "gpu_temperature_c": 60.0, "gpu_power_w": 150.5,
        "gpu_util_pct/1": 41.0, "gpu_memory_used_gib/1": 2.0, "gpu_temperature_c/1": 61.0, "gpu_power_w/1": 150.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("which", "environ", "missing", "words"),
    [
        ("new", {"STUB_DEVICES": 1, "STUB_LOST": 15}, {"gpu_util_pct"}, "GpuIsLost"),
        ("old", {"STUB_DEVICES": 1}, {"gpu_power_w"}, "FunctionNotFound"),
        ("new", {"STUB_DEVICES": 1, "STUB_INIT": 9}, None, "DriverNotLoaded"),
        ("new", {"STUB_DEVICES": 0}, None, "no device"),
    ],
)
def test_what_nvml_does_not_give_is_absent_and_said_once(stub, which, environ, missing, words):
    samples, notes = _sampled(stub[which], **environ)
    names = {"gpu_util_pct", "gpu_memory_used_gib", "gpu_temperature_c", "gpu_power_w"}
    assert set(_gpu(samples[-1])) == (set() if missing is None else names - missing)
    assert all("rss_gib" in sample for sample in samples)
    (note,) = notes
    assert words in note
    assert "absent" in note
