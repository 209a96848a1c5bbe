"""`gradiometer report`: whole, self-contained, true to the curves, and deaf to what a run directory wants of it."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from app.charts.describe import Chart, Mark, Trace
from app.cli import cli
from app.report import page, words
from app.report.content import content_of_run, contents_of_log
from app.report.curve import SIDE, figure
from app.report.files import NotWritten, is_report, put
from app.text import plain
from monitor.signals import Signal
from tests.app import runs_for_tests as made
from tests.app.test_cli import gradiometer

DRAWING = {"svg", "path", "rect", "g", "title"}
PROSE = {
    *("html", "head", "meta", "title", "style", "body", "main", "section", "article", "details", "summary", "footer"),
    *("h1", "h2", "h3", "p", "b", "i", "div", "span", "dl", "dt", "dd", "ul", "li", "pre", "figure", "figcaption"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {
    *("lang", "charset", "name", "content", "http-equiv", "class", "style"),
    *("viewbox", "preserveaspectratio", "role", "aria-label", "d", "x", "y", "width", "height"),
}


class Read(HTMLParser):
    """Tags, attributes and text of a page, as a parser that is not ours sees them."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("reports")


@pytest.fixture(scope="module")
def broken(folder) -> Path:
    return made.nan_run(folder)


@pytest.fixture(scope="module")
def hostile(folder) -> Path:
    return made.hostile_run(folder)


def test_a_page_tells_the_incident_whole(broken):
    content = content_of_run(broken)
    (found,) = content.json["incidents"]
    read = Read(page.render([content]))
    assert read.open == []
    assert found["summary"] in read.text and found["layer"] in read.text
    for moved in found["timeline"]:
        assert moved["signal"] in read.text
    for cause in found["causes"]:
        assert all(reason in read.text for reason in cause["for"] + cause["against"])
    assert plain(found["remedy"]["text"], 1200) in read.text
    for key, value in found["remedy"]["config_patch"].items():
        assert f"--set {key}={value:g}" in read.text or f"--set {key}={value}" in read.text
    for line in found["remedy"]["snippet"].split("\n"):
        assert line in read.text
    for rule in content.json["abstained"]:
        assert all(need in read.text for need in rule["needs"])
    assert "optimizer.lr = 0.002" in read.text and "the loss is NaN" in read.text
    assert "Learning rate" in read.text and "91 NaN, the first at step 210" in read.text


def test_the_page_needs_nothing_and_lets_nothing_run(broken, hostile):
    for run in (broken, hostile):
        html = page.render([content_of_run(run)])
        read = Read(html)
        assert read.tags <= PROSE | DRAWING
        assert read.attributes <= ATTRIBUTES
        assert not re.search(r"@import|url\(|expression\(", html[: html.index("</style>")])
        assert "default-src 'none'" in html[: html.index("<style>")]


def test_hostile_text_is_shown_exactly_in_the_page(hostile):
    text = Read(page.render([content_of_run(hostile)])).text
    for name in made.HOSTILE:
        assert plain(name) in text, name
    assert not re.search("[\u202a-\u202e\u2066-\u2069]", text)


def test_hostile_text_is_no_markup_in_markdown(hostile):
    said = words.render([content_of_run(hostile)])
    found: dict[str, list[str]] = {}
    shown = []
    for block in MarkdownIt("gfm-like", {"linkify": False}).parse(said):
        for token in [block, *(block.children or [])]:
            found.setdefault(token.type, []).append(token.content)
            if token.type in ("text", "code_inline", "code_block", "fence", "text_special"):
                shown.append(token.content)
    assert found["html_block"] == [f"{words.MARK}\n"]
    assert not {"html_inline", "image", "link_open", "em_open", "s_open", "hr"} & found.keys()
    joined = "".join(shown).replace("\u2060", "")
    for name in made.HOSTILE:
        assert plain(name) in joined, name
    for scheme in ("http:", "https:", "www.", "mailto:"):
        assert not re.search(rf"(?<!`){re.escape(scheme)}", re.sub(r"```.*?```|`[^`\n]+`", "", said, flags=re.DOTALL))


@pytest.mark.parametrize(
    "said", ["- a", "1. a", "---", "# a", "> a", "a_b _c_ __d__", "a  \nb", "| a |", "&lt;", "+ a"]
)
def test_prose_is_one_paragraph_of_text(said):
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(words.prose(said))
    assert [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]
    assert {token.type for token in tokens[1].children or []} <= {"text", "text_special"}
    assert "".join(token.content for token in tokens[1].children or []).replace("\u2060", "") == plain(said)


