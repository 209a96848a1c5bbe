"""What the page says where a fix cannot be tried, and what the buttons do; the way to a verdict is in tests/browser."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import streamlit

from app import control, data, fixes
from app.views.rewind import changes_in
from monitor.errors import ConfigError, RunError
from monitor.runfile.afterwards import add_afterwards
from monitor.runfile.reader import open_run
from tests.app import runs_for_tests as made
from tests.app.conftest import Open, Runs, words

INCIDENT = {"onset_step": 210, "first_step": 210, "kinds": ["non-finite"], "severity": "critical", "layer": None}


def test_a_run_of_another_program_says_why_its_fix_cannot_be_tried_and_what_to_change_instead(
    runs: Runs, open_page: Open
) -> None:
    path = runs.folder / runs.nan
    with data.READERS.reading(path) as run:
        assert data.DIAGNOSES.of(path, run.version, wait=60).value is not None
    page = open_page("run", run=runs.nan, section="Incidents")
    assert not page.exception
    said = words(page).replace("\\", "")
    assert "cannot be tried from here" in said and "Not made by this trainer" in said
    assert "In a loop of your own" in said
    assert not [button for button in page.button if button.label.startswith(("Try this", "What-if"))]


def test_what_was_tried_is_listed_with_its_outcome_also_when_the_child_is_gone(tmp_path: Path) -> None:
    path = made.nan_run(tmp_path)
    fix: dict[str, Any] = {"run": "a-child", "key": "remedy", "text": "as recommended", "from_step": 200}
    add_afterwards(path, "fix", step=210, attempt=0, patch={"optimizer.lr": 0.1}, incident=INCIDENT, **fix)
    for stranger in (["no id"], "../../etc", "", 7):
        add_afterwards(path, "fix", step=210, attempt=0, run=stranger, from_step=200)
    add_afterwards(path, "fix_outcome", step=210, attempt=0, run="a-child", word="gone", text="60 steps")
    (tried,) = fixes.tried(open_run(path), 210)
    assert (tried.run, tried.step, tried.patch, tried.outcome["word"]) == (
        "a-child",
        200,
        {"optimizer.lr": 0.1},
        "gone",
    )
    assert fixes.tried(open_run(path), 100) == []


def test_a_page_that_only_shows_starts_nothing(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    path = runs.folder / runs.nan
    before = streamlit.get_option("server.address")
    streamlit.config.set_option("server.address", "0.0.0.0")
    try:
        for act in (
            lambda: control.rewind(path, 0, [], 0, as_child=True),
            lambda: control.what_if(path, "non-finite@210", 0),
        ):
            with pytest.raises(RunError, match="Read-only"):
                act()
    finally:
        streamlit.config.set_option("server.address", before)


def test_a_click_that_arrives_twice_or_in_two_tabs_acts_once_and_a_refusal_is_not_kept(runs: Runs) -> None:
    acted = []

    def act() -> str:
        acted.append(len(acted))
        time.sleep(0.05)
        return f"child-{len(acted)}"

    def refuse() -> str:
        raise RunError("no")

    sight = ("fix", runs.folder, 210, 0)
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda _: control._once(sight, act), range(4)))
    assert said == ["child-1"] * 4 and acted == [0]
    assert control._once((*sight[:3], 1), act) == "child-2", "what is in sight now is another click"
    with pytest.raises(RunError):
        control._once(("other",), refuse)
    assert control._once(("other",), act) == "child-3"


def test_changes_are_one_a_line_and_anything_else_is_refused_by_its_line() -> None:
    assert changes_in(" optimizer.lr = 3e-4 \n\nclip.max_norm=none") == ["optimizer.lr=3e-4", "clip.max_norm=none"]
    with pytest.raises(ConfigError, match="lower the rate: not of the form name = value"):
        changes_in("lower the rate")
