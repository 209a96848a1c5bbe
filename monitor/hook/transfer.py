"""Values on their way from the device to the host, without making the training wait for them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

_HALF = frozenset((torch.bfloat16, torch.float16))


class HostRead:
    """A few small tensors, read when they have arrived.

    Tensors on the CPU are there at once and keep their precision. Tensors on CUDA are packed into one float32 vector
    and copied into pinned memory behind the kernels that make them; an event tells when. Other devices have no such
    copy that is portable: their vector stays on the device until it is asked for.
    """

    __slots__ = ("_arrays", "_event", "_host", "_packed", "_polls", "_shapes")

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._polls = 0
        self._arrays: list[np.ndarray] | None = None
        self._event: torch.cuda.Event | None = None
        self._packed: torch.Tensor | None = None
        device = next((tensor.device for tensor in tensors if tensor.get_device() >= 0), None)
        if device is None:
            self._arrays = [_as_numpy(tensor) for tensor in tensors]
            return
        self._shapes = [tuple(tensor.shape) for tensor in tensors]
        # One kernel (cat) and one copy, whatever the number of tensors. Nothing here waits for the device.
        packed = torch.cat([t.detach().reshape(-1).to(device, torch.float32, non_blocking=True) for t in tensors])
        self._packed = packed
        if device.type == "cuda":
            self._host = torch.empty(packed.shape, dtype=torch.float32, pin_memory=True)
            self._host.copy_(packed, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(device))

    def ready(self) -> bool:
        """Whether ``arrays`` would return without waiting for the device."""
        if self._arrays is not None:
            return True
        if self._event is not None:
            return self._event.query()
        self._polls += 1
        return self._polls > 2  # no event to ask: by then the next step has begun, and the kernels have long run

    def arrays(self) -> list[np.ndarray]:
        """One array per tensor given, in that order. Synchronises with the device when not ``ready``."""
        if self._arrays is None:
            if self._event is not None:
                self._event.synchronize()  # SYNC: only at the end of a run, or when two steps outran the copy
                flat = self._host.numpy()
            else:
                assert self._packed is not None
                flat = self._packed.cpu().numpy()  # SYNC: devices without pinned memory; asked for a step later
            self._arrays = _split(flat, self._shapes)
            self._packed = None
        return self._arrays


def _as_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype in _HALF:  # NumPy has no bfloat16
        tensor = tensor.float()
    return tensor.detach().numpy() if tensor.requires_grad else tensor.numpy()


def _split(flat: np.ndarray, shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    pieces, start = [], 0
    for shape in shapes:
        size = int(np.prod(shape))
        pieces.append(flat[start : start + size].reshape(shape))
        start += size
    return pieces
