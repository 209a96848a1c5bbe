"""The catalogue of signals: what each recorded number is called, its unit, and at which stage it was taken.

One table, one truth: the hook writes these names, the reader returns them, the rules ask for them and the page labels
its axes from them. A name that is not in the table is a user's own value; it is kept and shown, without a unit.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Steps = np.ndarray
Values = np.ndarray


@dataclass(frozen=True, slots=True)
class SignalSpec:
    """What one recorded number means."""

    name: str
    """Key in the run directory. Names that repeat per group or device carry the index after a slash: ``lr/1``."""
    unit: str
    """``1`` for dimensionless, otherwise ``nats``, ``s``, ``GiB``, ``tokens/s``, ..."""
    stage: str
    """Where in the training step the number is taken. For gradients: scaled or not, before or after clipping, local or
    reduced over ranks."""
    meaning: str
    """One sentence for the tooltip."""
    stream: str
    """``scalars``, ``layers``, ``modules``, ``system`` or ``landscape``: the kind of segment that carries it.
    ``derived``: nothing carries it, a reader makes it from the others."""
    cost: str
    """What one measurement costs the step; one of :data:`COSTS`."""
    cadence: str
    """How often it is recorded by default."""

    @property
    def explained(self) -> str:
        """What it is, how often it is measured unless told otherwise, and at what cost."""
        if self.stream == "derived":
            return f"{self.meaning} Not recorded: follows from what is."
        cadence = self.cadence.replace("when armed", "each step after an early sign of trouble")
        return f"{self.meaning} Measured by default: {cadence}. Cost: {COSTS[self.cost]}."


COSTS: dict[str, str] = {
    "host": "none on the device, a few microseconds of Python",
    "shared": "part of the pass over the gradients that clipping needs anyway",
    "sample": "a few thousand values at most, whatever the size of the model",
    "pass": "a pass over all gradients, weights, moments or outputs",
    "once": "once in a run: the model's operations counted on tensors without memory",
    "forwards": "forward passes of their own",
    "aside": "none of the loop: a thread reads it",
    "derived": "none: nothing is recorded for it",
}
"""The cost classes of one measurement, cheapest first but for the last two."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One measured quantity over training.

    A missing measurement is an absent step, never NaN: a NaN in ``value`` means that the training loop really produced
    NaN at that step.
    """

    name: str
    step: Steps
    """int64[T], optimizer steps, strictly increasing along the current line of attempts."""
    value: Values
    """float64[T], in ``unit``."""
    unit: str = "1"

    def __len__(self) -> int:
        return len(self.step)

    def tail(self, count: int) -> Signal:
        """The last ``count`` measurements (all of them when there are fewer; none for 0)."""
        start = max(0, len(self.step) - count)
        return Signal(self.name, self.step[start:], self.value[start:], self.unit)

    def between(self, first_step: int | None, last_step: int | None) -> Signal:
        """The measurements with ``first_step <= step <= last_step``; ``None`` leaves that side open."""
        low = 0 if first_step is None else int(np.searchsorted(self.step, first_step, side="left"))
        high = len(self.step) if last_step is None else int(np.searchsorted(self.step, last_step, side="right"))
        return Signal(self.name, self.step[low:high], self.value[low:high], self.unit)


@dataclass(frozen=True, slots=True)
class LayerMatrix:
    """One statistic of every layer over training."""

    stat: str
    step: Steps
    """int64[T]."""
    names: tuple[str, ...]
    """Parameter names in depth order, L of them."""
    value: Values
    """float32[T, L]; NaN or an infinity means that the loop really produced it in that layer. A layer that had no
    gradient at that step (frozen, unused) is marked in ``present``."""
    present: Values
    """bool[T, L]: False where nothing was measured."""
    unit: str = "1"
    since: Steps | None = None
    """int64[T]: the row is the worst of ``since <= step <= step``; None: each row is of its own step. Rows of a dense
    window may lie within what a later row stands for."""
    nonfinite: Values | None = None
    """uint32[T, L]: how many non-finite values the row stands for; None: those that are in ``value``."""

    @property
    def begins(self) -> Steps:
        """int64[T]: first step that each row may be about."""
        return self.step if self.since is None else self.since


def _table(*rows: tuple[str, str, str, str, str, str, str]) -> dict[str, SignalSpec]:
    return {row[0]: SignalSpec(*row) for row in rows}


_EVERY = "every step"
_TEN = "every 10 steps, and the first 10"
_TWENTY = "every 20 steps, and the first 10"
_EVERY_10 = "every 10 steps, and when armed"
_EVERY_50 = "the first 10 steps, every 50, and when armed"
_EVERY_100 = "the first step, the tenth, every 100, and when armed"
_HOST, _SHARED, _SAMPLE, _PASS, _ONCE, _FORWARDS, _ASIDE, _DERIVED = COSTS
_2_S = "every 2 s, in the first minute every 0.5 s"
_INPUT = "forward, first input of the model, first micro-step"
_OUTPUT = "forward, output of the model, first micro-step"
_FORWARD = "forward, module's output, first 8 calls of the step pooled"
_ATTENTION = "forward, attention called by the module, first 8 calls of the step"

CATALOGUE: dict[str, SignalSpec] = _table(
    # name, unit, stage, meaning, stream, cost, cadence
    ("train_loss", "nats", "forward, mean over the step's micro-batches and ranks", "Training loss of the step.", "scalars", _HOST, _EVERY),
    ("val_loss", "nats", "evaluation pass", "Loss on held-out data.", "scalars", _HOST, "every evaluation"),
    ("val_loss_ema", "nats", "evaluation pass", "Loss on held-out data of the weights' running mean.", "scalars", _HOST, "every evaluation"),
    ("val_perplexity", "1", "evaluation pass", "Exponential of the loss on held-out text: between how many tokens the model is in doubt.",
     "scalars", _HOST, "every evaluation"),
    ("val_bits_per_byte", "bit/byte", "evaluation pass",
     "Loss on held-out text in bits, per byte of it: comparable whatever a token is.", "scalars", _HOST, "every evaluation"),
    ("val_accuracy", "1", "evaluation pass", "Share of held-out targets that the model thinks likeliest.",
     "scalars", _HOST, "every evaluation"),
    ("grad_norm_preclip", "1", "unscaled, before clipping, reduced over ranks, per optimizer step",
     "L2 norm of the whole gradient as the backward pass left it.", "scalars", _SHARED, _EVERY),
    ("grad_norm_postclip", "1", "unscaled, after clipping, reduced over ranks, per optimizer step",
     "L2 norm of the gradient that the optimizer used.", "scalars", _SHARED, _EVERY),
    ("grad_norm_local", "1", "unscaled, before clipping, local: before the reduction over ranks, per optimizer step",
     "L2 norm of the gradient of this rank's own part of the batch, under DistributedDataParallel or FSDP2.", "scalars", _PASS, _TEN),
    ("clip_coef", "1", "clipping", "Factor that clipping multiplied the gradient by; 1 when the step was not clipped.", "scalars", _HOST, _EVERY),
    ("clip_max_norm", "1", "clipping", "The clip limit max_norm in force.", "scalars", _HOST, _EVERY),
    ("clip_value", "1", "clipping", "The clip_value in force of clipping by value, where each entry of the gradient is cut off.", "scalars", _HOST, _EVERY),
    ("lr", "1", "optimizer, parameter group 0", "Learning rate used by the step.", "scalars", _HOST, _EVERY),
    ("loss_scale", "1", "GradScaler, before update()", "Factor the loss was multiplied by before backward.", "scalars", _HOST, _EVERY),
    ("skipped_steps", "1", "GradScaler", "Optimizer steps skipped so far in this attempt because gradients overflowed.", "scalars", _HOST, _EVERY),
    ("tokens", "tokens", "step, over all ranks", "Tokens seen since the start of the run.", "scalars", _HOST, _EVERY),
    ("tokens_per_s", "tokens/s", "step, over all ranks", "Tokens of the step divided by its wall time.", "scalars", _HOST, _EVERY),
    ("samples", "1", "step", "Samples of the step: as given to mon.step; with one process otherwise the first dimension of its inputs.", "scalars", _HOST, _EVERY),
    ("samples_per_s", "1/s", "step", "Samples of the step divided by its wall time.", "scalars", _HOST, _EVERY),
    ("tflops_per_s", "TFLOP/s", "step, this rank", "Operations of matrix products, convolutions and attention, forward and backward, over the step's wall time. "
     "What activation checkpointing computes again counts.", "scalars", _ONCE, "every step whose input shapes were counted, with attach(flops=True)"),
    ("mfu", "1", "step, this rank", "These operations per second as a share of the device's peak for the precision of the forward pass, without sparsity.",
     "scalars", _ONCE, "as tflops_per_s, where the peak is known"),
    ("batch_id", "1", "data", "Identity of the step's batch: the integer given, or a 52-bit hash of the string given.", "scalars", _HOST, _EVERY),
    ("input_mean", "1", _INPUT, "Mean of the step's first input, over at most 4096 of its values.", "scalars", _SAMPLE, _EVERY),
    ("input_std", "1", _INPUT, "Standard deviation of these values.", "scalars", _SAMPLE, _EVERY),
    ("input_absmax", "1", _INPUT, "Largest magnitude of these values.", "scalars", _SAMPLE, _EVERY),
    ("input_unique_share", "1", _INPUT, "Share of these values that are different from each other.", "scalars", _SAMPLE, _EVERY),
    ("input_hash", "1", _INPUT, "52-bit hash of these values: equal for equal batches.", "scalars", _SAMPLE, _EVERY),
    ("log_z_mean", "nats", _OUTPUT, "Mean of log Σ exp of the output logits, over at most 256 rows.", "scalars", _SAMPLE, _EVERY_10),
    ("log_classes", "nats", _OUTPUT, "Loss of a uniform guess: the logarithm of the number of output logits.", "scalars", _SAMPLE, _EVERY_10),
    ("unrelated_loss", "nats", _OUTPUT,
     "Cross-entropy of these rows against targets that have nothing to do with them: mean log Σ exp less the mean logit.", "scalars", _SAMPLE, _EVERY_10),
    ("output_softmax_share", "1", _OUTPUT,
     "Share of these rows that are probabilities already: a loss that takes logits must not get them.", "scalars", _SAMPLE, _EVERY_10),
    ("output_batch_softmax_share", "1", _OUTPUT,
     "Share of columns that are probabilities over the batch, or their logarithms: a softmax over the wrong dimension. Of batches of 2 to 256 rows.",
     "scalars", _SAMPLE, _EVERY_10),
    ("output_mean", "1", _OUTPUT, "Mean of the model's output, over at most 64 samples and 4096 values of each.", "scalars", _SAMPLE, _EVERY_10),
    ("output_spread", "1", _OUTPUT, "Standard deviation of these values over the samples, mean over the values of a sample: 0 when all get the same output.",
     "scalars", _SAMPLE, _EVERY_10),
    ("output_min", "1", _OUTPUT, "Smallest of these values.", "scalars", _SAMPLE, _EVERY_10),
    ("output_max", "1", _OUTPUT, "Largest of these values.", "scalars", _SAMPLE, _EVERY_10),
    ("step_time_s", "s", "wall clock", "From the end of the step before to the end of this one.", "scalars", _HOST, _EVERY),
    ("data_wait_s", "s", "wall clock", "Waiting for the next batch: end of the step before to the first forward.", "scalars", _HOST, _EVERY),
    ("forward_s", "s", "wall clock", "Forward passes and loss.", "scalars", _HOST, _EVERY),
    ("backward_s", "s", "wall clock", "Backward passes, with the gradient reduction that overlaps them.", "scalars", _HOST, _EVERY),
    ("optimizer_s", "s", "wall clock", "Optimizer step, with unscaling and the scaling of clipped gradients.", "scalars", _HOST, _EVERY),
    ("monitor_s", "s", "wall clock", "What this monitor cost, clipping's own norm included.", "scalars", _HOST, _EVERY),
    ("first_gradient_s", "s", "wall clock of this rank",
     "From the end of the step before to the first gradient that is ready to be reduced: the rank that others wait for has the longest.",
     "scalars", _HOST, _TEN),
    ("comm_s", "s", "wall clock, on CUDA by events; DDP's last reduction of the step",
     "Reduction of the gradients over ranks, from the first bucket sent to the last one back, waiting for slower ranks included.",
     "scalars", _HOST, _TEN),
    ("comm_exposed_s", "s", "wall clock, on CUDA by events; DDP's last reduction of the step",
     "The part of comm_s after backward's last gradient: the step is that much longer for it.", "scalars", _HOST, _TEN),
    ("comm_overlap_share", "1", "wall clock, on CUDA by events; DDP's last reduction of the step",
     "Share of comm_s that backward hides.", "scalars", _HOST, _TEN),
    ("eval_s", "s", "wall clock", "Evaluation passes since the step before.", "scalars", _HOST, "when there was one"),
    ("checkpoint_s", "s", "wall clock", "Writing checkpoints since the step before.", "scalars", _HOST, "when there was one"),
    ("other_s", "s", "wall clock", "What is left of step_time_s when the parts above are taken off.", "scalars", _HOST, _EVERY),
    ("cpu_wait_s", "s", "the kernel's count for the training's thread", "Ready to run and without a processor, because others had it: part of the times above.",
     "scalars", _HOST, "every step, on Linux"),
    ("forward_device_s", "s", "CUDA events on the current stream", "Device time from the start of the forward pass to the start of backward, all micro-steps.",
     "scalars", _HOST, "every step, on CUDA"),
    ("backward_device_s", "s", "CUDA events on the current stream", "Device time of the backward passes.", "scalars", _HOST, "every step, on CUDA"),
    ("optimizer_device_s", "s", "CUDA events on the current stream", "Device time of the optimizer steps.", "scalars", _HOST, "every step, on CUDA"),
    ("loss_deviation", "1", "train_loss, last 128 steps", "Robust standard deviation of the logarithm of the loss about its trend over the last 128 "
     "steps; of the loss itself where it is not positive.", "derived", _DERIVED, "every 32 steps"),
    ("loss_spike_share", "1", "train_loss, last 128 steps", "Share of the last 128 steps whose loss is not finite or above the mean of the 128 before by six standard deviations.",
     "derived", _DERIVED, _EVERY),
    ("grad_abs_max", "1", "unscaled, before clipping, reduced over ranks, end of backward",
     "Largest magnitude among all gradient entries; NaN or an infinity when one of them is not finite.", "scalars", _PASS, _TEN),
    ("gradient_noise_scale", "1", "unscaled, before clipping, first micro-step or this rank alone against the whole step",
     "Noise of the gradient over its square, in batches of a step (McCandlish et al. 2018): far above 1, larger batches would pay.",
     "scalars", _PASS, _TEN),
    ("parameter_checksum", "1", "after the optimizer step, this rank's parameters",
     "Sum over the parameters' bits: equal on ranks that hold the same. Sharded ones are left out.", "scalars", _PASS, "every 100 steps, with several ranks"),
    ("grad_cosine", "1", "as the optimizer uses it, a fixed sample of coordinates",
     "Cosine between this step's gradient and that of the step before; near 1 when gradients are not zeroed, negative "
     "when steps overshoot.", "scalars", _SAMPLE, _TWENTY),
    ("update_cosine", "1", "optimizer step, a fixed sample of coordinates",
     "Cosine between minus the gradient and the change the optimizer made; 1 is steepest descent.", "scalars", _SAMPLE, _TWENTY),
    ("weight_norm", "1", "after the optimizer step", "L2 norm of all trained weights.", "scalars", _PASS, _TWENTY),
    ("update_norm", "1", "optimizer step, weight decay included", "L2 norm of the change of all weights.", "scalars", _PASS, _TWENTY),
    ("update_to_weight_ratio", "1", "optimizer step, over the norm after it",
     "Norm of the change of all weights over their norm.", "scalars", _PASS, _TWENTY),
    ("landscape_loss_mean", "nats", "weights perturbed at a relative radius, the batch that the loop samples on",
     "Mean loss over random relative perturbations of the weights.", "scalars", _FORWARDS, "every k steps"),
    ("landscape_loss_variance", "nats^2", "weights perturbed at a relative radius, the batch that the loop samples on",
     "Variance of the loss over random relative perturbations of the weights.", "scalars", _FORWARDS, "every k steps"),
    ("sharpness", "1", "after the optimizer step, the batch that the loop samples on",
     "Largest eigenvalue of the Hessian, per squared weight; of the preconditioned one for Adam and RMSprop. Held against sharpness_limit.",
     "scalars", _FORWARDS, "every k steps"),
    ("sharpness_limit", "1", "from the optimizer's settings",
     "What the sharpness may be before steps overshoot further and further: 2 / lr for gradient descent, 38 / lr for Adam with beta1 = 0.9.",
     "scalars", _HOST, "every k steps"),
    ("curvature_along_gradient", "1", "after the optimizer step, the batch that the loop samples on",
     "Second derivative of the loss along its own gradient, per squared distance.", "scalars", _FORWARDS, "every k steps"),
    ("curvature_along_update", "1", "after the optimizer step, the batch that the loop samples on",
     "Second derivative of the loss along the last update, per squared distance.", "scalars", _FORWARDS, "every k steps"),
    ("cpu_pct", "%", "process", "CPU use of the training process; 100 is one core.", "system", _ASIDE, _2_S),
    ("rss_gib", "GiB", "process", "Resident memory of the training process.", "system", _ASIDE, _2_S),
    ("rss_private_gib", "GiB", "process",
     "Resident memory without mapped files and shared memory, such as a mapped data set that is read bit by bit; on Linux.",
     "system", _ASIDE, _2_S),
    ("ram_used_pct", "%", "host", "Memory in use on the host.", "system", _ASIDE, _2_S),
    ("gpu_memory_allocated_gib", "GiB", "torch allocator", "Tensor memory allocated on the device.", "system", _ASIDE, _2_S),
    ("gpu_memory_reserved_gib", "GiB", "torch allocator", "Memory the allocator holds on the device.", "system", _ASIDE, _2_S),
    ("gpu_memory_peak_gib", "GiB", "torch allocator", "Highest allocated memory since the attempt began.", "system", _ASIDE, _2_S),
    ("gpu_util_pct", "%", "NVML", "Share of time in which a kernel was running.", "system", _ASIDE, _2_S),
    ("gpu_memory_used_gib", "GiB", "NVML", "Memory in use on the device by all processes.", "system", _ASIDE, _2_S),
    ("gpu_temperature_c", "°C", "NVML", "Core temperature.", "system", _ASIDE, _2_S),
    ("gpu_power_w", "W", "NVML", "Power draw.", "system", _ASIDE, _2_S),
    ("gpu_sm_clock_mhz", "MHz", "NVML", "Clock of the streaming multiprocessors.", "system", _ASIDE, _2_S),
    ("gpu_memory_clock_mhz", "MHz", "NVML", "Clock of the device memory.", "system", _ASIDE, _2_S),
    ("gpu_throttle_reasons", "1", "NVML", "Why clocks are below their highest: a sum of NVML's bits, named in events of kind throttle.", "system", _ASIDE, _2_S),
    ("gpu_ecc_corrected", "1", "NVML, since the driver was loaded", "Memory errors that were corrected.", "system", _ASIDE, _2_S),
    ("gpu_ecc_uncorrected", "1", "NVML, since the driver was loaded", "Memory errors that were not corrected.", "system", _ASIDE, _2_S),
)  # fmt: skip

LAYER_CATALOGUE: dict[str, SignalSpec] = _table(
    ("grad_norm_preclip", "1", "unscaled, before clipping, reduced over ranks, per optimizer step",
     "L2 norm of the gradient of one parameter tensor.", "layers", _SHARED, _EVERY),
    ("grad_norm_local", "1", "unscaled, before clipping, local: before the reduction over ranks, per optimizer step",
     "L2 norm of one parameter tensor's gradient of this rank's own part of the batch, under DistributedDataParallel.", "layers", _PASS, _TEN),
    ("weight_norm", "1", "after the optimizer step", "L2 norm of one parameter tensor; frozen ones are absent.", "layers", _PASS, _TWENTY),
    ("update_norm", "1", "optimizer step, weight decay included",
     "L2 norm of the change the optimizer made; 0 for a tensor without a gradient or in no optimizer.", "layers", _PASS, _TWENTY),
    ("update_to_weight_ratio", "1", "optimizer step, over the norm after it",
     "Norm of the change over the norm of the weights, about 1e-3 in many healthy trainings.", "layers", _PASS, _TWENTY),
    ("adam_rms", "1", "after the optimizer step; the gradient unscaled and clipped",
     "Root of the mean of g²/v̂: how far the gradient has outgrown Adam's second moment; about 1 while that is up to date.",
     "layers", _PASS, "every 10 steps; embeddings, first and last matrix every 4; the first 10"),
    ("adam_floor_share", "1", "after the optimizer step",
     "Share of entries whose √v̂ is below 10 ε, so that ε shortens their updates.", "layers", _PASS, "every 100 steps, and the first"),
    ("grad_abs_max", "1", "unscaled, before clipping, reduced over ranks, end of backward",
     "Largest magnitude in the gradient; NaN or an infinity when an entry is not finite.", "layers", _PASS, _TEN),
    ("grad_zero_share", "1", "before unscaling and clipping, end of backward",
     "Share of gradient entries that are exactly zero: units that are off, or underflow.", "layers", _PASS, _TEN),
    ("grad_nonfinite_share", "1", "before clipping, end of backward",
     "Share of gradient entries that are NaN or infinite.", "layers", _PASS, "every 5 steps, with detail=\"full\" only"),
    ("parameter_checksum", "1", "after the optimizer step, this rank's parameters",
     "Sum over one parameter tensor's bits, modulo 2^24 - 3: equal on ranks that hold the same tensor.", "layers", _PASS,
     "every 100 steps, with several ranks"),
    ("grad_cosine", "1", "as the optimizer uses it, a fixed sample of coordinates",
     "Cosine between this step's gradient and that of the step before.", "layers", _SAMPLE, _TWENTY),
    ("update_cosine", "1", "optimizer step, a fixed sample of coordinates",
     "Cosine between minus the gradient and the change the optimizer made.", "layers", _SAMPLE, _TWENTY),
)  # fmt: skip

MODULE_CATALOGUE: dict[str, SignalSpec] = _table(
    ("grad_norm_local", "1", "unscaled, before clipping, local: before the reduction over ranks, per optimizer step",
     "L2 norm of the gradient of this rank's own part of the batch, of all parameters that FSDP2 reduces with the module.",
     "modules", _PASS, _TEN),
    ("activation_mean", "1", _FORWARD, "Mean of a module's output.", "modules", _PASS, _EVERY_50),
    ("activation_rms", "1", _FORWARD, "Root mean square of a module's output.", "modules", _PASS, _EVERY_50),
    ("activation_absmax", "1", _FORWARD, "Largest magnitude in a module's output.", "modules", _PASS, _EVERY_50),
    ("activation_zero_share", "1", _FORWARD, "Share of a module's output that is exactly zero.", "modules", _PASS, _EVERY_50),
    ("activation_nonfinite", "1", _FORWARD, "Number of values in a module's output that are NaN or infinite.", "modules", _PASS, _EVERY_50),
    ("dead_units_share", "1", _FORWARD,
     "Share of the units (channels, features) of a rectifying activation that stayed within 1e-6 of zero for the whole step.",
     "modules", _PASS, _EVERY_50),
    ("saturated_units_share", "1", _FORWARD,
     "Share of the units of a tanh or sigmoid whose mean distance from the middle is above 0.85 of the way to the bound.",
     "modules", _PASS, _EVERY_50),
    ("attention_logit_bound", "1", _ATTENTION,
     "Upper bound of the attention logits: largest ‖q‖ times largest ‖k‖ times the scale, over sequences and heads.",
     "modules", _PASS, _EVERY_10),
    ("attention_logit_max", "1", _ATTENTION + ", first sequence",
     "Largest magnitude of the attention logits, over heads.", "modules", _PASS, _EVERY_100),
    ("attention_entropy_min", "1", _ATTENTION + ", first sequence",
     "Entropy of the attention weights as a share of that of equal weights; the most concentrated head.", "modules", _PASS, _EVERY_100),
    ("attention_entropy_mean", "1", _ATTENTION + ", first sequence",
     "Entropy of the attention weights as a share of that of equal weights; mean over heads.", "modules", _PASS, _EVERY_100),
)  # fmt: skip

TIME_PARTS: tuple[str, ...] = (
    "data_wait_s", "forward_s", "backward_s", "optimizer_s", "monitor_s", "eval_s", "checkpoint_s", "other_s",
)  # fmt: skip
"""The parts that add up to ``step_time_s``."""


def spec_of(name: str) -> SignalSpec | None:
    """The catalogue row for ``name``, looking through a group or device index (``lr/1`` is ``lr``); None if unknown."""
    return CATALOGUE.get(name) or CATALOGUE.get(name.split("/", 1)[0])


def unit_of(name: str) -> str:
    """The unit of ``name``, or ``1`` for a user's own value."""
    spec = spec_of(name)
    return spec.unit if spec else "1"
