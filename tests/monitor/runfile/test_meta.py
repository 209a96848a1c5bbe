"""Name, tags and notes that a person gives a run."""

from __future__ import annotations

import json

import pytest

from monitor.errors import RunError
from monitor.runfile.meta import MAX_NAME, MAX_TAG, MAX_TAGS, change_tags, edit_meta
from monitor.runfile.reader import open_run
from monitor.runfile.search import parse
from monitor.runfile.store import list_runs
from monitor.runfile.writer import create_run


@pytest.fixture
def run(tmp_path):
    return create_run(tmp_path, name="first", run_id="one")


def row(run):
    (found,) = list_runs(run.parent)
    return found


def test_each_entry_is_changed_alone_and_an_empty_one_goes(run):
    before = (run / "run.json").read_bytes()
    edit_meta(run, name="  my \n baseline ", tags=["old", "old", " "], notes="warm-up too short\n")
    (run / "meta.json").write_text(json.dumps({**json.loads((run / "meta.json").read_text()), "colour": "red"}))
    edit_meta(run, tags=["baseline", "lr sweep"])
    assert (row(run).name, row(run).tags, row(run).notes) == (
        "my baseline",
        ("baseline", "lr sweep"),
        "warm-up too short",
    )
    assert parse('tag:"lr sweep"').select([row(run)], 0.0, lambda row: {}, lambda row: row)
    edit_meta(run, name="", notes="")
    assert (row(run).name, row(run).notes) == ("first", None) and open_run(run).name == "first"
    assert json.loads((run / "meta.json").read_text()) == {"tags": ["baseline", "lr sweep"], "colour": "red"}
    assert (run / "run.json").read_bytes() == before


def test_tags_are_put_on_and_taken_off_and_the_others_stay(run):
    edit_meta(run, tags=["a", "b"])
    change_tags(run, add=["c", "b"], remove=["a"])
    assert row(run).tags == ("b", "c")
    change_tags(run, remove=["b", "c"])
    assert row(run).tags == () and json.loads((run / "meta.json").read_text()) == {}


@pytest.mark.parametrize(
    "said",
    [{"name": "x" * (MAX_NAME + 1)}, {"tags": ["x" * (MAX_TAG + 1)]}, {"tags": [*map(str, range(MAX_TAGS + 1))]}],
)
def test_what_is_too_long_is_refused_and_nothing_is_written(run, said):
    with pytest.raises(RunError, match="at most"):
        edit_meta(run, **said)
    assert not (run / "meta.json").exists()


def test_a_link_and_what_is_no_run_are_refused(run, tmp_path):
    (tmp_path / "link").symlink_to(run)
    for path in (tmp_path / "link", tmp_path):
        with pytest.raises(RunError, match="not a run directory"):
            edit_meta(path, name="x")


def test_a_link_in_place_of_the_file_is_replaced_not_followed(run, tmp_path):
    outside = tmp_path / "outside.json"
    outside.write_text("{}")
    (run / "meta.json").symlink_to(outside)
    edit_meta(run, name="x")
    assert outside.read_text() == "{}" and not (run / "meta.json").is_symlink() and row(run).name == "x"
