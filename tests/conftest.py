"""What every test shares: errors of the monitor raise instead of warning, in child processes too."""

import os
import signal

from hypothesis import settings

os.environ["GRADIOMETER_STRICT"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")

# A shell that starts the tests in the background has them ignore it, and every training that they start with them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("shared", deadline=None)  # a time that is asserted fails on a busy machine
settings.load_profile("shared")
