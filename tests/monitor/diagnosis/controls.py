"""Healthy training runs drawn by rule, for counting false alarms: any finding of warning or worse is one.

Not for tuning to perfection: they are curves, not trainings. Real ones are in sample_runs and in the fault benchmark.
Each generator takes a numpy Generator and a number of steps and gives Signals.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from monitor.diagnosis.view import Mark, Signals

Control = Callable[[np.random.Generator, int], Signals]
LAYERS = tuple(
    f"blocks.{block}.{part}" for block in range(4) for part in ("attn.qkv.weight", "attn.out.weight", "mlp.weight")
)


def noise(rng: np.random.Generator, steps: int, sd: float, *, rho: float = 0.3, tails: int | None = None) -> np.ndarray:
    """AR(1) noise in log units, Gaussian or Student t with ``tails`` degrees of freedom; standard deviation ``sd``."""
    drive = rng.standard_normal(steps) if tails is None else rng.standard_t(tails, steps) / np.sqrt(tails / (tails - 2))
    x = np.empty(steps)
    x[0] = drive[0]
    for i in range(1, steps):
        x[i] = rho * x[i - 1] + np.sqrt(1 - rho**2) * drive[i]
    return sd * x


def falling(steps: int, *, start: float = np.log(256), end: float = 2.2, scale: float = 60.0) -> np.ndarray:
    """A language model's loss: fast at first, then slow."""
    t = np.arange(steps)
    return end + (start - end) * (1 + t / scale) ** -0.9


def warmup_cosine(steps: int, *, peak: float = 1e-3, warmup: int = 50, floor: float = 0.1) -> np.ndarray:
    t = np.arange(steps)
    rise = np.minimum(1.0, (t + 1) / warmup)
    share = np.clip((t - warmup) / max(1, steps - warmup), 0, 1)
    return peak * np.where(t < warmup, rise, floor + (1 - floor) * 0.5 * (1 + np.cos(np.pi * share)))


def gradient(
    rng: np.random.Generator, steps: int, *, level: float = 0.5, sd: float = 0.12, fall: float = 10.0
) -> np.ndarray:
    """A gradient norm that falls by ``fall`` in the first 50 steps and then wanders a little."""
    t = np.arange(steps)
    return level * (1 + (fall - 1) * np.exp(-t / 12)) * np.exp(noise(rng, steps, sd) + 0.1 * np.sin(t / 300))


def spread(rng: np.random.Generator, norm: np.ndarray, sd: float = 0.15) -> np.ndarray:
    """float32[T, L]: the global norm shared out over LAYERS, each with noise of its own."""
    share = rng.dirichlet(np.full(len(LAYERS), 5.0))
    own = np.exp(rng.normal(0, sd, (len(norm), len(LAYERS))))
    return (norm[:, None] * np.sqrt(share) * own).astype(np.float32)


def run(
    rng: np.random.Generator, loss: np.ndarray, *, lr: np.ndarray | None = None, norm: np.ndarray | None = None,
    clip: float = 1.0, **more: object,
) -> Signals:  # fmt: skip
    """Signals of one run: loss, gradient norms, clipping, learning rate and layers."""
    steps = len(loss)
    norm = gradient(rng, steps) if norm is None else norm
    coef = np.minimum(1.0, clip / norm)
    events = more.pop("events", ())
    series = {
        "train_loss": loss,
        "grad_norm_preclip": norm,
        "grad_norm_postclip": norm * coef,
        "clip_coef": coef,
        "lr": warmup_cosine(steps) if lr is None else lr,
        **more,
    }
    return Signals.from_arrays(series, layers={"grad_norm_preclip": (LAYERS, spread(rng, norm))}, events=events)  # type: ignore[arg-type]


def plain_lm(rng: np.random.Generator, steps: int) -> Signals:
    return run(rng, falling(steps) * np.exp(noise(rng, steps, 0.02)))


def big_batch(rng: np.random.Generator, steps: int) -> Signals:
    """Almost no noise: small real changes are many standard deviations."""
    return run(rng, falling(steps, end=1.9) * np.exp(noise(rng, steps, 0.003)), norm=gradient(rng, steps, sd=0.05))


def small_noisy_batches(rng: np.random.Generator, steps: int) -> Signals:
    return run(rng, falling(steps) * np.exp(noise(rng, steps, 0.25)), norm=gradient(rng, steps, sd=0.4))


