"""Text of other people stays text, checked with a CommonMark parser that is not ours."""

from __future__ import annotations

import html
import math

import pytest
from hypothesis import given
from hypothesis import strategies as some
from markdown_it import MarkdownIt

from app import text
from tests.app.runs_for_tests import HOSTILE

COMMONMARK = MarkdownIt("commonmark", {"html": True}).enable(["strikethrough", "table"])
JOINER = "\u2060"


def rendered(source: str) -> str:
    """What a reader of the rendered markdown sees; any tag but the paragraph would stay in it."""
    shown = COMMONMARK.render(source).strip()
    assert shown.startswith("<p>") and shown.endswith("</p>"), shown
    inner = shown[3:-4]
    assert "<" not in inner, inner
    return html.unescape(inner).replace(JOINER, "")


@pytest.mark.parametrize("name", HOSTILE)
def test_markdown_shows_a_hostile_name_exactly(name):
    assert rendered(text.markdown(name)) == text.plain(name).strip()


@given(some.text(alphabet=some.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60))
def test_markdown_shows_any_printable_text_exactly(name):
    assert rendered(text.markdown(name)) == name


@pytest.mark.parametrize(
    "name",
    ["a->b", "a <- b", "x >= 2", "x<=2", "a--b", "www.evil.invalid", "https://evil.invalid", "a@b.cc", ":smile:"],
)
def test_markdown_breaks_what_is_replaced_after_parsing(name):
    escaped = text.markdown(name).replace("\\", "")
    for pattern in ("->", "<-", ">=", "<=", "--", "www.", "http:", "https:", "@b", ":smile:"):
        assert pattern not in escaped


@pytest.mark.parametrize("name", HOSTILE)
def test_plotly_text_has_no_tag_and_no_template(name):
    shown = text.plotly(name)
    assert "<" not in shown and ">" not in shown and "%{" not in shown
    assert html.unescape(shown) == text.plain(name, 80)


def test_plain_is_one_line_without_control_or_direction_characters():
    assert text.plain("a\nb\tc\x1b[31m\u202ed") == "a b c\ufffd[31m\ufffdd"
    assert len(text.plain("x" * 1000)) == 300


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (0.0, "0"), (math.nan, "NaN"), (math.inf, "∞"), (-math.inf, "−∞"), (1.23456, "1.235"),
        (-0.5, "−0.5000"), (123456.0, "123456"), (2e-4, "2.00e−4"), (3.4e38, "3.40e38"),
    ],
)  # fmt: skip
def test_numbers_have_sensible_digits(value, shown):
    assert text.number(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "–"),
        (0.25, "0.25 s"),
        (8.2, "8 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 05 min"),
        (273600, "3 d 4 h"),
        (-1, "–"),
    ],
)
def test_durations_are_said_in_the_unit_that_fits(seconds, shown):
    assert text.duration(seconds) == shown


def test_ago_tells_the_time_passed():
    assert text.ago(100.0, 101.0) == "just now"
    assert text.ago(100.0, 112.0) == "12 s ago"
    assert text.ago(0.0, 7200.0) == "2 h ago"
    assert text.ago(None) == "never"


def test_rates_carry_a_prefix_and_the_unit():
    assert text.rate(39_900.0, "tokens/s") == "39.9k tokens/s"
    assert text.rate(2_345_678.0, "tokens/s") == "2.35M tokens/s"
    assert text.rate(None, "tokens/s") == "–"
