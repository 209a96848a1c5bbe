"""Landscape: the loss around the weights, the curvature against what the learning rate bears, and a look further."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from statistics import median

import pandas as pd
import streamlit as st

from app import control, text
from app.charts.landscape import connect_figure, contour_figure, slice_figure, slices_of, surface_figure
from app.data import READERS, is_sample
from app.facts import Facts
from app.followed import followed
from app.live_grid import live_grid
from app.views.common import keep_steps, zoomed_steps
from monitor.errors import GradiometerError
from monitor.runfile.format import as_number
from monitor.runfile.records import LandscapeSample
from trainer.launch.looking import looking

KINDS = {
    "plane": "a plane through the weights",
    "line": "a line through the weights",
    "connect": "the way to another checkpoint",
    "curvature": "the curvature",
}
DIRECTIONS = {"plane": ("pca", "random", "update", "gradient"), "line": ("random", "update", "gradient")}
LASTING = 3
"""Samples that the answer is from; their median."""
NEAR = 0.8
"""Of the limit: from here to its inverse the curvature is at it. Our judgement, after Cohen et al. 2021, figure 1."""
POINTS = {"plane": (11, 25, 51), "line": (21, 51, 101), "connect": (21, 51)}


def show(path: Path, facts: Facts) -> None:
    """What the training sampled, what was computed afterwards, and the form for more."""
    with READERS.reading(path) as run:
        samples = run.landscape()
        measured = bool(samples) or bool({"landscape_loss_mean", "sharpness"} & set(run.names))
        steps = [point.step for point in run.checkpoints() if point.complete]
    if not measured:
        st.info("No landscape samples in this run.")
        st.caption("The trainer takes them every monitor.landscape\\_every steps; in a loop of your own call:")
        st.code("mon.landscape(loss_fn, batch, curvature=True)", language=None)
    else:
        followed(answer, 10.0 if facts.live else None)(path)
        key = f"landscape-{path.name}"
        st.fragment(live_grid)(
            path.name, "landscape", key=key, span=zoomed_steps(), every_s=4.0, on_range_change=lambda: keep_steps(key)
        )
    at_work = looking(path.absolute()).running
    followed(pictures, 3.0 if at_work else 10.0 if facts.live else None)(path)
    if steps and not is_sample(path):
        form(path, steps)


def answer(path: Path) -> None:
    """Whether the learning rate is too high now."""
    with READERS.reading(path) as run:
        run.refresh()
        said, source = too_high(run.landscape())
    if said:
        st.markdown(f"**Is the learning rate too high now?** {said}")
        st.caption(source)


def pictures(path: Path) -> None:
    """Slices, planes, ways and curvatures, as far as they are known."""
    progress(path)
    with READERS.reading(path) as run:
        run.refresh()
        samples = run.landscape()
    slices(samples)
    planes([sample for sample in samples if sample.kind == "plane" and len(sample.loss)])
    ways([sample for sample in samples if sample.kind == "connect" and len(sample.loss)])
    curvatures([sample for sample in samples if sample.kind == "curvature"])


def progress(path: Path) -> None:
    """What is being computed, or why it was not."""
    now = looking(path.absolute())
    if now.running:
        left, right = st.columns([5, 1], vertical_alignment="center")
        left.info(f"At work: {text.markdown(now.asked)}. Coarse first; the picture gets finer while you look.")
        right.button("Stop", key="stop_looking", on_click=stop, args=(path,))
        st.session_state["was_looking"] = True
    elif now.problem:
        st.warning(f"{text.markdown(now.asked)} could not be computed: {text.markdown(now.problem, 1000)}")
    if not now.running and st.session_state.pop("was_looking", False):
        st.rerun()  # the whole page, so that it is not asked every three seconds any more


def stop(path: Path) -> None:
    """End the computation; what it has found stays."""
    try:
        control.stop_looking(path)
    except (GradiometerError, OSError) as error:
        st.session_state["landscape_said"] = str(error)


def too_high(samples: Sequence[LandscapeSample]) -> tuple[str, str]:
    """Whether the learning rate is, from the last curvatures, and what that is from, as markdown; "" without any.

    Args:
        samples: by step.
    """
    curves = [sample for sample in samples if sample.kind == "curvature"]
    known = [(sample, over) for sample in curves if (over := over_limit(sample)) is not None]
    if not known:
        limited = any(as_number(sample.detail.get("limit")) is not None for sample in curves)
        lacks = (
            "no sample has found the curvature yet" if limited else "the optimizer's limit of stability is not known"
        )
        return f"There is no telling: {lacks}." if curves else "", ""
    last = known[-LASTING:]
    level, (latest, _) = median(over for _, over in last), last[-1]
    lr = as_number(latest.detail.get("lr"))
    at = f"a rate of about {text.number(lr / level, 2)}" if lr and lr > 0 else "a lower rate"
    if level <= NEAR:
        words = f"No. The curvature is {level:.2f} of the limit of stability: steps come down without swinging."
    elif level <= 1 / NEAR:
        words = (
            f"It is as high as it can be. The curvature is at the limit of stability ({level:.2f} of it), where "
            "training often stays: a higher rate would not be faster."
        )
    else:
        words = (
            f"Yes, unless the loss still falls. The curvature is {text.number(level, 3)} times the limit of stability, "
            f"so steps swing further and further across the valley; {at} would be at the limit."
        )
    count = f"the last {len(last)} samples" if len(last) > 1 else "one sample only"
    where = f"From {count}, up to step {text.count(latest.step)}"
    return words, f"{where}; the curvature of a small batch is larger than that of all the data."


def over_limit(sample: LandscapeSample) -> float | None:
    """Sharpness over the limit of stability, where both are known."""
    sharpness, limit = (as_number(sample.detail.get(name)) for name in ("sharpness", "limit"))
    if sharpness is None or limit is None or limit <= 0 or not isfinite(sharpness / limit):
        return None
    return sharpness / limit


def slices(samples: list[LandscapeSample]) -> None:
    """The loss along a line, at up to five steps."""
    found = slices_of(samples)
    if not found:
        return
    st.markdown("**Loss along one direction through the weights**")
    along = next(iter(found))
    if len(found) > 1:
        along = st.segmented_control("Along", list(found), default=along, required=True, key="slice_along") or along
    st.plotly_chart(slice_figure(found[along]), key="slice", config={"displayModeBar": False})


def planes(found: list[LandscapeSample]) -> None:
    """One plane, from above or in three dimensions."""
    if not found:
        return
    st.markdown("**Loss in a plane through the weights**")
    left, right = st.columns([3, 2], vertical_alignment="bottom")
    place = left.selectbox(
        "Plane",
        range(len(found)),
        index=len(found) - 1,
        format_func=lambda place: text.plain(titled(found[place])),
        key="plane",
    )
    drawn = right.segmented_control("As", ["contours", "3-D"], default="contours", required=True, key="plane_as")
    sample = found[place]
    unfinished(sample)
    st.plotly_chart(
        surface_figure(sample) if drawn == "3-D" else contour_figure(sample), key="plane_figure",
        config={"displayModeBar": False},
    )  # fmt: skip
    shares = sample.detail.get("variance_explained")
    if isinstance(shares, list) and all(as_number(share) is not None for share in shares):
        held = sum(100 * (as_number(share) or 0.0) for share in shares)
        st.caption(
            f"The two directions hold {held:.0f} % of the checkpoints' variance; the rest of the way lies off the "
            "plane, so the line may seem to cross a ridge that the training went round."
        )


def titled(sample: LandscapeSample) -> str:
    """``step 400, along pca, 25 x 25 points``."""
    points = as_number(sample.detail.get("points"))
    side = f", {round(points**0.5)} x {round(points**0.5)} points" if points and points > 0 else ""
    return f"step {text.count(sample.step)}, along {sample.direction or 'two directions'}{side}"


def unfinished(sample: LandscapeSample) -> None:
    """How much of it is there, while that is not all."""
    points = as_number(sample.detail.get("points"))
    if points and len(sample.loss) < points:
        st.caption(f"{text.count(len(sample.loss))} of {text.count(int(points))} points so far.")


def ways(found: list[LandscapeSample]) -> None:
    """The last way between two checkpoints."""
    if not found:
        return
    sample = found[-1]
    st.markdown("**Loss on the way between two checkpoints**")
    barrier = as_number(sample.detail.get("barrier"))
    if barrier is not None:
        st.caption(
            f"Barrier {text.number(barrier)}: the loss rises so far above the straight line between both ends' losses."
        )
    unfinished(sample)
    st.plotly_chart(connect_figure(sample), key="way", config={"displayModeBar": False})


def curvatures(found: list[LandscapeSample]) -> None:
    """A row for each sample, the newest first."""
    if not found:
        return
    st.markdown("**Curvature**")
    rows = []
    for sample in reversed(found[-50:]):
        told = sample.detail
        numbers = {name: as_number(told.get(name)) for name in told}
        over = over_limit(sample)
        values = told.get("eigenvalues")
        largest = [as_number(value) for value in values[:3]] if isinstance(values, list) else []
        rows.append(
            {
                "Step": text.count(sample.step),
                "Of the limit": f"{over:.2f}" if over is not None else "–",
                "Sharpness": text.number(numbers.get("sharpness"))
                + (", preconditioned" if told.get("preconditioned") is True else ""),
                "Limit": text.number(numbers.get("limit")),
                "Limit is": text.plain(told.get("rule") or "–", 60),
                "Largest eigenvalues": ", ".join(text.number(value) for value in largest) or "–",
                "Trace": text.number(numbers.get("trace")),
                "Along gradient": text.number(numbers.get("along_gradient")),
                "Along update": text.number(numbers.get("along_update")),
                "Critical batch": text.number(numbers.get("critical_batch")),
            }
        )
    st.dataframe(pd.DataFrame(rows), hide_index=True)


# ---- look further -------------------------------------------------------------------------------------------------


def form(path: Path, steps: list[int]) -> None:
    """What to compute from a checkpoint."""
    with st.expander("Look further"):
        kind = st.segmented_control(
            "At", list(KINDS), default="plane", required=True, key="look_kind", format_func=KINDS.__getitem__
        ) or "plane"  # fmt: skip
        grid = st.grid(min_column_width=150)
        with grid.cell():
            step = st.selectbox("Checkpoint", steps, index=len(steps) - 1, key="look_step")
        direction, points, other = "random", 0, None
        if kind in DIRECTIONS:
            with grid.cell():
                names = [name for name in DIRECTIONS[kind] if name != "pca" or len(steps) > 2]
                direction = st.selectbox("Direction", names, key=f"look_direction_{kind}")
        if kind in POINTS:
            with grid.cell():
                points = st.selectbox("Points along an axis", POINTS[kind], index=1, key=f"look_points_{kind}")
        if kind == "connect":
            with grid.cell():
                other = st.selectbox("Other checkpoint", [one for one in steps if one != step], key="look_other")
        arguments = ["--kind", kind, "--checkpoint", str(step)]
        arguments += ["--direction", direction] if kind in DIRECTIONS else []
        arguments += ["--points", str(points)] if kind in POINTS else []
        arguments += ["--other", str(other)] if other is not None else []
        st.caption("The same in a terminal")
        st.code(" ".join(["gradiometer landscape", path.name, *arguments]), language=None)
        reason = control.read_only_reason()
        lacking = kind == "connect" and other is None
        st.button(
            "Compute", type="primary", key="look", disabled=bool(reason) or lacking, on_click=begin,
            args=(path, arguments, f"{KINDS[kind]} at step {step}"),
        )  # fmt: skip
        if reason:
            st.caption(text.markdown(reason))
        if said := st.session_state.pop("landscape_said", None):
            st.warning(text.markdown(said, 600))


def begin(path: Path, arguments: list[str], asked: str) -> None:
    """Start the computation, and keep what was said against it."""
    try:
        control.look_at_landscape(path, arguments, asked)
    except (GradiometerError, OSError) as error:
        st.session_state["landscape_said"] = str(error)