def points(html: str, kind: str) -> np.ndarray:
    """float64[n, 2]: the points of the paths of class ``kind``."""
    paths = re.findall(rf'<path class="{kind}" d="([^"]*)"', html)
    return np.array([[float(a), float(b)] for path in paths for a, b in re.findall(r"[ML]([\d.]+) ([\d.-]+)", path)])


def scale(html: str, kind: str) -> np.ndarray:
    """float64[n, 2]: place in the drawing and number of each label of an axis, read off as a person does."""
    labels = re.findall(rf'<span class="{kind}" style="(?:top|left):([\d.]+)%">([^<]+)</span>', html)
    numbers = [float(label.replace("−", "-").replace("\u202f", "")) for _, label in labels]
    return np.column_stack([[float(place) * SIDE / 100 for place, _ in labels], numbers])


@pytest.mark.parametrize("log", [False, True], ids=["linear", "log"])
def test_the_spike_of_one_step_is_drawn_at_its_height(log):
    step = np.arange(1, 60_001)
    value = np.full(len(step), 1.0) + (step % 7) * 0.01
    value[41_234], value[17] = 9725.0 if log else 97.25, 0.985
    chart = Chart("loss", "Loss", "nats", traces=(Trace("train", Signal("train_loss", step, value, "nats")),), log=log)
    html = figure(chart, 1, 60_000)
    drawn, down, along = points(html, "line"), scale(html, "y"), scale(html, "t")
    height = np.log10(down[:, 1]) if log else down[:, 1]
    y = np.polyfit(down[:, 0], height, 1)
    seen = np.polyval(y, drawn[:, 1])
    top, bottom = int(np.argmax(seen)), int(np.argmin(seen))
    expected = np.log10(value) if log else value
    assert seen[top] == pytest.approx(expected.max(), abs=0.003 * np.ptp(expected))
    assert seen[bottom] == pytest.approx(expected.min(), abs=0.003 * np.ptp(expected))
    x = np.polyfit(along[:, 0], along[:, 1], 1)
    assert np.polyval(x, drawn[top, 0]) == pytest.approx(41_235, abs=15)
    assert len(drawn) < 2_000 and "extremes kept" in html


def test_non_finite_values_are_marks_and_counts_and_break_the_line():
    step = np.arange(1, 101)
    value = np.linspace(3.0, 2.0, 100)
    value[[9, 50, 99]] = math.nan, math.inf, -math.inf
    html = figure(Chart("loss", "Loss", traces=(Trace("train", Signal("x", step, value)),)), 1, 100)
    (bad,) = re.findall(r'<path class="bad" d="([^"]*)"', html)
    assert [float(x) for x in re.findall(r"M([\d.]+)", bad)] == pytest.approx([9e3 / 99, 5e4 / 99, 1e3], abs=0.1)
    assert "1 NaN, 1 +∞, 1 −∞, the first at step 10" in html
    assert len(re.findall("M", re.findall(r'<path class="line" d="([^"]*)"', html)[0])) == 3


def test_nothing_finite_is_a_chart_all_the_same_and_nothing_measured_is_none():
    step = np.arange(1, 4)
    nan = Chart("loss", "Loss", traces=(Trace("train", Signal("x", step, np.full(3, math.nan))),))
    assert "3 NaN" in figure(nan, 0, 3)
    assert figure(nan, 10, 20) == ""
    zero = Chart("g", "g", traces=(Trace("g", Signal("x", step, np.array([0.0, 1e-3, 1e5]))),), log=True)
    assert "1 of zero or less, drawn at the bottom" in figure(zero, 0, 3)
    flat = Chart("g", "g", traces=(Trace("g", Signal("x", step, np.full(3, 1e-300))),))
    assert np.isfinite(points(figure(flat, 1, 3), "line")).all()
    huge = Chart("g", "g", traces=(Trace("g", Signal("x", step, np.array([-1e308, 0, 1e308]))),))
    assert np.isfinite(points(figure(huge, 1, 3), "line")).all()


def test_an_incident_is_marked_where_it_began():
    step = np.arange(0, 101)
    chart = Chart("loss", "Loss", traces=(Trace("train", Signal("x", step, step / 10)),))
    html = figure(chart, 0, 100, [Mark(40, "incident", "rose", "critical", 60), Mark(200, "incident", "later")])
    assert '<rect x="400.0" y="0" width="200.0"' in html and "step 40: rose" in html and "later" not in html


