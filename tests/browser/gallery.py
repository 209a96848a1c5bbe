"""The pictures in the README, made from the sample runs: ``python -m tests.browser.gallery``.

Each page in light and in dark, in a real Chromium.
"""

from __future__ import annotations

import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from app.data import SAMPLE_SWEEP, SAMPLES
from app.report import page as report
from app.report.content import content_of_run
from tests.browser import chromium
from tests.browser.conftest import READY, started
from trainer.sweep import list_sweeps

FOLDER = Path(__file__).resolve().parents[2] / "app" / "gallery"
SIZE = {"width": 1280, "height": 860}
SCHEMES = ("light", "dark")


@dataclass(frozen=True)
class View:
    """A page, and what must be in it before the picture is taken."""

    address: str
    there: str
    height: int = SIZE["height"]


CHARTS = "document.querySelectorAll('.gm-chart .js-plotly-plot .main-svg').length >= 4"
CURVES = f"document.querySelectorAll('.gm-runs tr polyline').length === {len(list(SAMPLES.glob('*/run.json')))}"
DIAGNOSED = "!document.body.innerText.includes('checking')"
ALL_THREE = "run=gpt-healthy&run=gpt-one-batch-spike&run=gpt-gradient-explosion"
BROKEN = "/run?run=gpt-gradient-explosion"
VIEWS = {
    "runs": View("/", f"{CURVES} && {DIAGNOSED}", 780),
    "run": View(BROKEN, f"{CHARTS} && {DIAGNOSED}", 1250),
    "incident": View(f"{BROKEN}&section=Incidents", "document.body.innerText.includes('Likely causes')", 1250),
    "layers": View("/run?run=gpt-healthy&section=Layers", CHARTS.replace("4", "1"), 1000),
    "compare": View(f"/compare?{ALL_THREE}&smooth=0.6", CHARTS, 1100),
    "landscape": View(
        "/run?run=mlp-edge-of-stability&section=Landscape",
        f"{CHARTS.replace('4', '2')} && document.querySelectorAll('[data-testid=stPlotlyChart] .main-svg').length",
        1560,
    ),
    "launch": View("/launch", "document.body.innerText.includes('tokens per step')"),
    "sweep": View(
        f"/sweeps?sweep={list_sweeps(SAMPLES / SAMPLE_SWEEP)[0].id}",
        "document.querySelectorAll('[data-testid=stPlotlyChart] .main-svg').length >= 3",
        1250,
    ),
}


def save(page: Page, name: str) -> None:
    """A picture of what is on the screen, to the bit: a palette turned pale grey boxes pink."""
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(FOLDER / f"{name}.webp", lossless=True, method=6)


def main() -> int:
    path = chromium.find()
    if path is None:
        print("no Chromium here; install one with: python -m tests.browser.chromium", file=sys.stderr)
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gradiometer-") as temporary, sync_playwright() as playwright:
        scratch = Path(temporary)
        written = scratch / "report.html"
        written.write_text(report.render([content_of_run(SAMPLES / "gpt-gradient-explosion")]), encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=path, args=list(chromium.ARGUMENTS))
        (scratch / "bare").mkdir()
        with started(scratch / "bare" / "runs") as bare:
            for scheme in SCHEMES:
                page = browser.new_page(color_scheme=scheme, viewport=SIZE, reduced_motion="reduce")
                page.set_default_timeout(120_000)
                for name, view in VIEWS.items():
                    page.set_viewport_size({"width": SIZE["width"], "height": view.height})
                    page.goto(bare.address + view.address)
                    page.wait_for_selector(READY)
                    page.wait_for_function(f"() => {view.there}")
                    page.wait_for_function(
                        "() => !document.querySelector('[data-testid=stSkeleton], [data-stale=true]')"
                    )
                    page.wait_for_timeout(1500)
                    save(page, f"{name}-{scheme}")
                page.set_viewport_size(SIZE)
                page.goto(written.as_uri())
                save(page, f"report-{scheme}")
                page.close()
        browser.close()
    size = sum(one.stat().st_size for one in FOLDER.glob("*.webp"))
    print(f"{len(list(FOLDER.glob('*.webp')))} pictures, {size / 1e3:,.0f} kB, in {FOLDER}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
