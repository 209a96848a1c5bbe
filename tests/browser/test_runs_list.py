"""The list of runs as a person meets it: opened, ticked, sorted, tagged, thrown away."""

from __future__ import annotations

import pytest
from playwright.sync_api import Locator, expect

from monitor.runfile.meta import edit_meta
from tests.app import runs_for_tests as made
from tests.browser.conftest import App, Tab

pytestmark = pytest.mark.browser


def row(tab: Tab, run_id: str) -> Locator:
    return tab.page.locator(f'.gm-runs tr[data-run="{run_id}"]')


def shown(tab: Tab) -> list[str]:
    return tab.page.eval_on_selector_all(".gm-runs tbody tr", "(rows) => rows.map((row) => row.dataset.run)")


def test_a_click_on_a_row_opens_the_run_and_its_name_is_a_link(tab: Tab, app: App):
    tab.open("/?search=resumed")
    expect(row(tab, app.ids["resumed"]).get_by_role("link")).to_have_attribute("href", f"/run?run={app.ids['resumed']}")
    before = tab.page.evaluate("history.length")
    row(tab, app.ids["resumed"]).locator('[data-column="step"]').click()
    tab.page.wait_for_url("**/run?run=*resumed*")
    tab.charts()
    assert tab.page.evaluate("history.length") == before + 1, "one step back"
    tab.page.go_back()
    row(tab, app.ids["resumed"]).wait_for()
    assert tab.page.url == f"{app.address}/?search=resumed" and len(shown(tab)) == 1


def test_ticks_stay_with_their_run_when_a_new_one_arrives(tab: Tab, app: App):
    made.Recorded(app.runs, "tick one", run_id="tick-1", start=made.START + 10).end()
    made.Recorded(app.runs, "tick two", run_id="tick-2", start=made.START + 20).end()
    tab.open("/?search=name:tick")
    row(tab, "tick-1").get_by_role("checkbox").check()
    expect(tab.page.get_by_text("tick one", exact=True).last).to_be_visible()
    row(tab, "tick-1").evaluate("(node) => { node.__mark = 1; }")
    made.Recorded(app.runs, "tick three", run_id="tick-3", start=made.START + 30).end()
    row(tab, "tick-3").wait_for()
    assert shown(tab) == ["tick-3", "tick-2", "tick-1"]
    assert [row(tab, name).get_by_role("checkbox").is_checked() for name in shown(tab)] == [False, False, True]
    assert row(tab, "tick-1").evaluate("(node) => node.__mark") == 1, "moved, not made anew"
    row(tab, "tick-3").get_by_role("checkbox").check()
    tab.page.get_by_role("link", name="Compare 2 runs").click()
    tab.page.wait_for_url("**/compare?run=tick-1&run=tick-3*")


def test_ticked_runs_are_thrown_away_and_come_back(tab: Tab, app: App):
    for number in (1, 2):
        made.Recorded(app.runs, f"doomed {number}", run_id=f"doomed-{number}", start=made.START + number).end()
    tab.open("/?search=doomed")
    tab.page.get_by_label("Tick all runs of this page").check()
    tab.page.get_by_role("button", name="Delete 2").click()
    tab.page.get_by_text("2 runs moved to the trash.").wait_for()
    expect(row(tab, "doomed-1")).to_have_count(0)
    assert (app.runs / ".trash" / "doomed-1").is_dir()
    tab.page.get_by_role("button", name="Undo").click()
    row(tab, "doomed-2").wait_for()
    assert shown(tab) == ["doomed-2", "doomed-1"] and not (app.runs / ".trash" / "doomed-1").exists()
    assert not tab.page.get_by_label("Tick all runs of this page").is_checked()
    tab.page.get_by_label("Tick all runs of this page").check()
    expect(tab.page.get_by_role("button", name="Delete 2")).to_be_enabled()


