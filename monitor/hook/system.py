"""The machine: process and host through psutil, device memory through torch's allocator, the device through NVML.

What cannot be read is absent, and the reason is said once; nothing is ever recorded as 0 because it could not be read.
Devices after the first carry their index: ``gpu_util_pct``, ``gpu_util_pct/1``. Why a device runs below its highest
clocks is a set of bits; the names of those that are set are told in an event, whenever the set changes. So is every
memory error that could not be corrected.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

import psutil
import torch

GIB = 1 / (1 << 30)
MOST_DEVICES = 16


THROTTLE_REASONS: dict[int, str] = {
    1 << 0: "idle", 1 << 1: "application clocks", 1 << 2: "software power cap", 1 << 3: "hardware slowdown",
    1 << 4: "sync boost", 1 << 5: "software thermal slowdown", 1 << 6: "hardware thermal slowdown",
    1 << 7: "hardware power brake", 1 << 8: "display clocks",
}  # fmt: skip
"""NVML's nvmlClocksEventReason* (nvmlClocksThrottleReason* in older drivers) by bit."""
_HARMFUL = sum(bit for bit, name in THROTTLE_REASONS.items() if "slowdown" in name or "brake" in name)
"""Reasons that are trouble of the machine: heat, and power that is not there. The others are settings and limits."""


class SystemWriter(Protocol):
    """The part of ``monitor.runfile.writer.RankWriter`` that samples go to."""

    def system(self, time: float, values: dict[str, float]) -> None: ...


