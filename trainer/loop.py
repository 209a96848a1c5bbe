"""The training loop, in the order the machine does it.

::

    for each optimizer step:
        training_step                 every step
            micro-batches: forward, loss, backward      grad_accum_steps times; gradients are reduced with the last
            unscale, clip, add noise, optimizer step, scaler update, running mean of the weights
            mon.step                                    the measurements of this step are complete
            landscape and curvature samples             every monitor.landscape_every steps, as time allows
        evaluate                      every evaluation.every_steps, and after the last step; ends training early when
                                      early_stopping.patience evaluations bring no progress
        checkpoint                    every checkpoint.every_steps, at a new lowest held-out loss, after the last step,
                                      and when asked to; written while the next steps run
        requests        of people: pause, another learning rate, ... (requests.py)
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import monitor
from monitor.alerts import alerts_from
from monitor.diagnosis.verdict import Trouble, judge, steps_needed
from monitor.diagnosis.view import Signals
from monitor.errors import ConfigError, RunError
from monitor.runfile.control import KINDS
from monitor.runfile.format import attempt_dir
from monitor.runfile.reader import open_run
from trainer import checkpoint, fidelity
from trainer.adversarial import attacked
from trainer.clipping import Clipping
from trainer.compiling import compiled
from trainer.config import TrainConfig
from trainer.curriculum import length_at
from trainer.early_stopping import EarlyStopping
from trainer.ema import build_ema
from trainer.faults import Faults
from trainer.gradient_noise import add_gradient_noise
from trainer.memory import explained_at_start, is_out_of_memory, out_of_memory
from trainer.on_critical import Critical, Rewind, said
from trainer.optim import build_optimizer, set_lr
from trainer.parallel import Layout, Parallel, build_layout, start_parallel, stop_parallel
from trainer.parallel.failures import named_failures
from trainer.place import Place, rewound_run
from trainer.precision import Precision, build_precision
from trainer.progress import Display, Silent, build_display
from trainer.rank_log import print_into
from trainer.requests import Requests
from trainer.samples import LandscapeSamples
from trainer.schedules import lr_multiplier
from trainer.stop import StopFlag, reason
from trainer.tasks import IGNORED, Batch, EpochSampler, Task, build_model, build_task
from trainer.unmonitored import Unmonitored


@dataclass(frozen=True, slots=True)
class Outcome:
    """How training ended."""

    word: str
    """``finished`` or ``stopped``."""
    step: int
    reason: str
    signal: int | None = None
    """The signal that asked to stop, if one did."""
    rewind: Rewind | None = None
    """Where to go on from, when this was the end of an attempt only."""


@dataclass(frozen=True, slots=True)
class Session:
    """Everything one attempt works with. What changes and must survive a resume is in ``state``, and only there."""

    config: TrainConfig
    parallel: Parallel
    layout: Layout
    precision: Precision
    task: Task
    sizes: tuple[int, int]
    """Parameters of the whole model, and how many of them are frozen."""
    state: checkpoint.State
    wrapped: nn.Module
    """``state.model``, or its DDP wrapper."""
    forward: nn.Module
    """``wrapped``, or its compiled form: what the training forward goes through."""
    together: nn.Module
    """What forward passes outside of training go through; where the model is in pieces, all ranks at once."""
    faults: Faults
    val_batches: list[Batch]
    """This rank's share of the validation pass, on the device."""
    samples: LandscapeSamples
    """Their share of the time counts from when the attempt was set up."""


