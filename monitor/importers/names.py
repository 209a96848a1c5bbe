"""Other tools' names for our signals. What is not known stays under its own name; nothing is dropped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from monitor.signals import CATALOGUE

_T = r"(?:train(?:ing|_inner)?[/_])?"
_V = r"(?:val(?:id(?:ation)?)?|eval(?:uation)?|dev)"
_SIGNALS: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    # signal, factor to its unit, patterns of normalised names (see _normal), the better witness first
    ("train_loss", 1.0, (
        rf"{_T}loss", rf"{_T}lm_loss", r"train(?:ing)?[/_]loss_?step", rf"{_T}total_loss",
        rf"loss[/_]train(?:ing)?|{_T}loss[/_]total", r"trl", r"loss_metrics/global_avg_loss",
        r"train/(?:ce_loss|crossentropyloss)",
        r"(?:train/)?epoch_loss", r"train(?:ing)?[/_](?:avg_|average_|mean_)?loss(?:_?epoch)?",
        r"(?:avg|average|mean)_(?:train(?:ing)?_)?loss", r"loss/train_epoch|losses?/(?:train_)?loss", rf"{_T}cost",
        r"loss(?:es)?/total_loss|total_losses|total|train(?:ing)?_losses", rf"{_T}(?:xent|cross_entropy|nll(?:_loss)?)",
        r"train(?:ing)?[/_](?:binary_|multi_|m)?log_?loss", r"train(?:ing)?[/_](?:rmse|l[12]|mae|mse)",
        r"(?:train_)?loss/train/total|train/cross_entropy_loss", r"info/learner/.*/(?:total_)?loss", r"err")),
    ("val_loss", 1.0, (
        rf"{_V}[/_](?:total_|lm_|avg_|average_|mean_)?loss(?:es|_value|_epoch|[/_]total)?", rf"loss[/_]{_V}", r"tel",
        r"(?:validation|val)/epoch_loss", r"test[/_](?:avg_|average_)?loss|loss[/_]test",
        rf"(?:{_V}|test)(?:_\d)?[/_](?:xent|cross_entropy|nll(?:_loss)?|(?:binary_|multi_|m)?log_?loss)",
        rf"(?:{_V}|test)(?:_\d)?[/_](?:rmse|l[12]|mae|mse)")),
    ("grad_norm_preclip", 1.0, (
        rf"{_T}grad(?:ient)?s?_?norm(?:_total)?", rf"{_T}gnorm", rf"{_T}global_grad(?:ient)?_norm",
        r"grad_2\.0_norm_total", r"optim/total_grad_norm",
        r"(?:train|optim|grad|gradients?|lm)[/_](?:total_|global_)?grad(?:ient)?[_-]?norm", r"total_(?:grad_)?norm",
        r"norm", r"grdn|grad", r"(?:train_)?l2_norm/grad/global")),
    ("lr", 1.0, (
        rf"{_T}(?:lr|learning_rate)", r"(?:train_)?lr-[\w.]+(?:/pg1|/group0)?",
        r"info/learner/.*/cur_lr", r"lr[/_](?:pg)?0", r"learning_rate[/_]0",
        r"optim/learning_rate(?:_group0)?",
        r"(?:optim|optimizer|opt|hp|hyperparameters|charts|sched|schedule)[/_](?:lr|learning_rate)", r"optim_lr")),
    ("loss_scale", 1.0, (rf"{_T}(?:loss_scale|grad_scale|loss_scaling_factor)",)),
    ("tokens", 1.0, (
        r"(?:train/)?num_input_tokens_seen", r"(?:train/)?(?:tokens_seen|total_tokens|consumed_tokens)")),
    ("tokens_per_s", 1.0, (r"(?:train/|throughput/)?(?:tokens?_per_sec(?:ond)?|tok(?:en)?s?/s(?:ec)?)(?:_\(k\))?",)),
    ("step_time_s", 1e-3, (
        r"(?:train/)?(?:iter_?|step_|elapsed_)?time(?:_per_(?:iteration|step|iter))?_\(ms\)", r"dt_\(ms\)", r"dt_ms",
        r"ms", r"step_time_ms")),
    ("step_time_s", 1.0, (
        r"(?:iter_time|elapsed_time_per_iteration)_\(s\)", r"step_time(?:_\(s\))?|step_time_s", r"dt_\(s\)")),
)  # fmt: skip
_COMPILED = [
    (signal, factor, place, re.compile(pattern))
    for signal, factor, patterns in _SIGNALS
    for place, pattern in enumerate(patterns)
]
_SOME_LOSS = re.compile(
    rf"(?!(?:.*[/_])?(?:{_V}|test)[/_]|.*(?:policy|value|actor|critic|entropy|surrogate))(?:.*[/_])?\w?loss"
)
"""A loss of whatever kind, as ``noise_step_loss``; it is the training's where no other is."""
_GROUP = re.compile(r"(?:train/)?(?:lr|learning_rate)(?:-[\w.]+)?[/_](pg)?(\d{1,3})")
_STEPS = (
    "global_step", "trainer/global_step", "train/global_step", "train/train_global_step", "num_updates",
    "train_num_updates", "current_steps", "_step", "step", "steps", "iteration", "iterations", "iter", "n_iter", "it",
    "update", "updates", "batch", "total_timesteps", "time/total_timesteps", "total_steps", "total/steps", "steps_done",
    "timesteps", "timesteps_total", "num_timesteps", "training_iteration", "progress/tick", "itr",
    "round", "episode", "episodes", "epoch",
    "epochs", "train/epoch",
)  # fmt: skip


