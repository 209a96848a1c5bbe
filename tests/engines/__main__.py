"""``python -m tests.engines``: set up what the engines' tests need, then run them. Where that cannot be had, say so."""

from __future__ import annotations

import os
import sys

import pytest

from tests.engines.set_up import CANNOT, WANTED, main

if status := main():
    sys.exit(0 if status == CANNOT else status)
os.environ[WANTED] = "1"
# much of it is waiting, so two files at a time; each process has a cluster of its own
sys.exit(pytest.main(["tests/engines", "-n", "2", "--dist", "loadfile", "--durations=5", *sys.argv[1:]]))