def train(
    config: TrainConfig, place: Place | None, stop: StopFlag, began: Callable[[Place], None] = lambda place: None
) -> Outcome:
    """Train at ``place`` until the last step or until asked to stop. Every rank calls this; ranks but 0 give None.

    Args:
        began: called with the place of each further attempt that a rewind begins, on rank 0.

    Raises:
        ConfigError: the data, the device or a fault's layer cannot be had.
        RunError: the checkpoint does not fit.
    """
    parallel = start_parallel(config.parallel, config.device)
    try:
        config, place = parallel.shared((config, place))
        assert place is not None  # rank 0 gave it
        print_into(attempt_dir(place.run_dir, place.attempt))
        parallel = parallel.laid_out(config.parallel)
        rewinds, back = config.monitor.rewinds, None
        while True:
            outcome = _attempt(config, place, stop, parallel, rewinds, back.trouble if back else None)
            back = outcome.rewind
            if back is None:
                return outcome
            rewinds -= 1
            config = back.config
            if parallel.is_first:
                place = rewound_run(place, back.checkpoint, config, back.patch)
                began(place)
            place = parallel.shared(place)
            assert place is not None  # rank 0 gave it
    finally:
        stop_parallel(parallel)


def _attempt(
    config: TrainConfig, place: Place, stop: StopFlag, parallel: Parallel, rewinds: int, mended: Trouble | None
) -> Outcome:
    """One attempt, from building everything to its exit record; nothing of it is left for the next one.

    ``mended`` is what a rewind to this attempt has gone back before.
    """
    if asked := parallel.highest(stop.number):
        return Outcome("stopped", place.start_step, f"{reason(asked)}, before the first step", asked)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    with explained_at_start():
        session = build_session(config, parallel, resumed=place.checkpoint is not None)
        parts = checkpoint.restore(place.checkpoint, session.state, parallel) if place.checkpoint else []
    display = _display(session)
    critical = Critical(config, rewinds, mended)
    try:
        with attach(session, place, critical, display) as mon:
            _announce(session, place, parts, display, mon)
            with named_failures(place.run_dir, place.attempt, parallel):
                outcome = run(session, place, parts, mon, display, stop, critical)
            mon.close(outcome.word, outcome.reason, signal=outcome.signal)
    finally:
        display.close()
    return outcome


def run(
    session: Session,
    place: Place,
    parts: list[checkpoint.Part],
    mon: Any,
    display: Display,
    stop: StopFlag,
    critical: Critical,
) -> Outcome:
    """Every remaining step, with what is due between steps; every checkpoint is on disk when it returns."""
    saver = checkpoint.Saver(
        place.checkpoints, session.config.checkpoint, attempt=place.attempt, parallel=session.parallel
    )
    requests = Requests(place, session.parallel, mon, display.say)
    ended: Outcome | None = None
    try:
        outcome = _steps(session, place, parts, saver, mon, display, stop, critical, requests)
        saver.wait()
        ended = outcome
    except Exception as error:
        saver.join()  # without the others, who may be gone; a person who insists (KeyboardInterrupt) does not wait
        if is_out_of_memory(error) and session.layout.alone:
            with mon.phase("memory"):  # its forward pass is no step
                raise out_of_memory(session, error) from error
        raise
    finally:
        lost = tell_saves(saver, mon, display, requests)
        if ended is not None and lost == session.state.step:
            ended = replace(ended, reason=f"{ended.reason}, but its checkpoint could not be written")
        requests.close(f"{ended.word} after step {ended.step}: {ended.reason}" if ended else None)
    return ended


