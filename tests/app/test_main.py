"""The entry file: starts from anywhere, without an install and without torch."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path

from tests.app.conftest import MAIN, ROOT, wait_until_up


def test_importing_the_page_does_not_import_torch():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import app.main, app.data, app.control, app.live_grid; "
        "print([name for name in ('torch', 'tensorboard', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, timeout=120, cwd="/")
    assert done.stdout.strip() == "[]", done.stderr


def test_it_starts_from_another_directory_on_loopback_only(tmp_path: Path):
    """As a newcomer starts it: the settings beside the file hold, our routes are there, nothing is asked."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "GRADIOMETER_RUNS")}
    command = [sys.executable, "-m", "streamlit", "run", str(MAIN), "--server.port", "0"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)
    try:
        address = wait_until_up(server)
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{address}/api/health", timeout=20) as answer:
            assert answer.status == 200
        with urllib.request.urlopen(f"{address}/run", timeout=20) as answer:
            assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]
        assert listening_addresses(server.pid) == {"127.0.0.1"}
    finally:
        server.terminate()
        server.wait(timeout=20)


def listening_addresses(pid: int) -> set[str]:
    import psutil

    return {one.laddr.ip for one in psutil.Process(pid).net_connections("tcp") if one.status == psutil.CONN_LISTEN}


def test_the_settings_beside_the_file_are_the_safe_ones():
    settings = tomllib.loads((ROOT / "app" / ".streamlit" / "config.toml").read_text())
    assert settings["server"]["address"] == "127.0.0.1" and settings["server"]["allowedHosts"]
    assert settings["browser"]["gatherUsageStats"] is False
    for theme in ("light", "dark"):
        assert len(set(settings["theme"][theme]["chartCategoricalColors"])) >= 10


def test_no_page_file_says_unsafe_things():
    """Data never goes into the page as markup."""
    for file in (ROOT / "app").rglob("*.py"):
        source = file.read_text()
        assert "unsafe_allow_html" not in source and "st.html(" not in source, file
    script = (ROOT / "app" / "live_grid.js").read_text()
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in script
