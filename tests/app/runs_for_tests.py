"""Run directories for the page's tests, written by the real writer."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np

from monitor.runfile.writer import RankWriter, begin_attempt, create_run, write_exit

LAYERS = (
    "tok_emb.weight",
    *(
        f"blocks.{block}.{part}"
        for block in range(4)
        for part in ("attn.qkv.weight", "attn.proj.weight", "mlp.up.weight", "mlp.down.weight")
    ),
    "head.weight",
)
START = 1_790_000_000.0


def curve(steps: int, seed: int = 0) -> np.ndarray:
    """A training loss that falls from about ln 256, with noise."""
    rng = np.random.default_rng(seed)
    step = np.arange(1, steps + 1)
    return 1.6 + 3.9 * np.exp(-step / max(20, steps / 6)) + rng.normal(0, 0.05, steps)


class Recorded:
    """A run under construction: rows are put in step by step."""

    def __init__(
        self, runs: Path, name: str, *, run_id: str | None = None, planned: int | None = None, start: float = START
    ):
        self.path = create_run(
            runs, name=name, run_id=run_id, task="gpt", now=lambda: start,
            config={"optimizer": {"lr": 0.002}, "clip": {"max_norm": 1.0}, "device": "cpu"},
        )  # fmt: skip
        self.planned, self.start = planned, start
        self.attempt = begin_attempt(self.path, planned_steps=planned, environment={"device": "cpu", "torch": "2.13.0"})
        self.writer = RankWriter(self.path, self.attempt, rows_per_batch=4096)
        self.writer.define_layers(LAYERS, [(8, 8)] * len(LAYERS))

    def resume(self, resume_step: int) -> None:
        """A new attempt from ``resume_step``."""
        self.writer.close()
        self.attempt = begin_attempt(
            self.path, parent=self.attempt, resume_step=resume_step, planned_steps=self.planned
        )
        self.writer = RankWriter(self.path, self.attempt, rows_per_batch=4096)
        self.writer.define_layers(LAYERS, [(8, 8)] * len(LAYERS))

    def row(
        self, step: int, loss: float, *, norm: float = 0.8, layers: np.ndarray | None = None, **more: float
    ) -> None:
        """One optimizer step."""
        time = self.start + 0.05 * step
        values = {
            "train_loss": loss, "grad_norm_preclip": norm, "grad_norm_postclip": min(norm, 1.0), "clip_max_norm": 1.0,
            "lr": 2e-3 * min(1.0, step / 50), "tokens_per_s": 40_000.0 + 500 * np.sin(step / 7),
            "step_time_s": 0.05, "data_wait_s": 0.002, "forward_s": 0.017, "backward_s": 0.024, "optimizer_s": 0.004,
            "monitor_s": 0.0006, "other_s": 0.0024, **more,
        }  # fmt: skip
        self.writer.scalars(step, time, values)
        if layers is not None:
            self.writer.layers(step, time, {"grad_norm_preclip": layers.astype(np.float32)})
        if step % 40 == 0:
            self.writer.system(
                time, {"cpu_pct": 180 + 5 * np.cos(step), "rss_gib": 0.7 + step * 1e-5, "ram_used_pct": 31.0}
            )

    def end(self, outcome: str = "finished", step: int | None = None, reason: str = "all steps done") -> Path:
        """Close the files and write how it ended; an outcome of '' leaves it without an exit record."""
        self.writer.heartbeat(
            step=step, state="idle", step_time_s=0.05, planned_steps=self.planned, monitor_share=0.012
        )
        self.writer.close()
        if outcome:
            write_exit(self.path, self.attempt, outcome=outcome, step=step or 0, reason=reason)
        return self.path


def layer_norms(step: int, rng: np.random.Generator) -> np.ndarray:
    """float32[L], falling with depth."""
    depth = np.linspace(1.0, 0.05, len(LAYERS))
    return depth * np.exp(rng.normal(0, 0.25, len(LAYERS))) * (1 + 2 * np.exp(-step / 60))


def healthy_run(runs: Path, *, steps: int = 400, name: str = "healthy", run_id: str | None = None) -> Path:
    """A finished run with validation, checkpoints and landscape samples."""
    run, rng = Recorded(runs, name, run_id=run_id, planned=steps), np.random.default_rng(1)
    for step, loss in enumerate(curve(steps), start=1):
        run.row(step, float(loss), norm=float(0.7 + rng.gamma(2.0, 0.1)), layers=layer_norms(step, rng))
        if step % 100 == 0:
            run.writer.event("eval", step, values={"val_loss": float(loss) + 0.1})
            run.writer.event("checkpoint", step)
            run.writer.landscape(
                step, run.start + step, kind="line", direction="update", radius=0.05,
                coords=np.linspace(-1, 1, 11).tolist(), loss=(float(loss) + np.linspace(-1, 1, 11) ** 2).tolist(),
                baseline=float(loss),
            )  # fmt: skip
            run.writer.event(
                "log", step, values={"landscape_loss_mean": float(loss) + 0.2, "landscape_loss_variance": 0.01}
            )
    return run.end(step=steps)


def nan_run(runs: Path, *, steps: int = 300, at: int = 210, name: str = "goes to NaN") -> Path:
    """The loss is NaN from ``at`` on; one layer is infinite one step before."""
    run, rng = Recorded(runs, name, planned=steps), np.random.default_rng(2)
    for step, loss in enumerate(curve(steps), start=1):
        bad = step >= at
        layers = layer_norms(step, rng)
        if step >= at - 1:
            layers[9] = np.inf
        if bad:
            layers[:] = np.nan
        norm = float("nan") if bad else float("inf") if step == at - 1 else 0.8
        run.row(step, float("nan") if bad else float(loss), norm=norm, layers=layers)
    return run.end("crashed", steps, "the loss is NaN")


MODULES = ("tok_emb", *(f"blocks.{block}.{part}" for block in range(4) for part in ("attn", "mlp")), "head")
ATTENDS = tuple(".attn" in name for name in MODULES)


def measured_run(runs: Path, *, steps: int = 400, name: str = "measured", run_id: str | None = None) -> Path:
    """What the probes of the hook add: modules every 50 steps, cosines, scalars, maps, words about it all."""
    run, rng = Recorded(runs, name, run_id=run_id, planned=steps), np.random.default_rng(5)
    run.writer.define_modules(MODULES)
    for step, loss in enumerate(curve(steps), start=1):
        more = {"input_mean": 75.0, "input_absmax": 121.0, "input_hash": float(step * 977), "batch_id": float(step)}
        more["parameter_checksum"] = float(step * 31)
        first = step <= 10
        if step % 20 == 0 or first:
            cosine = float(np.cos(step / 30))
            more |= {"update_to_weight_ratio": 1e-3, "weight_norm": 39.0, "update_norm": 0.04, "grad_cosine": cosine}
        if step % 10 == 0 or first:
            more |= {"log_z_mean": 6.0, "log_classes": float(np.log(256)), "output_softmax_share": 0.0}
        run.row(step, float(loss), layers=layer_norms(step, rng), **more)
        when = run.start + 0.05 * step
        if step % 50 == 0 or first:
            mean = np.linspace(-0.4, 0.2, len(MODULES), dtype=np.float32)
            entropy = np.linspace(0.3, 0.9, len(MODULES), dtype=np.float32)
            run.writer.modules(
                step, when, {"activation_mean": mean, "attention_entropy_min": (entropy, np.array(ATTENDS))}
            )
    for module in ("blocks.0.attn", "blocks.3.attn"):
        for step in (10, 100):
            run.writer.event("attention_map", step, **map_fields(module))
    run.writer.event(
        "nonfinite", 300, origin="forward", where="blocks.2.mlp", exact=True, text="infinite first in blocks.2.mlp"
    )
    run.writer.event("cadence", 120, what="activations", before=50, after=100, monitor_share=0.031, budget=0.02)
    run.writer.event("thinning", 200, stream="layers", stride=4, bytes_per_step=90, text="layers thinned")
    run.writer.event("warning", 3, about="unmoved", layers=["head.weight"], text="head.weight does not train")
    run.writer.event("warning", 4, text="said elsewhere")
    return run.end(step=steps)


def map_fields(module: str, heads: int = 2, places: int = 8) -> dict[str, object]:
    """The fields of an ``attention_map`` event: every query attends to the keys up to its own alike."""
    weights = np.tril(np.ones((places, places))) / np.arange(1, places + 1)[:, None]
    raw = np.round(255 * np.sqrt(np.stack([weights] * heads))).astype(np.uint8)
    text = base64.b64encode(raw.tobytes()).decode()
    return {"module": module, "shape": [heads, places, places], "weights": text, "tokens": list(b"def f():")[:places]}


def spike_run(
    runs: Path, *, steps: int = 200_000, at: int = 123_457, height: float = 97.25, run_id: str | None = None
) -> Path:
    """One step of many with a loss of ``height``."""
    run = Recorded(runs, "one step spike", run_id=run_id, planned=steps)
    loss = curve(steps)
    loss[at - 1] = height
    for step in range(1, steps + 1):
        run.writer.scalars(
            step, run.start + 0.05 * step, {"train_loss": float(loss[step - 1]), "grad_norm_preclip": 0.8}
        )
        if step % 20_000 == 0:
            run.writer.flush(60)
    return run.end(step=steps)


def resumed_run(runs: Path) -> Path:
    """Two attempts: the first went to 200, the second goes on from 150."""
    run, rng = Recorded(runs, "resumed", planned=300), np.random.default_rng(3)
    loss = curve(300)
    for step in range(1, 201):
        run.row(step, float(loss[step - 1]), layers=layer_norms(step, rng))
    write_exit(run.path, run.attempt, outcome="stopped", step=200, reason="SIGTERM")
    run.resume(150)
    for step in range(151, 301):
        run.row(step, float(loss[step - 1]) - 0.1, layers=layer_norms(step, rng))
    return run.end(step=300)


def half_written(runs: Path, run_id: str = "half-written") -> Path:
    """Only run.json, as left by a process that died at once."""
    return create_run(runs, name="half written", run_id=run_id, now=lambda: START)


def torn_run(runs: Path) -> Path:
    """A run whose last scalar batch is cut short and in which a byte of the layers was flipped."""
    run, rng = Recorded(runs, "torn", planned=500), np.random.default_rng(4)
    for step, loss in enumerate(curve(250), start=1):
        run.row(step, float(loss), layers=layer_norms(step, rng))
        if step % 50 == 0:
            run.writer.flush(10)
    path = run.end("", 250)
    folder = path / "attempts" / "0000" / "rank-00000"
    for seal in folder.glob("*.seal"):
        seal.unlink()
    scalars = next(folder.glob("scalars-*.arrows"))
    with scalars.open("r+b") as file:
        file.truncate(scalars.stat().st_size - 700)
    layers = next(folder.glob("layers-*.arrows"))
    with layers.open("r+b") as file:
        file.seek(layers.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 0xFF]))
    return path


def newer_format(runs: Path, run_id: str = "from-the-future") -> Path:
    """A run of a format that this program does not know."""
    folder = runs / run_id
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(
        json.dumps({"format": {"major": 99, "minor": 0}, "id": run_id, "name": "x", "created": START})
    )
    return folder


HOSTILE = (
    "<script>window.hacked=1</script>",
    "<img src=x onerror=window.hacked=1>",
    "<svg onload=window.hacked=1>",
    "![beacon](http://beacon.invalid/p.png)",
    "[click](javascript:alert(1))",
    "[site](http://evil.invalid)",
    "my_run_v2_*final*",
    "lr->0.1 >= 2 <- 3",
    ":smile: :red[red] $x^2$",
    "# heading `code` ~~gone~~",
    "https://evil.invalid/path www.evil.invalid",
    "a@evil.invalid",
    "%{customdata} %{x}",
    "<b>bold</b><br><a href='http://evil.invalid'>x</a>",
    "\u202etxt.exe",
)
"""Names that have mangled or attacked a page, after streamlit.md section 5."""


def hostile_run(runs: Path, *, steps: int = 120, at: int = 100) -> Path:
    """A run that breaks, whose every name, note and reason is one of ``HOSTILE``; the first layer is a picture."""
    config = {f"key {index}": name for index, name in enumerate(HOSTILE)} | {HOSTILE[0]: {HOSTILE[1]: HOSTILE[2]}}
    path = create_run(runs, name=HOSTILE[0], run_id="hostile", task=HOSTILE[3], config=config)
    attempt = begin_attempt(path, environment={"device": HOSTILE[13]}, overrides={HOSTILE[6]: HOSTILE[5]})
    writer = RankWriter(path, attempt, rows_per_batch=4096)
    writer.define_layers(HOSTILE, [(8, 8)] * len(HOSTILE))
    rng = np.random.default_rng(6)
    for step in range(1, steps + 1):
        layers = np.exp(rng.normal(0, 0.1, len(HOSTILE))).astype(np.float32)
        bad = step >= at
        layers[1] *= 1e6 if bad else 1.0
        own = {name: 1e9 if bad else float(np.exp(rng.normal(0, 0.1))) for name in HOSTILE}
        values = {"train_loss": float("nan") if bad else 3.0 - step / 1000, "grad_norm_preclip": float(layers.max())}
        writer.scalars(step, START + step, own | values)
        writer.layers(step, START + step, {"grad_norm_preclip": layers})
    for name in HOSTILE:
        writer.event("note", 2, text=name)
        writer.event("fidelity", 3, verdict="exact", text=name)
    writer.close()
    write_exit(path, attempt, outcome="crashed", step=steps, reason=HOSTILE[4])
    return path