def _steps(
    session: Session,
    place: Place,
    parts: list[checkpoint.Part],
    saver: checkpoint.Saver,
    mon: Any,
    display: Display,
    stop: StopFlag,
    critical: Critical,
    requests: Requests,
) -> Outcome:
    config, state, parallel = session.config, session.state, session.parallel
    saved_at = state.step
    judged_at = min(state.step + fidelity.FIRST_STEPS, config.last_step) if place.checkpoint else None
    while state.step < config.last_step:
        # Every rank leaves here, at the same step. A signal comes before a finding and a request, which rank 0 alone
        # knows of; requests wait for a first step.
        requested = int(state.step > place.start_step and requests.pending)
        asked, rank0 = divmod(parallel.highest(4 * stop.number + 2 * critical.pending + requested), 4)
        found, requested = divmod(rank0, 2)
        if asked:
            if state.step == place.start_step:
                return Outcome("stopped", state.step, f"{reason(asked)}, before the first step", asked)
            if state.step != saved_at:
                save(session, saver, mon)
            return Outcome("stopped", state.step, reason(asked), asked)
        if found:
            outcome = answer_critical(session, place, saver, critical, mon, display)
            if outcome is not None:
                return outcome
            saved_at = state.step
        if requested:
            session, saved_at, why = answer_requests(session, saver, requests, critical, saved_at, mon)
            config = session.config
            if why is not None:
                return Outcome("stopped", state.step, why)
        if requests.paused:
            requests.rest()
            tell_saves(saver, mon, display, requests)
            continue
        training_step(session, mon, display)
        last = state.step == config.last_step
        best, early = False, None
        if last or _due(config.evaluation.every_steps, state.step):
            val_loss = evaluate(session, mon, display)
            best = state.evaluated(val_loss) and config.checkpoint.keep_best
            early = state.early_stopping.evaluated(val_loss)
        if last or best or early or _due(config.checkpoint.every_steps, state.step):
            save(session, saver, mon)
            saved_at = state.step
        tell_saves(saver, mon, display, requests)
        if state.step == judged_at:
            judge_resume(session, place, parts, mon, display)
        if critical.mended and (last or state.step >= critical.mended.onset_step + steps_needed(critical.mended)):
            judge_rewind(session, place, critical, mon, display)
        if early and not last:
            return stop_early(session, place, saver, early, mon, display)
    if config.last_step < config.steps:
        return Outcome("stopped", state.step, f"stop_after = {config.stop_after} of {config.steps} steps")
    return Outcome("finished", state.step, f"all {config.steps} steps")


def training_step(session: Session, mon: Any, display: Display) -> None:
    """One optimizer step."""
    config, state, parallel, faults = session.config, session.state, session.parallel, session.faults
    optimizer, scaler = state.optimizer, state.scaler
    step = state.step + 1
    faults.begin(step)
    lr = faults.lr(config.optimizer.lr * lr_multiplier(config.schedule, step, config.steps))
    set_lr(optimizer, lr)

    _skip_batches(session, mon)
    batch_id = state.sampler.drawn
    _tell_length(session, mon, display)
    micro_batches = [faults.batch(batch) for batch in next_micro_batches(session)]
    tokens = parallel.total(sum(batch.tokens for batch in micro_batches))
    counted = max(1, tokens)  # a step without any target has a loss and a gradient of 0

    def loss_of(model: nn.Module, batch: Batch) -> Tensor:
        batch = _attacked(session, batch, mon)
        with session.precision.autocast():
            return session.task.loss(model, batch)

    def scaled(loss: Tensor) -> Tensor:
        # Every token of the step weighs the same, however they fall into micro-batches and ranks. Gradients are
        # averaged over the shares of the data, so their number is multiplied back.
        return scaler.scale(loss * (parallel.data_size / counted))

    loss_sum = session.layout.gradients(session.forward, micro_batches, loss_of, scaled, reduce=not faults.unreduced)

    scaler.unscale_(optimizer)
    grad_norm = state.clipping.clip(mon, off=faults.unclipped)
    add_gradient_noise(mon, state.model.parameters(), config.gradient_noise, config.seed, step)
    faults.before_update(optimizer)
    scaler.step(optimizer)  # fp16: left out when a gradient overflowed
    scaler.update()
    faults.after_update(optimizer)
    if state.ema is not None:
        state.ema.update_parameters(state.model)
    if not faults.keep_gradients:
        optimizer.zero_grad(set_to_none=True)

    loss = parallel.summed(loss_sum) / counted  # stays on the device; nobody waits for it here
    state.step = step
    state.tokens += tokens
    mon.step(loss=loss, tokens=tokens, batch_id=batch_id)
    if session.layout.alone:
        session.samples.after_step(step, mon, micro_batches[0])
    display.step(step, tokens, lr, loss, grad_norm)


