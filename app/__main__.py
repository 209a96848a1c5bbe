"""``python -m app`` is the ``gradiometer`` command, for a checkout that is not installed."""

from app.cli import main

main()
