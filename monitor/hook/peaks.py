"""How many operations a second a GPU can do at most, where its maker says so.

Dense matrix products (no sparsity), one device, after NVIDIA's data sheets; where a sheet gives figures with sparsity
only they are halved. They were compared with published tables of these figures; devices and precisions for which
none was found, or on which tables differ (B200, H100 NVL, GeForce, some of A30's and H200's), are left out. A device
that is not here has no known peak: ``attach(peak_flops=...)`` tells it, and takes the place of a figure from here.
"""

from __future__ import annotations

import re

_TERA = 1e12

_PEAKS: tuple[tuple[str, dict[str, float]], ...] = (
    # pattern in torch's name of the device, TFLOP/s by precision; the first that fits counts
    (r"\bH200\b", {"bfloat16": 989, "float16": 989, "tf32": 494}),
    (r"\bH100\b.*\bNVL\b", {}),
    (r"\bH100\b.*\bPCIe\b", {"bfloat16": 756, "float16": 756, "tf32": 378, "float32": 51}),
    (r"\bH100\b", {"bfloat16": 989, "float16": 989, "tf32": 494, "float32": 67}),
    (r"\bA100\b", {"bfloat16": 312, "float16": 312, "tf32": 156, "float32": 19.5}),
    (r"\bA30\b", {"bfloat16": 165, "float16": 165}),
    (r"\bA40\b", {"bfloat16": 149.7, "float16": 149.7, "tf32": 74.8, "float32": 37.4}),
    (r"\bA10\b", {"bfloat16": 125, "float16": 125, "tf32": 62.5, "float32": 31.2}),
    (r"\bL40S\b", {"bfloat16": 362, "float16": 362, "tf32": 183, "float32": 91.6}),
    (r"\bL4\b", {"bfloat16": 121, "float16": 121, "tf32": 60, "float32": 30.3}),
    (r"\bV100\b.*\bPCIE\b", {"float16": 112, "float32": 14}),
    (r"\bV100\b", {"float16": 125, "float32": 15.7}),
    (r"\bT4\b", {"float16": 65, "float32": 8.1}),
)


def peak_flops(device: str, precision: str) -> float | None:
    """Operations per second of ``device`` at most; None when that is not known.

    Args:
        device: as ``torch.cuda.get_device_name()`` has it: ``NVIDIA A100-SXM4-80GB``.
        precision: ``bfloat16``, ``float16``, ``float32``, or ``tf32`` for float32 whose matrix products may be rounded.
    """
    for pattern, peaks in _PEAKS:
        if re.search(pattern, device):
            found = peaks.get(precision)
            return None if found is None else found * _TERA
    return None