def next_micro_batches(session: Session) -> list[Batch]:
    """This rank's micro-batches of the next step, on the CPU.

    Every rank draws the whole step and takes its share: one process, or many, then train on the same examples.
    """
    config, parallel = session.config, session.parallel
    indices = session.state.sampler.take(config.batch_size)
    shares = indices.view(config.grad_accum_steps, parallel.data_size, -1)[:, parallel.data_rank]  # [micro, examples]
    length = sequence_length(config, session.state.step + 1)
    batches = [session.task.train_batch(share) for share in shares]
    return batches if length is None else [batch.cut(length) for batch in batches]


def evaluate(session: Session, mon: Any, display: Display) -> float:
    """Mean loss per token on the held-out batches, the same ones every time, in the task's unit.

    Records what else the task measures there, the loss of the running mean of the weights where one is kept, and what a
    text model writes.
    """
    state, task, size = session.state, session.task, session.config.evaluation.sample_bytes
    with mon.phase("eval"):
        measured = held_out(session, session.together)
        if state.ema is not None:
            measured["val_loss_ema"] = held_out(session, state.ema.module)["val_loss"]
        mon.log(measured)
        with evaluating(session.together), session.precision.autocast():
            sample = None if size is None else task.sample(session.together, size)
    val_loss = measured["val_loss"]
    others = "".join(f"  {name.removeprefix('val_')} {value:.4g}" for name, value in list(measured.items())[1:])
    display.say(f"step {state.step}  held-out loss {val_loss:.4f} {task.loss_unit} per {_counted(task)}{others}")
    if sample is not None and session.parallel.is_first:
        prompt, text = sample
        mon.event("sample", prompt=prompt, text=text)
        display.say("\n".join(f"  | {line}" for line in f"{prompt}»{text}".splitlines()))
    return val_loss


def held_out(session: Session, model: nn.Module) -> dict[str, float]:
    """What the task measures of ``model`` on the held-out batches of all ranks, by the names it is recorded under."""
    parallel, task = session.parallel, session.task
    sums = torch.zeros(len(task.score_names), dtype=torch.float64, device=parallel.device)
    with evaluating(model), session.precision.autocast():
        for batch in session.val_batches:
            # not through the DDP wrapper: ranks may hold different numbers of batches
            sums += task.scores(model, batch)
    tokens = parallel.total(sum(batch.tokens for batch in session.val_batches))
    return task.held_out(dict(zip(task.score_names, (parallel.summed(sums) / tokens).tolist(), strict=True)))


def stop_early(
    session: Session, place: Place, saver: checkpoint.Saver, why: str, mon: Any, display: Display
) -> Outcome:
    """End before the last step; the model has its best weights again where that is asked for.

    The last checkpoint holds the weights as they came out of training, so that it can be resumed; those of the lowest
    held-out loss are in the checkpoint of their own step.
    """
    state = session.state
    if state.best_step is not None:  # else every evaluation gave NaN
        why += f"; the lowest was {state.best_loss:.4f} after step {state.best_step}"
        best = place.checkpoints / f"{state.best_step:08d}"
        saver.wait()  # it may be the one that is being written
        if session.config.early_stopping.restore_best and best.is_dir():
            checkpoint.load_weights(best, state.model, session.parallel.device)
    mon.event("early_stop", text=why, best_step=state.best_step)
    display.say(f"step {state.step}  {why}")
    return Outcome("finished", state.step, why)


def answer_critical(
    session: Session, place: Place, saver: checkpoint.Saver, critical: Critical, mon: Any, display: Display
) -> Outcome | None:
    """Do what ``monitor.on_critical`` says, on every rank; the end of the attempt, or None when training goes on."""
    state, parallel, action = session.state, session.parallel, session.config.monitor.on_critical
    finding = parallel.shared(critical.take())
    why = said(finding)
    if critical.mended:
        judge_rewind(session, place, critical, mon, display)
    if action == "rewind":
        saver.wait()  # the checkpoint to go back to may be the one that is being written
        back = parallel.shared(critical.way_back(finding, place) if parallel.is_first else None)
        if isinstance(back, Rewind):
            to = back.checkpoint.step
            text = f"back to step {to} after a {why}"
            mon.event("rewind", text=text, to_step=to, onset_step=finding["incident_step"], patch=dict(back.patch))
            display.say(f"step {state.step}  {text}")
            return Outcome("stopped", state.step, text, rewind=back)
        why = f"{why}; not rewound: {back}"
    save(session, saver, mon, after_finding=why)
    if action == "checkpoint":
        return None
    mon.event("stop", text=why)
    return Outcome("stopped", state.step, why)


