"""What the README says is run here, so that it stays true."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def test_the_loop_of_the_readme_runs_as_it_stands(tmp_path):
    code = next(block for block in blocks("python") if "monitor.attach" in block)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "healthy" in done.stdout


@pytest.mark.parametrize("command", sorted(set(re.findall(r"`gradiometer (\w+)", README))))
def test_every_command_of_the_readme_exists(command):
    done = subprocess.run(
        [sys.executable, "-m", "app", command, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_every_command_stands_in_the_readme():
    from app.cli import cli

    names = {command.name or command.callback.__name__ for command in cli.registered_commands}
    assert {name for name in names if f"gradiometer {name}" not in README} == set()


@pytest.mark.parametrize("target", re.findall(r"^(make \w+)", "\n".join(blocks("sh")), re.MULTILINE))
def test_every_make_target_of_the_readme_exists(target):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"\n{target.removeprefix('make ')}:" in makefile


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)]+)\)", README))
def test_every_file_the_readme_links_to_is_there(link):
    assert (ROOT / link).exists()


@pytest.mark.parametrize("room", re.findall(r"^\| `((?:monitor|trainer|app|sample_runs)[/\w]*)`", README, re.MULTILINE))
def test_every_room_of_the_readme_is_there(room):
    assert (ROOT / room).is_dir()


def test_every_picture_of_the_readme_is_there_in_both_schemes_and_they_are_small():
    named = re.findall(r'"(app/gallery/[\w-]+\.webp)"', README)
    there = sorted((ROOT / "app" / "gallery").glob("*.webp"))
    assert named and {ROOT / name for name in named} == set(there)
    assert {name.replace("-dark", "-light") for name in named} == {
        name for name in named if name.endswith("-light.webp")
    }
    assert sum(one.stat().st_size for one in there) < 1_500_000
    assert all(one.read_bytes()[8:12] == b"WEBP" for one in there)
