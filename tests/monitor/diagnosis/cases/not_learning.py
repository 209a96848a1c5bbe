"""Cases of not-learning: a loss no better than at the start."""

from __future__ import annotations

import numpy as np

from monitor.diagnosis.view import Signals
from tests.monitor.diagnosis.cases.drawn import AT, STEPS, Case, constant_lr, level, norms, only, put


def flat(at: float, sd: float = 0.01, steps: int = 400) -> np.ndarray:
    return at * np.exp(np.random.default_rng(0).normal(0, sd, steps))


def classes(steps: int = 400) -> np.ndarray:
    return np.full(steps, np.log(10))


def epochs(*losses: float) -> Signals:
    step = 500 * np.arange(1, len(losses) + 1)
    return Signals.from_arrays({"train_loss": (step, np.array(losses)), "epoch": (step, step / 500)})


def piece(sd: float, first: int) -> Signals:
    """Nine single steps from step ``first`` on, around ln 1000."""
    return Signals.from_arrays({"train_loss": (np.arange(first, first + 9), flat(np.log(1000), sd, steps=9))})


def evaluated(*val: float, train: float = np.log(4)) -> Signals:
    """Evaluations every hundred steps beside a training loss that scatters by 2 %."""
    step, row = 100 * np.arange(1, len(val) + 1), 10 * np.arange(1, 10 * len(val) + 1)
    return Signals.from_arrays(
        {"train_loss": (row, flat(train, sd=0.02, steps=len(row))), "val_loss": (step, np.array(val))}
    )


GUESSES = (1.38630, 1.38628, 1.38619, 1.38641, 1.38629, 1.38630)


