"""Several real processes of one script, joined by gloo."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def run_ranks(folder: Path, script: str, ranks: int, *arguments: str) -> str:
    """Run ``script`` on ``ranks`` processes with one thread each; gives back what they print."""
    file = folder / "ranks.py"
    file.write_text(script)
    return _run([str(file), *arguments], ranks)


def run_module(module: str, ranks: int, *arguments: str) -> str:
    """The same for a module of the tests."""
    return _run(["-m", module, *arguments], ranks)


def _run(words: list[str], ranks: int) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1",
         "--nproc-per-node", str(ranks), *words],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
