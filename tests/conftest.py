"""What every test shares: errors of the monitor raise instead of warning, in child processes too."""

import os

os.environ["GRADIOMETER_STRICT"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