def test_a_head_sorts_and_the_address_keeps_it(tab: Tab, app: App):
    for number, loss in enumerate((2.0, 3.0, 1.0)):
        run = made.Recorded(app.runs, f"sorted {number}", run_id=f"sorted-{number}", start=made.START + number)
        run.row(1, loss)
        run.end()
    tab.open("/?search=name:sorted")
    head = tab.page.get_by_role("columnheader", name="Last loss")
    for order, ids in (("ascending", "201"), ("descending", "102")):
        head.get_by_role("button").click()
        expect(head).to_have_attribute("aria-sort", order)
        assert shown(tab) == [f"sorted-{number}" for number in ids]
    tab.wait("() => new URL(location).searchParams.get('sort') === '-loss'")
    tab.page.reload()
    tab.rest()
    row(tab, "sorted-1").wait_for()
    assert shown(tab) == ["sorted-1", "sorted-0", "sorted-2"]


def test_what_people_wrote_is_shown_exactly_in_every_cell_and_can_be_edited(tab: Tab, app: App):
    for index, text in enumerate(made.HOSTILE):
        path = made.Recorded(app.runs, "x", run_id=f"said-{index:02d}", start=made.START + index).end()
        edit_meta(path, name=text, tags=[text], notes=text)
    tab.open("/?search=id:said&differ=true")
    row(tab, "said-00").wait_for()
    from app.text import plain

    for index, text in enumerate(made.HOSTILE):
        own = row(tab, f"said-{index:02d}")
        own.get_by_role("checkbox").check()
        assert own.get_by_role("link").text_content() == plain(text)
        assert own.locator('[data-column="tags"] .gm-runs-tag').text_content() == plain(text, 60)
        assert own.locator('[data-column="notes"]').text_content() == plain(text)
    tab.page.get_by_role("button", name="Tag").click()
    tab.page.get_by_label("Take off").click()
    tab.page.get_by_role("option").first.wait_for()
    tab.page.keyboard.press("Escape")
    tab.page.keyboard.press("Escape")
    tab.page.get_by_role("button", name="Untick all").click()
    expect(row(tab, "said-03").get_by_role("checkbox")).not_to_be_checked()
    row(tab, "said-03").get_by_role("checkbox").check()
    tab.page.get_by_role("button", name="Edit").click()
    expect(tab.page.get_by_label("Name", exact=True)).to_have_value(made.HOSTILE[3])
    tab.page.get_by_label("Name", exact=True).fill("an honest name")
    tab.page.get_by_role("button", name="Save").click()
    expect(row(tab, "said-03").get_by_role("link")).to_have_text("an honest name")
    assert tab.page.evaluate("window.hacked") is None


def test_the_list_is_asked_for_only_when_it_changed_and_not_from_a_hidden_tab(tab: Tab, app: App):
    tab.page.add_init_script("Object.defineProperty(document, 'hidden', {get: () => Boolean(window.__hidden)})")
    sent: list[int] = []
    asked: list[int] = []
    tab.page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: sent.append(len(frame))))
    tab.page.on("response", lambda answer: "/api/runs" in answer.url and asked.append(answer.status))
    tab.open("/?search=healthy -sample")
    row(tab, app.ids["healthy"]).wait_for()
    for _ in range(30):  # until the curves and the diagnoses have been made, and no run counts as just begun any more
        sent.clear()
        asked.clear()
        tab.until(lambda: len(asked) >= 3, "three questions")
        if set(asked) == {204} and not sent:
            break
    assert set(asked) == {204} and sent == []
    tab.page.evaluate("window.__hidden = true; document.dispatchEvent(new Event('visibilitychange'))")
    tab.wait("() => !document.querySelector('.gm-runs').__gm.asking")
    tab.page.wait_for_timeout(100)  # until its answer has been noted here
    asked.clear()
    edit_meta(app.runs / app.ids["healthy"], tags=["kept"])
    tab.page.wait_for_timeout(2600)  # it asks every two seconds
    assert asked == [] and sent == []
    tab.page.evaluate("window.__hidden = false; document.dispatchEvent(new Event('visibilitychange'))")
    expect(row(tab, app.ids["healthy"]).locator('[data-column="tags"]')).to_have_text("kept ")