def answer_requests(
    session: Session, saver: checkpoint.Saver, requests: Requests, critical: Critical, saved_at: int, mon: Any
) -> tuple[Session, int, str | None]:
    """Do what people have asked for, on every rank: the session as it goes on, the step of the last checkpoint, and why
    the attempt ends, None when it goes on."""
    state = session.state
    for request in requests.take():
        if request.do in ("checkpoint", "stop") and state.step != saved_at:
            save(session, saver, mon)
            saved_at = state.step
        if request.do == "stop":
            return session, saved_at, requests.stop(request)
        if request.do == "checkpoint":
            requests.wait_for_checkpoint(request, state.step)
        elif request.do == "pause":
            requests.pause(request)
        elif request.do == "continue":
            requests.go_on(request)
        elif request.do == "record_dense":
            requests.record_dense(request)
        else:
            session = replace(session, config=requests.changed(request, session.config, state.step))
            state.clipping.change(session.config.clip)
            critical.change(session.config)
    return session, saved_at, None


def save(session: Session, saver: checkpoint.Saver, mon: Any, after_finding: str | None = None) -> None:
    """Begin the checkpoint of the present step."""
    with mon.phase("checkpoint"):
        mon.sync()  # a run resumed from here has the rows up to here
        saver.save(session.state, after_finding)


def tell_saves(saver: checkpoint.Saver, mon: Any, display: Display, requests: Requests) -> int | None:
    """Record what has become of checkpoints; gives back the step of the last one that could not be written, if any."""
    lost = None
    for saved in saver.reports():
        if saved.problem is None:
            path = f"checkpoints/{saved.path.name}"
            mon.event("checkpoint", step=saved.step, path=path, seconds=saved.seconds, bytes=saved.size)
            copy = f", from a copy of {saved.copy_size / 2**20:.1f} MiB in memory" if saved.copy_size else ""
            display.say(f"step {saved.step}  checkpoint of {saved.size / 2**20:.1f} MiB in {saved.seconds:.2f} s{copy}")
        else:
            lost = saved.step
            mon.event("checkpoint_failed", step=saved.step, text=saved.problem)
            display.say(f"step {saved.step}  the checkpoint could not be written, training goes on: {saved.problem}")
        requests.saved(saved.step, saved.problem)
    return lost


def judge_resume(session: Session, place: Place, parts: list[checkpoint.Part], mon: Any, display: Display) -> None:
    """Record whether the steps since the resume go on as the training before it, once, when there are enough."""
    if not session.parallel.is_first or not session.config.monitor.enabled:
        return
    with mon.phase("resume check"):
        mon.sync()
        try:
            found = fidelity.follow_on(open_run(place.run_dir), place.attempt)
        except RunError as error:
            display.say(f"the resume cannot be checked: {error}")
            return
    told = fidelity.fields({part.name: part.problem for part in parts}, place.changed, found)
    mon.event("fidelity", step=place.start_step, **told)
    display.say(f"resumed after step {place.start_step}, {told['verdict']}: {told['text']}")


