"""A Chromium for the browser tests: one that is there, else Playwright's own, else Debian's package when root.

Run as ``python -m tests.browser.chromium`` it installs one if none is found and prints its path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

ARGUMENTS = (
    "--no-sandbox",  # as root, which is what a container usually is
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",  # the tests assert that no request leaves the machine
    "--disable-component-update",
    "--disable-sync",
)


def find() -> str | None:
    """Path of the Chromium that ``$CHROMIUM`` names, one on PATH, or the one Playwright downloaded; None if absent."""
    named = os.environ.get("CHROMIUM")
    if named:
        return named if Path(named).exists() else None
    on_path = next((path for name in NAMES if (path := shutil.which(name))), None)
    return on_path or _playwright_own()


def _playwright_own() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def install() -> str | None:
    """Install a Chromium and return its path; None if every way failed."""
    ways = [[sys.executable, "-m", "playwright", "install", "chromium"]]
    if os.geteuid() == 0 and shutil.which("apt-get"):
        ways.append(["apt-get", "update"])
        ways.append(["apt-get", "install", "--yes", "--no-install-recommends", "chromium"])
    for command in ways:
        print("no Chromium found, trying:", " ".join(command), flush=True)
        subprocess.run(command, check=False, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
        if found := find():
            return found
    return None


def main() -> int:
    path = find() or install()
    if path is None:
        print(
            "The browser tests need Chromium and none could be installed. Install one (Debian: apt-get install "
            "chromium; anywhere: playwright install chromium) or name it with CHROMIUM=/path/to/chromium.",
            file=sys.stderr,
        )
        return 1
    print(f"browser tests use {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