_ENGLISH = {
    "训练集": "train ", "训练": "train ", "訓練": "train ", "훈련": "train ", "验证集": "val ", "验证": "val ",
    "検証": "val ", "검증": "val ", "测试": "test ", "損失": "loss", "损失值": "loss", "损失": "loss", "손실": "loss",
    "准确率": "accuracy", "정확도": "accuracy", "学习率": "lr", "学習率": "lr", "梯度范数": "grad_norm",
    "轮次": "epoch", "步数": "step", "에폭": "epoch",
}  # fmt: skip
_NTH_ROUND = re.compile(r"第\s*(\d+)\s*[轮輪]")
_FOREIGN = re.compile("|".join(sorted(_ENGLISH, key=len, reverse=True)))
_WRAPPED = re.compile(r"^(?:metrics?|logs?|scalars?)/")
"""A folder that says nothing but that metrics are in it."""


def english(text: str) -> str:
    """``text`` with the words of training in Chinese, Japanese and Korean put into English."""
    if text.isascii():
        return text
    return _NTH_ROUND.sub(r"epoch \1", _FOREIGN.sub(lambda word: _ENGLISH[word[0]], text))


def _normal(name: str) -> str:
    """Lower case, words joined by ``_``: ``Train Loss``, ``train-loss`` and ``TrainLoss`` are one."""
    text = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", english(name).strip())
    text = _WRAPPED.sub("", re.sub(r"\.?[\s:]+", "_", text.lower()))
    return text if text.startswith("lr-") else re.sub(r"(?<=[a-z])[-.](?=[a-z])", "_", text)


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a foreign name is recorded as."""

    name: str
    factor: float = 1.0


class Naming:
    """Decides by the first rows, then only adds: a name keeps its meaning for the whole source."""

    def __init__(self, first: Mapping[str, int]) -> None:
        """``first``: the names of the first rows, with how often each came."""
        self.meanings: dict[str, Meaning] = {}
        self._first = tuple(first)
        wanted = [
            (place, -count, order, name, signal, factor)
            for order, (name, count) in enumerate(first.items())
            for signal, factor, place in _candidates(name)
        ]
        most: dict[str, int] = {}
        for _, count, _, _, signal, _ in wanted:
            most[signal] = min(most.get(signal, 0), count)
        # A witness that speaks a tenth as often as another is a summary; among the others the better name wins.
        wanted.sort(key=lambda one: (one[1] * 10 > most[one[4]], *one[:3]))
        for _, _, _, name, signal, factor in wanted:
            if name not in self.meanings and not self._taken(signal):
                self.meanings[name] = Meaning(signal, factor)
        self._twin()
        only = [name for name in first if _SOME_LOSS.fullmatch(_normal(name))]
        if len(only) == 1 and not self._taken("train_loss") and only[0] not in self.meanings:
            self.meanings[only[0]] = Meaning("train_loss")
            self._twin()
        for name in first:
            self.of(name)

    def _twin(self) -> None:
        """Of the loss that is the training's, the one that is called the same of a validation."""
        mine = next((_normal(name) for name, meaning in self.meanings.items() if meaning.name == "train_loss"), None)
        if mine is None or self._taken("val_loss"):
            return
        wanted = re.compile(rf"{_V}[/_]{re.escape(re.sub('^train(ing)?[/_]', '', mine))}")
        twin = next((name for name in self._first if wanted.fullmatch(_normal(name))), None)
        if twin is not None and twin not in self.meanings:
            self.meanings[twin] = Meaning("val_loss")

    def of(self, name: str) -> Meaning:
        """What ``name`` is recorded as; of a new one that it may be, if nothing else is yet."""
        known = self.meanings.get(name)
        if known is None:
            known = next((Meaning(s, f) for s, f, _ in _candidates(name) if not self._taken(s)), None) or self._own(
                name
            )
            self.meanings[name] = known
        return known

    def _own(self, name: str) -> Meaning:
        """Its own name, unless that is one of ours, or another's that was mapped to it."""
        own = name.replace("\0", "")[:500].encode("utf-8", "replace").decode() or "unnamed"
        if own in CATALOGUE or own in ("step", "time"):
            own = f"imported/{own}"
        while self._taken(own):
            own += "'"
        return Meaning(own)

    def _taken(self, name: str) -> bool:
        return any(meaning.name == name for meaning in self.meanings.values())

    def lines(self) -> list[str]:
        """``foreign -> ours`` of what was recognised; the unit's factor where there is one."""
        return [
            f"{foreign} -> {meaning.name}" + (f" (x{meaning.factor:g})" if meaning.factor != 1 else "")
            for foreign, meaning in self.meanings.items()
            if foreign != meaning.name or meaning.name in CATALOGUE
        ]

    def own(self) -> list[str]:
        """The names that stay as they are, not being ours."""
        return [meaning.name for foreign, meaning in self.meanings.items() if meaning.name not in CATALOGUE]


def _candidates(name: str) -> list[tuple[str, float, int]]:
    """``(signal, factor, place)`` of each signal that the name may mean."""
    normal = _normal(name)
    if match := _GROUP.fullmatch(normal):
        group = int(match[2]) - (1 if match[1] and "-" in normal else 0)  # Lightning counts from 1, Ultralytics from 0
        return [("lr" if group <= 0 else f"lr/{group}", 1.0, 0)]
    found = [(signal, factor, place) for signal, factor, place, pattern in _COMPILED if pattern.fullmatch(normal)]
    return found or ([(normal, 1.0, 0)] if normal in CATALOGUE else [])


def step_name(names: Iterable[str]) -> str | None:
    """Which of the names counts the steps; None when none does."""
    known = {english(name).strip().lower().replace(" ", "_"): name for name in names}
    return next((known[name] for name in _STEPS if name in known), None)