def judge_rewind(session: Session, place: Place, critical: Critical, mon: Any, display: Display) -> None:
    """Record, once, whether what this attempt has gone back before is gone, moved or came back."""
    trouble, critical.mended = critical.mended, None
    if trouble is None or not session.parallel.is_first or not session.config.monitor.enabled:
        return
    with mon.phase("rewind check"):
        mon.sync()
        try:
            signals = Signals.from_run(open_run(place.run_dir))
        except RunError as error:
            display.say(f"the rewind cannot be judged: {error}")
            return
        outcome = judge(trouble, signals, place.start_step, ended=session.state.step == session.config.last_step)
    told = {"word": outcome.word, "text": outcome.text, "loss": outcome.loss, "loss_before": outcome.loss_before}
    mon.event("rewind_outcome", to_step=place.start_step, onset_step=trouble.onset_step, **told)
    display.say(f"step {session.state.step}  after the rewind: {outcome.word}, {outcome.text}")


# --- before the first step --------------------------------------------------------------------------------------------


def build_session(config: TrainConfig, parallel: Parallel, *, resumed: bool = False) -> Session:
    """Data, model, optimizer and everything else, freshly initialised from the seed.

    Args:
        resumed: whether a checkpoint brings the weights: those of ``model.weights`` may then be gone.
    """
    seed_everything(config.seed)
    task = build_task(config)
    layout = build_layout(config, parallel)
    model = build_model(task, config, resumed=resumed).to(parallel.device)
    sizes = _sizes(model)
    model = layout.place(model)
    ema = build_ema(model, config.ema)
    faults = Faults(config.fault, model, parallel.rank)
    precision = build_precision(config.precision, parallel.device)
    state = checkpoint.State(
        model,
        layout.optimizer(build_optimizer(model, config.optimizer)),
        precision.scaler,
        EpochSampler(task.train_size, config.seed),
        Clipping(config.clip, model),
        EarlyStopping(config.early_stopping),
        ema,
        in_pieces=not layout.whole,
    )
    wrapped = layout.wrap(model)
    session = Session(
        config,
        parallel,
        layout,
        precision,
        task,
        sizes,
        state,
        wrapped,
        compiled(wrapped, config.compile, parallel.device),
        layout.together(model),
        faults,
        _val_batches(config, parallel, layout, task),
        LandscapeSamples(config, parallel, model, task, precision),
    )
    # From here on only dropout draws numbers, other ones on each rank that holds other activations.
    seed_everything(config.seed + 1 + parallel.random_stream)
    return session


def attach(session: Session, place: Place, critical: Critical, display: Display) -> Any:
    """The monitor of this attempt and rank, or its stand-in."""

    def note(finding: Mapping[str, Any]) -> None:
        display.say(f"step {session.state.step}  {said(finding)}")
        critical.note(finding)

    config, state, parallel = session.config, session.state, session.parallel
    if not config.monitor.enabled:
        return Unmonitored(state.model, split_layers=session.layout.stages)
    return monitor.attach(
        session.forward,
        state.optimizer,
        run=place.run_dir,
        attempt=place.attempt,
        rank=parallel.rank,
        world_size=parallel.world_size,
        task=session.task.name,
        planned_steps=config.steps,
        tokens_per_step=config.batch_size * session.task.tokens_per_example,
        scaler=state.scaler if state.scaler.is_enabled() else None,
        landscape_every=config.monitor.landscape_every if session.layout.alone else None,
        split_layers=session.layout.stages,
        budget=config.monitor.budget,
        start_step=state.step,
        start_tokens=state.tokens,
        on_critical=note if config.monitor.on_critical else None,
        requests=tuple(KINDS),
        alerts=_alerts(session, display),
    )


def _alerts(session: Session, display: Display) -> monitor.Alerts | None:
    """Whom to tell; a variable that is not set is said, and training goes on."""
    config = session.config.alerts
    if config.webhook is None or not session.parallel.is_first:
        return None
    try:
        return alerts_from(config.webhook, shape=config.shape, level=config.level, every_s=config.every_s)
    except ConfigError as error:
        display.say(f"nobody will be told of findings: {error}")
        return None


