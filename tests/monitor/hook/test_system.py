"""The machine: what can be read is right, what cannot be read is absent and said once. NVML through a stub library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from monitor.hook.system import THROTTLE_REASONS, SystemSampler, allocator_values
from monitor.signals import CATALOGUE

ROOT = Path(__file__).parents[3]
STUB = Path(__file__).with_name("nvml_stub.c")


class Collected:
    def __init__(self):
        self.samples = []

    def system(self, time, values):
        self.samples.append((time, dict(values)))


def test_process_and_host():
    collected, notes = Collected(), []
    sampler = SystemSampler(collected, event=lambda kind, **fields: notes.append(kind), clock=lambda: 12.5)
    ballast = bytearray(os.urandom(1 << 20) * 200)
    sampler.sample()
    sampler.close()
    ((time, values),) = collected.samples
    assert time == 12.5
    assert values["rss_gib"] == pytest.approx(psutil.Process().memory_info().rss / 2**30, rel=0.2)
    assert values["rss_gib"] > len(ballast) / 2**30


@pytest.mark.skipif(not hasattr(psutil.Process().memory_info(), "shared"), reason="this system does not tell")
def test_a_mapped_file_is_not_memory_of_its_own(tmp_path):
    file, collected = tmp_path / "data", Collected()
    file.write_bytes(bytes(200 << 20))
    sampler = SystemSampler(collected, event=lambda kind, **fields: None)
    sampler.sample()
    mapped = np.memmap(file, np.uint8, "r")
    assert mapped.sum() == 0
    sampler.sample()
    (_, before), (_, after) = collected.samples
    assert after["rss_gib"] - before["rss_gib"] > 0.9 * 200 / 1024
    assert abs(after["rss_private_gib"] - before["rss_private_gib"]) < 0.1 * 200 / 1024


def test_of_the_host():
    collected = Collected()
    SystemSampler(collected, event=lambda kind, **fields: None).sample()
    ((_, values),) = collected.samples
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
sampler = SystemSampler(Writer(), event=lambda kind, **fields: notes.append({"kind": kind, **fields}))
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


_NAMES = {
    "gpu_util_pct", "gpu_memory_used_gib", "gpu_temperature_c", "gpu_power_w", "gpu_sm_clock_mhz",
    "gpu_memory_clock_mhz", "gpu_throttle_reasons", "gpu_ecc_corrected", "gpu_ecc_uncorrected",
}  # fmt: skip
_ALL_THERE = {"STUB_DEVICES": 1, "STUB_THROTTLE": 0, "STUB_CORRECTED": 0, "STUB_UNCORRECTED": 0}


def test_nvml_values(stub):
    lists = {"STUB_THROTTLE": 0, "STUB_CORRECTED": 5, "STUB_UNCORRECTED": 0}
    samples, notes = _sampled(stub["new"], STUB_DEVICES=2, **lists)
    assert notes == []
    same = {
        "gpu_power_w": 150.5, "gpu_sm_clock_mhz": 1410.0, "gpu_memory_clock_mhz": 1593.0, "gpu_throttle_reasons": 0.0,
        "gpu_ecc_corrected": 5.0, "gpu_ecc_uncorrected": 0.0,
    }  # fmt: skip
    first = {"gpu_util_pct": 40.0, "gpu_memory_used_gib": 1.0, "gpu_temperature_c": 60.0, **same}
    second = {"gpu_util_pct": 41.0, "gpu_memory_used_gib": 2.0, "gpu_temperature_c": 61.0, **same}
    assert _gpu(samples[-1]) == first | {f"{name}/1": value for name, value in second.items()}
    assert set(first) == _NAMES <= CATALOGUE.keys()


@pytest.mark.parametrize(
    ("which", "environ", "missing", "words"),
    [
        ("new", {**_ALL_THERE, "STUB_LOST": 15}, {"gpu_util_pct"}, {"GpuIsLost"}),
        ("new", {**_ALL_THERE, "STUB_THROTTLE": -15}, {"gpu_throttle_reasons"}, {"GpuIsLost"}),
        ("old", _ALL_THERE, {"gpu_power_w", "gpu_throttle_reasons"}, {"gpu_power_w", "FunctionNotFound"}),
        # A device without ECC memory, as those for desktops.
        (
            "new",
            {"STUB_DEVICES": 1, "STUB_THROTTLE": 0},
            {"gpu_ecc_corrected", "gpu_ecc_uncorrected"},
            {"NotSupported"},
        ),
        ("new", {"STUB_DEVICES": 1, "STUB_INIT": 9}, _NAMES, {"DriverNotLoaded"}),
        ("new", {"STUB_DEVICES": 0}, _NAMES, {"no device"}),
    ],
)
def test_what_nvml_does_not_give_is_absent_and_said_once(stub, which, environ, missing, words):
    samples, notes = _sampled(stub[which], **environ)
    assert set(_gpu(samples[-1])) == _NAMES - missing
    assert all("rss_gib" in sample for sample in samples)
    assert len(notes) == (1 if missing == _NAMES else len(missing))  # of three samples
    assert all(note["kind"] == "note" and "absent" in note["text"] for note in notes)
    assert all(any(word in note["text"] for note in notes) for word in words)


def test_throttling_and_lost_memory_are_events_when_they_change(stub):
    environ = {"STUB_THROTTLE": f"1,{1 | 64 | 1 << 20},0", "STUB_UNCORRECTED": "0,2,2"}
    samples, events = _sampled(stub["new"], **{**_ALL_THERE, **environ})
    assert [sample["gpu_throttle_reasons"] for sample in samples] == [1, 65 + (1 << 20), 0]
    told = [(event["kind"], event.get("reasons"), event.get("harmful"), event.get("uncorrected")) for event in events]
    assert told == [
        ("throttle", ["idle"], False, None),
        ("throttle", ["idle", "hardware thermal slowdown", "bits 0x100000"], True, None),
        ("ecc", None, None, 2),
        ("throttle", [], False, None),
    ]
    assert "could not be corrected" in events[2]["text"]


def test_throttle_reasons_are_those_of_the_driver_s_binding():
    pynvml = pytest.importorskip("pynvml")
    named = {
        getattr(pynvml, name): name.removeprefix("nvmlClocksEventReason").lower()
        for name in dir(pynvml)
        if name.startswith("nvmlClocksEventReason") and not name.endswith(("All", "None"))
    }
    assert named.keys() == THROTTLE_REASONS.keys()
    for bit, ours in THROTTLE_REASONS.items():
        assert ours.split()[-1].rstrip("s") in named[bit]  # our last word is in NVML's own
