"""``python -m tests.engines``: set up what the engines' tests need, then run them. Where that cannot be had, say so."""

from __future__ import annotations

import os
import sys

import pytest

from tests.engines.set_up import CANNOT, WANTED, main

if status := main():
    sys.exit(0 if status == CANNOT else status)
os.environ[WANTED] = "1"
sys.exit(pytest.main(["tests/engines", "--durations=5", *sys.argv[1:]]))