def heavy_tails(rng: np.random.Generator, steps: int) -> Signals:
    loss = falling(steps) * np.exp(noise(rng, steps, 0.05, tails=3))
    return run(rng, loss, norm=gradient(rng, steps) * np.exp(noise(rng, steps, 0.2, tails=3)))


def warmup_hump(rng: np.random.Generator, steps: int) -> Signals:
    """The loss rises by a fifth to two fifths at the end of the warm-up and comes back."""
    t = np.arange(steps)
    warmup = int(rng.integers(60, 140))
    hump = 1 + rng.uniform(0.2, 0.4) * np.exp(-0.5 * ((t - warmup) / (0.3 * warmup)) ** 2)
    loss = falling(steps, scale=30) * hump * np.exp(noise(rng, steps, 0.02))
    norm = gradient(rng, steps) * (1 + 1.5 * np.exp(-0.5 * ((t - warmup) / (0.3 * warmup)) ** 2))
    return run(rng, loss, lr=warmup_cosine(steps, warmup=warmup), norm=norm)


def cosine_restarts(rng: np.random.Generator, steps: int) -> Signals:
    period = 150
    t = np.arange(steps)
    phase = (t % period) / period
    lr = 1e-3 * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * phase)))
    after = np.where(t >= period, 0.18 * (1 - np.exp(-(t % period) / 6)) * np.exp(-(t % period) / 50), 0)
    loss = falling(steps) * (1 + after) * np.exp(noise(rng, steps, 0.015))
    return run(rng, loss, lr=lr)