def seed_everything(seed: int) -> None:
    """Start the random numbers of torch, numpy and Python at ``seed``."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def _val_batches(config: TrainConfig, parallel: Parallel, layout: Layout, task: Task) -> list[Batch]:
    """Examples spread evenly over the held-out data, in batches of a micro-batch's size, dealt out in turn."""
    size = config.batch_size // (config.grad_accum_steps * parallel.data_size)
    count = min(task.val_size, config.evaluation.batches * config.batch_size)
    parts = torch.linspace(0, task.val_size - 1, count).long().split(size)
    mine = [task.val_batch(part) for part in parts[parallel.data_rank :: parallel.data_size]]
    if not layout.alone and len(mine) < -(-len(parts) // parallel.data_size):
        # All ranks run every forward together, so those that would be one short run one that counts for nothing.
        spare = task.val_batch(parts[0])
        mine.append(replace(spare, targets=torch.full_like(spare.targets, IGNORED)))
    return [batch.to(parallel.device) for batch in mine]


def _display(session: Session) -> Display:
    if not session.parallel.is_first:
        return Silent()
    return build_display(session.config.steps, session.state.step, session.config.log_every_s)


def _counted(task: Task) -> str:
    """What the loss is the mean of."""
    return "token" if task.tokens_per_example > 1 else "example"


def _announce(session: Session, place: Place, parts: list[checkpoint.Part], display: Display, mon: Any) -> None:
    parameters, frozen = session.sizes
    processes = f", {session.parallel.layout}" if session.parallel.world_size > 1 else ""
    display.say(f"  {session.task.data_summary}")
    display.say(
        f"  {parameters:,} parameters{f', {frozen:,} of them frozen' if frozen else ''}, "
        f"{session.config.batch_size * session.task.tokens_per_example:,} {_counted(session.task)}s per step, "
        f"{session.parallel.device}{processes}"
    )
    if place.checkpoint:
        display.say(f"  resumed from {place.checkpoint} after step {session.state.step}")
        remarks = [f"{part.name} not restored exactly: {part.problem}" for part in parts if part.problem]
        mon.event("resume", checkpoint=f"checkpoints/{place.checkpoint.name}", remarks=remarks)
        for remark in remarks:
            display.say(f"  {remark}")


# --- small parts ------------------------------------------------------------------------------------------------------


def _due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def _sizes(model: nn.Module) -> tuple[int, int]:
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, _ in sizes), sum(size for size, trains in sizes if not trains)


def sequence_length(config: TrainConfig, step: int) -> int | None:
    """Tokens that training sequences are cut to at ``step``; None without a curriculum."""
    return None if config.curriculum.kind is None else length_at(config.curriculum, config.task.seq_len, step)


def _skip_batches(session: Session, mon: Any) -> None:
    """Leave out what ``skip`` says, before the step that follows ``skip.after_step``.

    At the beginning of that step and not at a resume: a checkpoint of ``after_step`` has the batches still ahead, one
    of any later step has them behind, so that a training resumed from either goes on the same.
    """
    skip, state = session.config.skip, session.state
    if not skip.batches or state.step != skip.after_step:
        return
    state.sampler.skip(skip.batches * session.config.batch_size)
    mon.event("note", text=f"{skip.batches} batches of the data are left out", step=state.step + 1)


def _tell_length(session: Session, mon: Any, display: Display) -> None:
    """Say so when the step that begins has longer sequences than the one before, and at the first step."""
    step = session.state.step + 1
    length = sequence_length(session.config, step)
    if length is not None and (step == 1 or length != sequence_length(session.config, step - 1)):
        mon.event("data_stage", text=f"sequences of {length} tokens", seq_len=length, step=step)
        display.say(f"step {step}  sequences of {length} tokens")


def _attacked(session: Session, batch: Batch, mon: Any) -> Batch:
    """The micro-batch, on the device; moved against the model where adversarial training is on."""
    config, state = session.config.adversarial, session.state
    if config.epsilon is None:
        return batch
    with mon.phase("adversarial", recorded=False), session.precision.autocast():
        return attacked(session.task, state.model, batch, config, state.scaler)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without gradients; training mode again afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