def test_the_command_writes_files_and_the_doctors_json(broken, tmp_path):
    files = {kind: tmp_path / f"out.{kind}" for kind in ("html", "md", "json")}
    done = gradiometer("report", broken, *(word for kind, file in files.items() for word in (f"--{kind}", file)))
    assert done.returncode == 0 and done.stdout == "", done.stderr
    assert files["html"].read_text().startswith("<!DOCTYPE html>") and "# goes to NaN" in files["md"].read_text()
    assert json.loads(files["json"].read_text()) == json.loads(gradiometer("doctor", broken, "--json").stdout)
    assert all(map(is_report, files.values()))
    again = ["report", broken.name, "--runs", str(broken.parent), "--md", str(files["md"])]
    assert "in place of an older one" in CliRunner().invoke(cli, again).stderr


def test_without_an_option_markdown_is_on_the_terminal_and_a_dash_is_standard_output(broken):
    for options, begins in (((), words.MARK), (("--md", "-"), words.MARK), (("--html", "-"), "<!DOCTYPE html>")):
        done = CliRunner().invoke(cli, ["report", str(broken), *options])
        assert done.exit_code == 0 and done.stdout.startswith(begins) and done.stderr == ""


def test_mistakes_get_one_clear_message(broken, tmp_path):
    for options, said in (
        ((str(tmp_path / "nowhere"),), "nowhere"),
        ((str(broken), "--md", "-", "--json", "-"), "only one of"),
        ((str(broken), "--html", str(tmp_path)), "is a folder"),
    ):
        done = CliRunner().invoke(cli, ["report", *options])
        assert done.exit_code == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_what_is_no_report_is_only_written_over_when_forced(tmp_path):
    mine = tmp_path / "notes.md"
    mine.write_text("my notes")
    with pytest.raises(NotWritten, match="no report of Gradiometer's"):
        put("new", str(mine), force=False)
    assert mine.read_text() == "my notes"
    mine.chmod(0o640)
    put(f"{words.MARK}\nnew", str(mine), force=True)
    assert mine.read_text().endswith("new") and mine.stat().st_mode & 0o777 == 0o640
    put(f"{words.MARK}\nnewer", str(mine), force=False)
    other = tmp_path / "package.json"
    other.write_text('{\n  "version": 1,\n  "runs": [], "x": 1\n}')
    assert not is_report(other)
    link = tmp_path / "link.html"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotWritten, match="no regular file"):
        put("new", str(link), force=True)
    with pytest.raises(NotWritten, match="cannot be written"):
        put("new", str(tmp_path / "none" / "x.html"), force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.html", "notes.md", "package.json"]


def test_a_log_of_another_tool_says_how_it_was_read(tmp_path):
    log = tmp_path / "train.log"
    lines = [
        f"iter {i}: loss {'nan' if i >= 1500 else 3 - i / 1000}, time 20.00ms, mfu 30.00%" for i in range(0, 2000, 10)
    ]
    log.write_text("\n".join(lines) + "\n")
    contents = contents_of_log(log)
    text = Read(page.render(contents)).text
    assert "How the log was read" in text and "train_loss" in text and "mfu (%)" in text and str(log) in text
    assert "a row every 10 steps" in text and "50 NaN, the first at step 1" in text.replace("\u202f", "")
    assert "`loss -> train_loss`" in words.render(contents)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["train.log"]


def test_a_healthy_and_a_resumed_run_and_several_in_one_file(folder):
    healthy, resumed = (content_of_run(make(folder)) for make in (made.healthy_run, made.resumed_run))
    assert healthy.verdict.startswith("Healthy: ")
    html = page.render([healthy, resumed])
    read = Read(html)
    assert "and 1 more" in html and read.open == []
    assert "SIGTERM" in read.text and "attempt 1 goes on from step 150" in read.text


def test_a_run_without_points_a_torn_one_and_one_of_a_newer_format(folder):
    read = Read(page.render([content_of_run(made.half_written(folder))]))
    assert "Cannot tell whether this training is healthy" in read.text and "svg" not in read.tags
    torn = content_of_run(made.torn_run(folder))
    assert torn.problems
    for said in (Read(page.render([torn])).text, words.render([torn])):
        assert "Not read" in said
    done = CliRunner().invoke(cli, ["report", str(made.newer_format(folder))])
    assert done.exit_code == 2 and "99" in done.stderr


def test_a_huge_configuration_is_cut_and_says_so(folder):
    run = made.half_written(folder, "huge")
    record = json.loads((run / "run.json").read_text())
    record["config"] = {f"key{index}": index for index in range(2_000)}
    (run / "run.json").write_text(json.dumps(record))
    for render in (page.render, words.render):
        said = render([content_of_run(run)])
        assert "key499 = 499" in said and "key500" not in said and "1500 more lines" in said