class SystemSampler:
    """Takes one sample per call. Calls cost some 0.1 ms, most of it outside Python.

    Args:
        event: called with the kind and the fields of an event: a ``note`` once for each part of the machine that
            cannot be read, with the reason; ``throttle`` and ``ecc`` when these change.
    """

    def __init__(
        self, writer: SystemWriter, *, event: Callable[..., None], clock: Callable[[], float] = time.time
    ) -> None:
        self._writer = writer
        self._event = event
        self._clock = clock
        self._process = psutil.Process()
        self._process.cpu_percent()  # the first call only starts the measurement
        self._nvml: Nvml | None = None
        self._looked_for_nvml = False
        self._noted: set[str] = set()
        self._changes = Changes(event)

    def sample(self) -> None:
        memory = self._process.memory_info()
        values = {
            "cpu_pct": self._process.cpu_percent(),
            "rss_gib": memory.rss * GIB,
            "ram_used_pct": psutil.virtual_memory().percent,
        }
        if (shared := getattr(memory, "shared", None)) is not None:  # Linux
            values["rss_private_gib"] = (memory.rss - shared) * GIB
        values.update(allocator_values())
        values.update(self._device_values())
        self._writer.system(self._clock(), values)
        self._changes.look(values)

    def close(self) -> None:
        if self._nvml is not None:
            self._nvml.close()

    def _device_values(self) -> dict[str, float]:
        if not self._looked_for_nvml:
            self._looked_for_nvml = True
            try:
                self._nvml = Nvml()
            except NvmlAbsent as reason:
                self._say(str(reason))
        return self._nvml.read(self._say) if self._nvml is not None else {}

    def _say(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._event("note", text=text)


class Changes:
    """Tells when a device's throttle reasons or its uncorrected memory errors are no longer what they were."""

    def __init__(self, event: Callable[..., None]) -> None:
        self._event = event
        self._reasons: dict[int, int] = {}
        self._errors: dict[int, int] = {}

    def look(self, values: dict[str, float]) -> None:
        """Compare one sample with those before."""
        for device in range(MOST_DEVICES):
            reasons = values.get(_numbered("gpu_throttle_reasons", device))
            if reasons is not None and int(reasons) != self._reasons.get(device, 0):
                self._reasons[device] = int(reasons)
                self._tell_reasons(device, int(reasons))
            errors = values.get(_numbered("gpu_ecc_uncorrected", device))
            if errors is not None and int(errors) > self._errors.get(device, 0):
                self._errors[device] = int(errors)
                count = f"{int(errors)} memory error{'s' if errors > 1 else ''}"
                self._event("ecc", device=device, uncorrected=int(errors),
                            text=f"device {device} has had {count} that could not be corrected")  # fmt: skip

    def _tell_reasons(self, device: int, reasons: int) -> None:
        names = throttle_names(reasons)
        self._event(
            "throttle", device=device, bits=reasons, reasons=names, harmful=bool(reasons & _HARMFUL),
            text=f"device {device} " + (f"runs below its highest clocks: {', '.join(names)}" if names else
                                        "runs at its highest clocks again"),
        )  # fmt: skip


def throttle_names(bits: int) -> list[str]:
    """The reasons in ``bits``; one that is not known as its number."""
    known = [name for bit, name in THROTTLE_REASONS.items() if bits & bit]
    rest = bits & ~sum(THROTTLE_REASONS)
    return [*known, *([f"bits {rest:#x}"] if rest else [])]


def allocator_values() -> dict[str, float]:
    """Memory of torch's CUDA allocator per device; nothing when this process does not use CUDA.

    (``torch.cuda.memory_allocated()`` says 0 there, which would look like a measurement.)
    """
    if not torch.cuda.is_initialized():
        return {}
    values: dict[str, float] = {}
    for device in range(torch.cuda.device_count()):
        values[_numbered("gpu_memory_allocated_gib", device)] = torch.cuda.memory_allocated(device) * GIB
        values[_numbered("gpu_memory_reserved_gib", device)] = torch.cuda.memory_reserved(device) * GIB
        values[_numbered("gpu_memory_peak_gib", device)] = torch.cuda.max_memory_allocated(device) * GIB
    return values


class NvmlAbsent(Exception):
    """NVML cannot be used; the message is the reason to record."""


class Nvml:
    """The devices of this process as NVML sees them; all of the host's when the process does not use CUDA.

    Raises:
        NvmlAbsent: no library, no driver, no devices.
    """

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise NvmlAbsent(
                f"GPU utilisation, temperature and power are absent: {error}; install nvidia-ml-py"
            ) from None
        self._pynvml: Any = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NvmlAbsent(f"GPU utilisation, temperature and power are absent: NVML says {_words(error)}") from None
        try:
            self._handles = self._visible()
            self._of_torch = torch.cuda.is_initialized()
        except pynvml.NVMLError as error:
            self.close()
            raise NvmlAbsent(f"GPU utilisation, temperature and power are absent: NVML says {_words(error)}") from None
        if not self._handles:
            self.close()
            raise NvmlAbsent("GPU utilisation, temperature and power are absent: NVML lists no device")

    def read(self, say: Callable[[str], None]) -> dict[str, float]:
        """One sample; a quantity that a device does not give is left out and said."""
        nvml = self._pynvml
        readers: dict[str, Callable[[Any], float]] = {
            "gpu_util_pct": lambda handle: nvml.nvmlDeviceGetUtilizationRates(handle).gpu,
            "gpu_memory_used_gib": lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle).used * GIB,
            "gpu_temperature_c": lambda handle: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU),
            "gpu_power_w": lambda handle: nvml.nvmlDeviceGetPowerUsage(handle) * 1e-3,
            "gpu_sm_clock_mhz": lambda handle: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM),
            "gpu_memory_clock_mhz": lambda handle: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM),
            # By its old name, which old and new drivers have.
            "gpu_throttle_reasons": nvml.nvmlDeviceGetCurrentClocksThrottleReasons,
            "gpu_ecc_corrected": lambda handle: nvml.nvmlDeviceGetTotalEccErrors(
                handle, nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_VOLATILE_ECC
            ),
            "gpu_ecc_uncorrected": lambda handle: nvml.nvmlDeviceGetTotalEccErrors(
                handle, nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC
            ),
        }
        if torch.cuda.is_initialized() and not self._of_torch:
            # The process has begun to use CUDA: from now on its own devices, numbered as torch numbers them.
            self._of_torch = True
            try:
                self._handles = self._visible()
            except nvml.NVMLError as error:
                say(f"GPU values are those of all devices of the host: NVML says {_words(error)}")
        values: dict[str, float] = {}
        for device, handle in enumerate(self._handles):
            for name, read in readers.items():
                try:
                    values[_numbered(name, device)] = float(read(handle))
                except nvml.NVMLError as error:
                    say(f"{_numbered(name, device)} is absent: NVML says {_words(error)}")
        return values

    def close(self) -> None:
        try:
            self._pynvml.nvmlShutdown()
        except self._pynvml.NVMLError:
            return  # the driver went away; there is nothing left to shut down

    def _visible(self) -> list[Any]:
        nvml = self._pynvml
        count = min(nvml.nvmlDeviceGetCount(), MOST_DEVICES)
        if torch.cuda.is_initialized():
            # CUDA_VISIBLE_DEVICES renumbers devices for torch and not for NVML; the UUID is the same in both.
            ours = (torch.cuda.get_device_properties(i).uuid for i in range(torch.cuda.device_count()))
            return [nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}".encode()) for uuid in ours]
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]


def _words(error: Exception) -> str:
    return f"{type(error).__name__.removeprefix('NVMLError_')} ({error})"


def _numbered(name: str, device: int) -> str:
    return f"{name}/{device}" if device else name
