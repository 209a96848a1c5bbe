"""The routes: read-only, for this machine's names only, and never out of the runs folders."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path

import pytest

from app import web
from tests.app.conftest import Ask, Runs


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/api/frame?run=x", "/api/csv?run=x", "/assets/plotly.min.js", "/api/health"])
def test_only_get_is_answered(http: Ask, method, path):
    assert http(path, method=method).status == 405


@pytest.mark.parametrize(
    "host", ["evil.invalid", "evil.invalid:8501", "127.0.0.1.evil.invalid", "localhost.evil.invalid", "10.0.0.7"]
)
def test_a_foreign_host_is_refused(http: Ask, host):
    for path in ("/api/frame?run=x", "/api/csv?run=x", "/assets/plotly.min.js", "/api/health"):
        assert http(path, host=host).status == 400


@pytest.mark.parametrize("host", ["localhost:8501", "127.0.0.1:8501", "localhost"])
def test_loopback_names_are_answered(http: Ask, host):
    assert http("/api/health", host=host).status == 200


@pytest.mark.parametrize(
    "run", ["", "nothing-here", "..", "../runs", "%2e%2e%2fetc", "/etc", "a/b", ".hidden", "%00", "x" * 300]
)
def test_an_unknown_or_bad_run_id_is_404_with_words(runs: Runs, http: Ask, run):
    answer = http(f"/api/frame?run={run}")
    assert answer.status == 404
    assert len(json.loads(answer.body)["error"]) > 20


def test_a_link_out_of_the_runs_folder_is_not_followed(tmp_path: Path, runs: Runs, http: Ask, monkeypatch):
    folder = tmp_path / "linked"
    folder.mkdir()
    (folder / "escape").symlink_to(runs.folder / runs.healthy)
    monkeypatch.setenv("GRADIOMETER_RUNS", str(folder))
    assert http("/api/frame?run=escape").status == 404


@pytest.mark.parametrize(
    "query", ["px=0", "px=99999", "px=abc", "x0=5&x1=1", "x0=nan", "x0=1e999", "view=other", "view=../x"]
)
def test_a_bad_window_is_refused_with_what_is_accepted(runs: Runs, http: Ask, query):
    answer = http(f"/api/frame?run={runs.healthy}&{query}")
    assert answer.status == 400
    assert "error" in json.loads(answer.body)


@pytest.mark.parametrize("have", ["x", "loss:zz", "loss:0123456789abcdef,,,", "%00:%00", "a" * 5000])
def test_nonsense_about_what_the_browser_has_is_ignored(runs: Runs, http: Ask, have):
    assert http(f"/api/frame?run={runs.healthy}&have={have}").status == 200


@pytest.mark.parametrize("view", ["story", "landscape", "system"])
def test_every_state_of_a_run_has_an_answer(runs: Runs, http: Ask, view):
    for run in (runs.healthy, runs.nan, runs.resumed, runs.half, runs.torn, runs.spike, runs.measured):
        assert http(f"/api/frame?run={run}&view={view}").status == 200
    newer = http(f"/api/frame?run={runs.newer}&view={view}")
    assert newer.status == 404 and "99" in json.loads(newer.body)["error"]


def test_plotly_is_the_published_script(http: Ask):
    answer = http("/assets/plotly.min.js")
    about = (web.PLOTLY_JS.parent / "README.md").read_text()
    assert f"`{hashlib.sha256(answer.body).hexdigest()}`" in about
    (version,) = re.findall(rb"plotly\.js \(cartesian - minified\) v([\d.]+)", answer.body[:300])
    assert f"plotly.js {version.decode()} " in about
    assert (
        answer.headers["content-type"].startswith("text/javascript") and "immutable" in answer.headers["cache-control"]
    )


def test_plotly_goes_packed_to_who_can_unpack_it(http: Ask):
    answer = http("/assets/plotly.min.js", packed=True)
    assert answer.headers["content-encoding"] == "gzip" and answer.headers["vary"] == "Accept-Encoding"
    assert gzip.decompress(answer.body) == web.PLOTLY_JS.read_bytes()


def test_a_page_with_charts_asks_for_what_draws_them_at_once(http: Ask):
    for path, base in (("/run?run=x", ""), ("/base/compare", "/base")):
        script = f"{base}/assets/plotly.min.js?v={web.plotly_version()}"
        assert http(path).headers["link"] == f"<{script}>; rel=preload; as=script"
    assert not any("link" in http(path).headers for path in ("/launch", "/api/health", "/assets/plotly.min.js"))


def test_every_answer_forbids_frames_and_other_machines(http: Ask):
    for path in ("/api/health", "/api/frame?run=none"):
        policy = http(path).headers["content-security-policy"]
        assert "frame-ancestors 'none'" in policy and "img-src 'self' data: blob:" in policy
        assert http(path).headers["x-frame-options"] == "DENY"


def test_a_host_that_is_no_host_does_not_reach_the_policy():
    assert web._PLAIN_HOST.fullmatch("127.0.0.1:8501") and web._PLAIN_HOST.fullmatch("[::1]:80")
    assert not web._PLAIN_HOST.fullmatch("x; script-src *")


def test_allowed_hosts_are_the_configured_ones_or_loopback():
    assert web.allowed_hosts(lambda name: ["train.lan"]) == ["train.lan", "[::1]"]
    assert set(web.LOOPBACK) <= set(web.allowed_hosts(lambda name: []))
