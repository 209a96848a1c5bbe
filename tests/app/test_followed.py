"""A part that runs again by itself: how often is asked anew with each run of it, and nothing is mounted for never."""

from __future__ import annotations

import json

from streamlit.testing.v1 import AppTest


def script() -> None:
    import streamlit as st

    from app.followed import followed

    def part(word: str) -> None:
        st.session_state["runs"] = st.session_state.get("runs", 0) + 1
        st.text(f"{word} {st.session_state['runs']}")

    followed(part, lambda: 1.5 if st.session_state.get("runs", 0) == 0 else None, bell=True)("asked")

    def other(word: str) -> None:
        part(word)

    followed(other, 4.0)("fixed")


def test_it_is_asked_anew_how_often_and_none_is_never():
    page = AppTest.from_function(script).run()
    assert beats(page) == [{"every": 1.5, "bell": True}, {"every": 4.0, "bell": False}]
    assert [one.value for one in page.text] == ["asked 1", "fixed 2"]
    page.run()
    assert beats(page) == [{"every": 4.0, "bell": False}]
    assert not page.exception


def beats(page: AppTest) -> list[dict[str, object]]:
    return [json.loads(one.proto.json) for one in page.get("bidi_component")]