def grouped(spread: float, gradient: float, rows: int = 40) -> Signals:
    """GRPO: a loss of 0, rewards of a group that differ by ``spread``, a gradient norm."""
    std = put(np.zeros(rows), rows // 2, spread)
    return only(train_loss=np.zeros(rows), reward=std / 2, reward_std=std, grad_norm_preclip=np.full(rows, gradient))


def down_to(classes: int, start: float, rows: int = 26) -> Signals:
    """Epochs that come down from ``start`` times a guess to within a thousandth of it."""
    step = np.arange(rows)
    loss = np.log(classes) * (1 + (start - 1) * np.exp(-step / 2) + 5e-4 * np.exp(-step / 10))
    return Signals.from_arrays({"train_loss": (step, loss), "epoch": (step, step.astype(float))})


def heard(wer: float, fall: float) -> Signals:
    """Nine epochs of speech recognition, the loss of which falls by ``fall`` in its last two thirds."""
    step = 100 * np.arange(1, 31)
    loss = np.r_[np.linspace(30, 5, 10), np.linspace(5, 5 * (1 - fall), 20)] * flat(1.0, sd=0.003, steps=30)
    at = step[4::5]
    return Signals.from_arrays(
        {
            "train_loss": (step, loss),
            "epoch": (step, step / 330),
            "eval_wer": (at, np.r_[np.ones(len(at) - 1), wer]),
        }
    )


def fading(fall: float, end: float, sd: float = 0.04) -> Signals:
    """Sixty losses that scatter by ``sd`` and fall by ``fall``; the gradient norm goes down to ``end`` of its first."""
    share = np.linspace(0, 1, 60)
    return only(train_loss=flat(1.0, sd, steps=60) * (1 - fall * share), grad_norm_preclip=20 * end**share)


def resting(at: float) -> Signals:
    return only(train_loss=np.array([82.8186, 79.2832, at, at, at]))


def unmoved(gradient: float, lr: float) -> Signals:
    return only(
        train_loss=np.array([12.1, 12.06, 12.0, 12.07]), grad_norm_preclip=np.full(4, gradient), lr=np.full(4, lr)
    )


def still(gradient: float) -> Signals:
    """A loss that comes down and then stands still to all digits, at a gradient norm of so many times the first."""
    loss = np.r_[0.5 + np.exp(-np.arange(100) / 20), np.full(100, 0.503271)]
    norm = np.r_[np.exp(-np.arange(100) / 20), np.full(100, 1.0)] * np.r_[np.ones(100), np.full(100, gradient)]
    return only(train_loss=loss, grad_norm_preclip=norm)


FIRES = (
    Case("stands still at half the gradient", lambda: still(0.5), "warning", onset=101),
    Case("stands still without any gradient", lambda: still(0.0), "warning", onset=101),
    Case(
        "wild, then the same number twenty times",  # tensorflow/tensorflow#12287
        lambda: only(
            train_loss=np.r_[0.6773, 2.4587, 5.3353, 1.0234, 10.6901, 1.9899, 3.5713, 0.6869, np.full(20, 0.6931)]
        ),
        "warning",
        onset=9,
        words="0.693",
    ),
    Case(
        "at a uniform guess for 200 steps",
        lambda: only(train_loss=flat(np.log(10), steps=200), log_classes=classes(200)),
        "info",
        onset=None,
    ),
    Case(
        "epochs at ln 2", lambda: epochs(0.71, 0.6934, 0.6931, 0.6932, 0.6929), "warning", onset=500, words="2 classes"
    ),
    Case(
        "nine steps of a late hour, all of them a guess",  # soumith/imagenet-multiGPU.torch#70
        lambda: piece(2e-4, first=1383),
        "warning",
        onset=1383,
        words="1000 classes",
    ),
    Case(
        "every evaluation a guess, the training loss around it",
        lambda: evaluated(*GUESSES),
        "warning",
        onset=100,
        words="Validation loss stays at 1.39, that of a uniform guess between 4 classes, in all 6 rows",
    ),
    Case(
        "rewards of a group never differ, only the KL has a gradient",
        lambda: grouped(0.0, gradient=0.1),
        "warning",
        onset=1,
        words="reward_std is exactly 0 in all 40 rows",
    ),
    Case(
        "a reward, no loss and no gradient",
        lambda: only(train_loss=np.zeros(40), reward=np.full(40, 0.1), grad_norm_preclip=np.zeros(40)),
        "warning",
        onset=1,
        words="loss and gradient norm are exactly 0",
    ),
    Case(
        "down to a guess from a bad start", lambda: down_to(2, start=1.14), "warning", onset=0, words="2 classes"
    ),  # BelaBartok39/aes_neural_trainer
    Case("Caffe's largest loss", lambda: resting(87.3365), "critical", onset=3, words="87.3365"),
    Case("Keras' largest loss", lambda: resting(16.1181), "critical", onset=3, words="1e-07"),
    Case(
        "no word recognised in nine epochs",  # CheeseThuong/Vietnamese-asr
        lambda: heard(wer=1.0, fall=0.0),
        "warning",
        onset=500,
        words="nothing is recognised",
    ),
    Case(
        "the gradient is gone and nothing learnt",  # Daneshpajouh/ChromaGuide-CRISPR
        lambda: fading(0.0, end=1e-3),
        "warning",
        onset=1,
        words="while the gradient norm fell",
    ),
    Case(
        "no step is taken",  # cocoshe/MIMIGenRec#3
        lambda: unmoved(gradient=0.0, lr=0.0),
        "warning",
        onset=1,
        words="no step was taken",
    ),
    Case("zero from the start", lambda: only(train_loss=np.zeros(40)), "warning", onset=1, words="exactly 0"),
    Case(
        "4 % better in ten epochs", lambda: epochs(*np.linspace(1.84, 1.77, 10)), "info", onset=500, words="10 epochs"
    ),
    Case("flat", lambda: only(train_loss=flat(0.5)), "info", onset=1, words="has not improved"),
    Case(
        "flat at a uniform guess",
        lambda: only(train_loss=flat(np.log(10)), log_classes=classes(), grad_norm_preclip=norms(steps=400)),
        "warning",
        onset=1,
        words="uniform guess",
    ),
    Case(
        "the same number to the end",
        lambda: only(train_loss=put(level(), slice(AT, None), 2.30259)),
        "warning",
        words="at every step",
    ),
)

NEAR_MISSES = (
    Case("comes down to ln 10 from afar, as a language model may", lambda: down_to(10, start=4.0)),
    Case("no word yet, and the loss falls", lambda: heard(wer=1.0, fall=0.2)),
    Case("the first word at last", lambda: heard(wer=0.9, fall=0.0)),
    Case("a gradient that fades with the loss", lambda: fading(0.2, end=1e-3)),
    Case("one batch of all the data at its minimum", lambda: fading(0.0, end=1e-3, sd=1e-3)),
    Case("a gradient that comes down to a tenth", lambda: fading(0.0, end=0.1)),
    Case("evaluations that leave the guess", lambda: evaluated(*GUESSES, 1.38, 1.37)),
    Case("evaluations at a guess, learnt by heart", lambda: evaluated(*GUESSES, train=1.3)),
    Case("evaluations near ln 4", lambda: evaluated(1.384, 1.385, 1.386, 1.387, 1.388, 1.389)),
    Case("four evaluations, all of them a guess", lambda: evaluated(*GUESSES[:4])),
    Case("stands still at its minimum", lambda: still(1e-4)),
    Case(
        "sixty steps near ln 2, as preference tuning begins", lambda: only(train_loss=flat(0.6931, sd=0.002, steps=60))
    ),
    Case("epochs that leave ln 2", lambda: epochs(*np.linspace(0.6931, 0.65, 40))),
    Case(
        "zero from the start, gradients flow",
        lambda: only(train_loss=np.zeros(400), grad_norm_preclip=norms(steps=400)),
    ),
    Case("a tenth better", lambda: only(train_loss=flat(1.0) * np.linspace(1, 0.9, 400))),
    Case("rounded to two digits", lambda: only(train_loss=np.round(level(sd=0.001), 1), lr=constant_lr())),
    Case("too early", lambda: only(train_loss=flat(0.5, steps=90))),
)

ABSTAINS = (
    Case("a loss near Caffe's largest", lambda: resting(87.34), words="5 losses"),
    Case("four rows of a norm that nobody measured", lambda: unmoved(gradient=0.0, lr=1e-4), words="4 losses"),
    Case("four rows of a rate that is rounded", lambda: unmoved(gradient=0.5, lr=0.0), words="4 losses"),
    Case(
        "a norm that was logged as 0, the reward rises",
        lambda: only(train_loss=np.zeros(400), reward=np.linspace(0.1, 0.9, 400), grad_norm_preclip=np.zeros(400)),
        words="zero or negative",
    ),
    Case("one group whose rewards differ", lambda: grouped(0.5, gradient=0.1), words="zero or negative"),
    Case("nine rows of rewards alike", lambda: grouped(0.0, gradient=0.1, rows=9), words="9 losses"),
    Case("nine steps of a late hour near a guess", lambda: piece(0.002, first=1383), words="9 losses"),
    Case("the first nine steps, all of them a guess", lambda: piece(2e-4, first=1), words="9 losses"),
    Case(
        "zero from the start, with a reward",
        lambda: only(train_loss=np.zeros(400), reward=level(steps=400)),
        words="zero or negative",
    ),
    Case("zeros later on", lambda: only(train_loss=put(level(), slice(AT, None), 0.0)), words="zero or negative"),
    Case("no loss", lambda: only(grad_norm_preclip=norms()), words="train_loss not recorded"),
    Case("few losses", lambda: only(train_loss=level()[:12]), words="12 losses"),
    Case("a loss about zero", lambda: only(train_loss=0.1 * np.sin(np.arange(STEPS))), words="zero or negative"),
)