def step_decay(rng: np.random.Generator, steps: int) -> Signals:
    t = np.arange(steps)
    cuts = (t > steps // 2).astype(float) + (t > 3 * steps // 4)
    loss = (0.3 + 2 * np.exp(-t / 80)) * 0.7**cuts * np.exp(noise(rng, steps, 0.1))
    return run(rng, loss, lr=0.1 * 0.1**cuts, norm=gradient(rng, steps) * 1.2**cuts)


def one_cycle(rng: np.random.Generator, steps: int) -> Signals:
    t = np.arange(steps)
    up = 0.3 * steps
    lr = 1e-2 * np.where(
        t < up, 0.04 + 0.96 * 0.5 * (1 - np.cos(np.pi * t / up)), 0.5 * (1 + np.cos(np.pi * (t - up) / (steps - up)))
    )
    hump = 1 + 0.15 * np.exp(-0.5 * ((t - up) / (0.1 * steps)) ** 2)
    return run(
        rng, falling(steps, start=2.3, end=0.3) * hump * np.exp(noise(rng, steps, 0.08)), lr=np.maximum(lr, 1e-8)
    )


def steep_fall(rng: np.random.Generator, steps: int) -> Signals:
    """From ln 256 to near its end within forty steps, then nearly flat: the trend must not be carried on."""
    t = np.arange(steps)
    loss = 2.4 + (np.log(256) - 2.4) * np.exp(-t / 12) - 0.2 * t / steps
    return run(rng, loss * np.exp(noise(rng, steps, 0.01)), norm=gradient(rng, steps, fall=30))


def clipping_bursts(rng: np.random.Generator, steps: int) -> Signals:
    """Now and then the norm is three times as large for some steps; clipping takes it out."""
    norm = gradient(rng, steps)
    for start in rng.integers(60, steps - 20, size=max(1, steps // 150)):
        norm[start : start + int(rng.integers(4, 12))] *= rng.uniform(2.5, 4.0)
    return run(rng, falling(steps) * np.exp(noise(rng, steps, 0.02)), norm=norm)


def learnt_by_heart(rng: np.random.Generator, steps: int) -> Signals:
    """A classifier at a loss near zero, where one hard sample makes a batch fifty times worse."""
    t = np.arange(steps)
    loss = (0.002 + 2.3 * np.exp(-t / 40)) * np.exp(noise(rng, steps, 0.5, rho=0.0))
    hard = rng.random(steps) < 0.02
    loss = loss + hard * rng.exponential(0.06, steps)
    norm = 0.5 * loss**0.7 * np.exp(noise(rng, steps, 0.3)) + 1e-6
    return run(rng, loss, lr=np.full(steps, 1e-3), norm=norm)


def varied_data(rng: np.random.Generator, steps: int) -> Signals:
    """Documents in order: the loss wanders by several per cent over a hundred steps."""
    wander = noise(rng, steps, 0.04, rho=0.97)
    return run(rng, falling(steps) * np.exp(wander + noise(rng, steps, 0.03)))


def smoothed_log(rng: np.random.Generator, steps: int) -> Signals:
    """The trainer logs an exponential mean: neighbours are nearly equal and the scatter about the trend is slow."""
    raw = falling(steps) * np.exp(noise(rng, steps, 0.1, rho=0.0))
    loss = np.empty(steps)
    loss[0] = raw[0]
    for i in range(1, steps):
        loss[i] = 0.95 * loss[i - 1] + 0.05 * raw[i]
    return run(rng, loss)


def amp_back_off(rng: np.random.Generator, steps: int) -> Signals:
    """Mixed precision: the scale halves at an overflow now and then, and at the start until it fits."""
    norm = gradient(rng, steps)
    scale, skipped, values, counts = 65536.0, 0, [], []
    overflow = set(rng.integers(100, steps, size=2).tolist()) | {0, 1}
    for t in range(steps):
        values.append(scale)
        if t in overflow:
            scale, skipped, norm[t] = scale / 2, skipped + 1, np.inf
        counts.append(skipped)
    with np.errstate(invalid="ignore"):
        return run(
            rng, falling(steps) * np.exp(noise(rng, steps, 0.02)), norm=norm, loss_scale=values, skipped_steps=counts
        )


def curriculum(rng: np.random.Generator, steps: int) -> Signals:
    """Harder data from the middle on, logged as an event: the loss goes up by a fifth and stays."""
    t = np.arange(steps)
    loss = falling(steps) * np.where(t >= steps // 2, 1.2, 1.0) * np.exp(noise(rng, steps, 0.02))
    return run(rng, loss, events=(Mark("data_stage", steps // 2 + 1, {"name": "long"}),))


def longer_sequences(rng: np.random.Generator, steps: int) -> Signals:
    """Twice the tokens per step from the middle on: another noise and a lower loss, and a larger gradient norm."""
    t = np.arange(steps)
    late = t >= steps // 2
    loss = falling(steps) * np.where(late, 1.12, 1.0) * np.exp(noise(rng, steps, 0.02))
    return run(
        rng,
        loss,
        norm=gradient(rng, steps) * np.where(late, 2.5, 1.0),
        tokens=np.cumsum(np.where(late, 8192.0, 4096.0)),
    )


def short_last_batch(rng: np.random.Generator, steps: int) -> Signals:
    """Every 50th batch holds few samples, so its loss and its gradient scatter three times as much."""
    t = np.arange(steps)
    wide = np.where(t % 50 == 49, 3.0, 1.0)
    loss = falling(steps) * np.exp(wide * noise(rng, steps, 0.03, rho=0.0))
    return run(rng, loss, norm=gradient(rng, steps) * np.exp((wide - 1) * noise(rng, steps, 0.15, rho=0.0)))


def resumed_clean(rng: np.random.Generator, steps: int) -> Signals:
    loss = falling(steps) * np.exp(noise(rng, steps, 0.02))
    return run(rng, loss, events=(Mark("resume", steps // 2, {}), Mark("checkpoint", steps // 2 - 1, {})))


def frozen_backbone(rng: np.random.Generator, steps: int) -> Signals:
    """Fine-tuning a head: constant learning rate, no gradient in most layers, a loss that falls from 1.2 to 0.4."""
    t = np.arange(steps)
    return run(rng, (0.4 + 0.8 * np.exp(-t / 100)) * np.exp(noise(rng, steps, 0.12)), lr=np.full(steps, 5e-5))


def mixed_tasks(rng: np.random.Generator, steps: int) -> Signals:
    """Batches of several tasks with losses of their own."""
    level = rng.choice([0.6, 1.0, 1.7], p=[0.3, 0.4, 0.3], size=steps)
    return run(rng, falling(steps) * level * np.exp(noise(rng, steps, 0.05)), norm=gradient(rng, steps) * level)


def accumulated(rng: np.random.Generator, steps: int) -> Signals:
    """Accumulation over micro-batches: little noise, a trend, and a norm that grows slowly over the run."""
    t = np.arange(steps)
    return run(
        rng, falling(steps) * np.exp(noise(rng, steps, 0.008)), norm=gradient(rng, steps, sd=0.08) * (1 + t / steps)
    )


def rewards(rng: np.random.Generator, steps: int) -> Signals:
    """Reinforcement learning: a policy loss about zero, either sign, with heavy tails."""
    return run(
        rng, 0.05 * rng.standard_t(3, steps), norm=gradient(rng, steps, sd=0.3, fall=1.5), lr=np.full(steps, 1e-5)
    )


def loss_only(rng: np.random.Generator, steps: int) -> Signals:
    """A log with nothing but a loss, every tenth step, and a warm-up hump that nothing explains."""
    t = np.arange(steps)
    hump = 1 + 0.25 * np.exp(-0.5 * ((t - 40) / 12) ** 2)
    loss = falling(steps, scale=15) * hump * np.exp(noise(rng, steps, 0.02))
    return Signals.from_arrays({"train_loss": (10 * np.arange(1, steps + 1), loss)})


def fine_tune(rng: np.random.Generator, steps: int) -> Signals:
    """Three epochs of a small data set, logged every tenth step: the loss drops at each epoch; linear decay."""
    t = np.arange(steps)
    level = 1.6 * np.array([1.0, 0.7, 0.5])[np.minimum(3 * t // steps, 2)] * (1 - 0.15 * t / steps)
    loss = level * np.exp(noise(rng, steps, 0.15, rho=0.0))
    lr = 2e-5 * np.minimum((t + 1) / 10, 1) * (1 - t / steps)
    norm = 1.5 * (1 + t / steps) * np.exp(noise(rng, steps, 0.45, rho=0.0))
    step = 10 * np.arange(1, steps + 1)
    series = {"train_loss": loss, "lr": lr, "grad_norm_preclip": norm}
    return Signals.from_arrays({name: (step, value) for name, value in series.items()})


def one_sample_batches(rng: np.random.Generator, steps: int) -> Signals:
    """Batch size 1: the loss is that of one document, from near nothing to twice the mean, and skewed."""
    loss = falling(steps, start=2.4, end=1.6) * rng.gamma(6.0, 1 / 6.0, steps)
    return run(rng, loss, norm=gradient(rng, steps, sd=0.5, fall=2), lr=np.full(steps, 1e-4))


def diffusion(rng: np.random.Generator, steps: int) -> Signals:
    """The loss depends on the noise level drawn: flat, skewed, over a decade."""
    t = np.arange(steps)
    loss = (0.12 + 0.9 * np.exp(-t / 30)) * np.exp(noise(rng, steps, 0.45, rho=0.0))
    return run(rng, loss, norm=gradient(rng, steps, level=0.1, sd=0.6, fall=5), lr=np.full(steps, 1e-4))


def preference(rng: np.random.Generator, steps: int) -> Signals:
    """Preference tuning: ln 2 at first, then down to a tenth, ever noisier relative to its level."""
    t = np.arange(steps)
    share = 1 / (1 + np.exp(-(t - steps / 3) / (steps / 12)))
    loss = np.log(2) * (1 - 0.85 * share) * np.exp(noise(rng, steps, 0.02, rho=0.0) + share * noise(rng, steps, 0.4))
    norm = gradient(rng, steps, sd=0.3, fall=1.2) * np.exp(share * noise(rng, steps, 0.3))
    return run(rng, loss, norm=norm, lr=np.full(steps, 5e-6))


def grokking_fall(rng: np.random.Generator, steps: int) -> Signals:
    """A plateau, a sudden fall, a new plateau; the gradient norm has a hump at the fall."""
    t = np.arange(steps)
    share = 1 / (1 + np.exp(-(t - steps / 2) / 12))
    loss = (2.3 - 1.9 * share) * np.exp(noise(rng, steps, 0.02))
    return run(rng, loss, norm=gradient(rng, steps, fall=3) * (1 + 12 * share * (1 - share)), lr=np.full(steps, 1e-3))


CONTROLS: tuple[Control, ...] = (
    plain_lm, big_batch, small_noisy_batches, heavy_tails, warmup_hump, cosine_restarts, step_decay, one_cycle,
    steep_fall, fine_tune, one_sample_batches, diffusion, preference, grokking_fall,
    clipping_bursts, learnt_by_heart, varied_data, smoothed_log, amp_back_off, curriculum, longer_sequences,
    short_last_batch, resumed_clean, frozen_backbone, mixed_tasks, accumulated, rewards, loss_only,
)  # fmt: skip
