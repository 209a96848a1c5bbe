"""`gradiometer train` for a training that does not run in the terminal: handed to an engine, which outlives it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer import launch
from trainer.config import load_config


def hand_over(
    file: Path | None, preset: str | None, overrides: Sequence[str], runs: Path, engine: str | None
) -> str | None:
    """Launch the training and say where it is; None when nobody named an engine, so that it is one for the terminal.

    Args:
        engine: what was asked for; None leaves it to the configuration.

    Raises:
        ConfigError, RunError: the configuration is refused, or the engine cannot be reached.
    """
    asked = [f"launch.engine={engine}"] if engine else []
    config = load_config(file, [*overrides, *asked], preset=preset)
    if engine is None and config.launch.engine == "local":
        return None
    launched = launch.start(config, runs)
    now = launch.status(launched.run_dir)
    return (
        f"run {launched.run_id} in {launched.run_dir.parent}\n"
        f"  {now.state}: {now.reason}\n"
        f"  watch it:  gradiometer app --runs {launched.run_dir.parent}\n"
        f"  stop it:   gradiometer stop {launched.run_dir}"
    )
