"""The instrumented trainer, and the reference user of ``monitor``: ``python -m trainer``, ``torchrun -m trainer``."""
