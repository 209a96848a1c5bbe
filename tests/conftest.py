"""What every test shares: errors of the monitor raise instead of warning, in child processes too."""

import os

from hypothesis import settings

os.environ["GRADIOMETER_STRICT"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")

settings.register_profile("shared", deadline=None)  # a time that is asserted fails on a busy machine
settings.load_profile("shared")
