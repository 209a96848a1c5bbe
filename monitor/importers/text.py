"""Logs made for people: any line of ``key value``, ``key=value`` or ``key: value``, whoever printed it.

Known by their own lines: nanoGPT, llm.c, Megatron-LM, torchtitan, fairseq, DeepSpeed, Hugging Face's printed dicts,
Keras, timm, mmengine, darknet, Marian, VITS, MindSpore, tqdm's bars, Stable-Baselines3's boxes. Numbers are found
first; what stands before each is its name.
"""

from __future__ import annotations

import datetime as dt
import functools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from monitor.importers import sentences
from monitor.importers.aligned import Aligned
from monitor.importers.blocks import MOST_NAMES, Box, Columns, joined
from monitor.importers.lines import plain, read_lines
from monitor.importers.names import Naming, english
from monitor.importers.own_lines import own_line, rate
from monitor.importers.paragraphs import one_line_each
from monitor.importers.rows import Account, Row, number_of, step_of

LONGEST_METRICS = 1 << 14
"""Characters of a line with metrics; longer ones are data that was printed. Our judgement."""

LONGEST_LABEL = 300
"""Characters before a number that may name it; a log repeats its own, so that they are looked at once."""

_HINT = re.compile(
    r"loss|step|iter|epoch|episode|update|trl:|tel:|eval:|train |val |hella|\d/\d|perplexity|ppl|^\[\d+\]\s|grad norm"
    r"|frame number",
    re.I,
)
_STAMP = re.compile(
    r"(?P<date>\d{4}[-/]\d\d[-/]\d\d)[ T_](?P<time>\d\d:\d\d:\d\d)(?:[.,](?P<part>\d{1,6}))?(?P<zone>Z|[+-]\d\d:?\d\d)?"
)
_CLOCK = re.compile(r"(?<![\w.])(?:\d+ days?, ?)?\d{1,3}:\d\d(?::\d\d(?:\.\d+)?)?(?![\w.:])")
_SPAN = re.compile(r"(?<![\w.])(?:\d+h ?)?\d+m \d+(?:\.\d+)?s(?!\w)")
"""``1h 3m 17s``, as many a tutorial says how long an epoch took."""
_TWO_COUNTS = re.compile(r"^(\W{0,4})\[(\d{1,9})/\d{1,9}\]\s*(?=\[\d{1,9}/\d{1,9}\])")
"""Epoch and batch, as PyTorch's tutorial on GANs has them: ``[0/5][50/1583]``."""
_DATE = re.compile(r"\d{4}[-/]\d\d[-/]\d\d")
_DAY = re.compile(r"^\W{0,4}\d\d[-/]\d\d(?= \d\d:\d\d)")
"""Month and day before a clock, as mmengine stamps its lines."""
_STAMPED = re.compile(r"(?<=.)(?=\[\d{4}[-/]\d\d[-/]\d\d \d\d:\d\d:\d\d[\],.])")
"""Where a second record begins in a line: another writer spoke into a bar, or the line ends were lost."""
_RECORD = re.compile(r"^(\s*\{.*\})(?!.*%\|)[^}]*$")
"""A printed dictionary; what follows it is a remark, or another bar than that of the training."""
_GLOG = re.compile(r"^[IWEF]\d{4} \d\d:\d\d:\d\d\.\d+\s+\d+ [\w.-]+:\d+\] ")
"""What Google's loggers put before each line; no number of it measures anything."""
_ROUND = re.compile(r"^\[(\d{1,9})\]\s+(?=[A-Za-z])")
"""How XGBoost and LightGBM count their rounds, and Flax its steps."""
_RATE = re.compile(r"^ \w+/s(?:ec)?(?= )")
"""What was counted each second is the unit of the number before it, no name of the next."""
_RATED = re.compile(r"(?:current )?(?:lr|learning[ _]rate)", re.I)
_OWNED = re.compile(r"(?<=\w)'s (?=\w)")
_RANK = re.compile(r"\[(?:default|rank|Rank ?|RANK ?|GPU ?)(\d+)\]|\brank[ =:]{1,2}(\d+)\b|^(\d{1,4}): (?=\D)")
_NUMBER = re.compile(
    r"(?<![\w.@/\\-])"
    r"(?P<number>[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])|(?:\d+(?:\.\d*)?|\.\d+)(?:e[-+]?\d+)?"
    r"|nan(?=xxx\b)|nan|inf(?:inity)?))(?:(?<=nan)xxx)?"
    r"(?P<unit>(?: ?(?:ms|us|µs|sec|GiB|MiB|GB|MB|%)|s|it/s|k|m|b|g)(?![\w/]))?"
    r"(?![\w]|\.\d|:\d|-\d)"
    r"(?:\s*/\s*(?P<total>\d+)(?![\w.]))?",
    re.I,
)
_CUT = re.compile(r"[,;|\t\[{(]|\s{2,}|\s-\s|>|[:=](?=.)")
_SHELL = re.compile(r"(?:tensor|array|(?:np|numpy)\.float\d+|float\d*)\(?\[?$")
_AFTER = re.compile(r"\s*(?:(?P<percent>%)\s*)?(?P<name>[A-Za-z][\w/ ]{0,24}?)\s*(?:\||$)")
_KEY = re.compile(r"[A-Za-z_@#][^\s\"']*(?: [^\s\"']+){0,5}")
_SYMBOLS = re.compile(r"^\s*[^\w\s\x00-\x7f]+\ufe0f?\s*")
"""Pictures before a name."""
_BARE = re.compile(r"^(\d+) (train|val|hella\w*) ([-+.\deE]+|nan|inf)$")
_INDEXED = re.compile(r"^\s*(\d{1,12}):[ \t]+([-+]?\d+\.\d+(?:e[-+]?\d+)?|nan|inf)\s*$")
"""A step and one number that nobody named, as NVIDIA's WaveGlow prints its loss."""
_LOSS_AT = re.compile(
    r"^(\W{0,4}(?:train|training|validation|valid|val|test) loss) (\d{1,12}):? +(?=[-+]?\d+\.\d|nan|inf)", re.I
)
"""The step between name and number, as NVIDIA's Tacotron 2 has it: ``Train loss 100 0.52``."""
_BATCHES = re.compile(r"([Bb]atch \[)\d+-(\d+)(?=\])")
"""MXNet's batches since the row before: ``Batch [20-40]``."""
_TAGGED = re.compile(r"\[([A-Za-z][\w /]{0,23})\](?=\s{1,3}[-+]?(?:\d|\.\d|nan\b|inf\b))", re.I)
"""A name in brackets before its number: ``[Loss] 0.31 | [step] 1574``."""
_GLUED = re.compile(r"^\W{0,3}(?:step|iter|iteration)_\d+\b")
"""Names that are joined to their numbers: ``step_20: loss_3.1``."""
_GLUE = re.compile(r"(?<=[A-Za-z])_(?=[-+]?\d)")
_BAR = re.compile(r"^\s*\d+%\|[^|]*\|\s*(\d+)/(\d+) \[")
_VALIDATION = re.compile(r"\b(?:valid|validation|val|eval|evaluation|evaluating|test|testing|dev)\b", re.I)
_TRAINS = re.compile(r"train", re.I)
_LOSS = re.compile(r"loss|perplexity|\bppl\b|reward|\breturns?\b|\bscore\b|accuracy|\bacc\b", re.I)
_SHARE = re.compile(r"acc|correct|precision|recall", re.I)
"""Of these ``9800/10000`` is 0.98; elsewhere what follows the stroke is a limit or another mean."""
_NOT_A_LOSS = re.compile(r"loss[_ ](?:scale|weight|fn|type|coef|lambda|func)", re.I)
_STEPS = (
    "num_updates",
    "global_step",
    "global_steps",
    "step",
    "steps",
    "total_step",
    "iteration",
    "iterations",
    "iter",
    "it",
    "update",
    "s",
    "round",
    "iters",
    "batch",
    "batches",
    "episode",
)
_NUMBERED = {"frame": "step", "game": "episode", "episode": "episode", "iteration": "iteration", "step": "step"}
"""What a number of these counts: ``Game number: 10590  Frame number: 7943478``."""
_IN_EPOCH = frozenset(("iters", "batch", "batches"))
"""Count within an epoch, as a rule."""
_SPLIT = re.compile(r"^(?:train|valid)_|\((?:train|val|test)\)$")
_PROSE = frozenset((
    "in", "to", "of", "at", "for", "with", "from", "by", "than", "after", "on", "is", "are", "took", "and", "or", "the",
    "a", "an", "be", "as", "was",
))  # fmt: skip
_OF_EPOCH = re.compile(r"time|loss|acc|took|cost|duration|lr", re.I)
"""What an epoch has, such as its time; not its number."""
_LEFT_OUT = frozenset(("v_num", "eta", "pid", "rank", "seed"))
_SCALES = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9}
_PLACE = re.compile(
    r"\b[\w/]+\.(?:py|cpp|cc|cu):\d+|\b(?:cuda|npu|xpu|xla|mps):\d+|\(\w+ pid=\d+[^)]*\)"
    r"|\b[A-Za-z_][\w.]*:[\w<>]+:\d+(?= - )"  # Loguru's module, function and line
)
"""Where in the code, on which device or in which process: numbers that measure nothing."""
_CALLBACK = re.compile(r"Epoch 0*\d+: \w+ (?:did not improve|improved from|reached|reducing|early stopping).*", re.I)
"""Keras' callbacks speak into the bar's line, and count epochs from 0 in old versions."""
LAST_OVERFLOWS = 3
"""Overflows after the last row that are more than the ordinary search for a scale."""
_MINDSPORE = re.compile(r"^(\W{0,4}epoch: ?\d{1,9},? step: ?\d{1,12}, loss) is ")
_LOGGER = re.compile(r"^[^\t]{0,40}\t[^\t]{1,80}\t(?:INFO|DEBUG|WARNING)\t")
"""Moment, logger and level before a line of VITS and its kin; the logger has the name of the experiment."""
_ERROR = re.compile(r"^(?:[\w.]*(?:Error|Exception|Interrupt)\b.*)")


def read_log(path: Path, account: Account) -> Iterator[Row]:
    """A row per line with metrics. Lines of other ranks than the first are left out, and it is said."""
    return rows_of(_plain_lines(path, account), path, account)


def rows_of(lines: Iterable[str], path: Path, account: Account) -> Iterator[Row]:
    """The same of lines without terminal codes, which ``path`` held in whatever way."""
    reader, box, columns, aligned = _Log(path, account), Box(), Columns(), Aligned()
    for line in one_line_each(joined(lines)):
        taken = box.takes(line) or columns.takes(line) or aligned.takes(line)
        for table in (box, columns, aligned):
            yield from _out_of(table.rows)
        row = None if taken else reader.line(line)
        if row is not None:
            yield row
    columns.end()
    yield from _out_of(columns.rows)
    yield from reader.end()


def _out_of(rows: list[Row]) -> list[Row]:
    taken = rows.copy()
    rows.clear()
    return taken


def _plain_lines(path: Path, account: Account) -> Iterator[str]:
    for line in read_lines(path, account):
        for part in line.split("\x08") if "\x08" in line else (line,):
            text = plain(part)
            text = english(_GLOG.sub("", text) if "] " in text[20:80] else text)
            yield from _STAMPED.split(text) if "[20" in text[1:] else (text,)


@dataclass(frozen=True, slots=True)
class _Pair:
    """A number with a name."""

    value: float
    total: int | None
    """Of ``3/10`` the 10."""
    counts: bool
    """It is written as an integer: ``epoch 4`` is a counter, ``'epoch': 4.0`` a share that happens to be whole."""


@dataclass(frozen=True, slots=True)
class _Overflow:
    """A step that was not taken: where the bar stood, the scale that was tried, and the next one."""

    bar: int | None
    tried: float | None
    scale: float


class _Log:
    """What the lines so far say of those to come: epoch, progress, rank."""

    def __init__(self, path: Path, account: Account) -> None:
        self._path, self._account = path, account
        self._epoch: int | None = None
        self._first_epoch: int | None = None
        self._passes = 0
        """Passes over the data that were seen without a word on the epoch."""
        self._batch: tuple[int, int] | None = None
        self._batch_epoch: int | None = None
        self._bar: tuple[int, int] | None = None
        self._rank: str | None = None
        self._step: int | None = None
        self._counters_before: dict[str, int] = {}
        self._counter: str | None = None
        """Which of several counters moves from row to row."""
        self._nameless_step: int | None = None
        self._error: str | None = None
        self._traceback = False
        self._skipped = 0
        """Overflows between rows."""
        self._overflows: list[_Overflow] = []
        """Those since the last row."""
        self._names: Counter[str] = Counter()
        """Of the rows so far."""
        self._gave_up: tuple[int | None, int | None, str] | None = None
        """Step that it names, last step before, and words of a program that gave up on a NaN."""

    def line(self, line: str) -> Row | None:
        if "Traceback (most recent call last)" in line:
            self._traceback = True
        elif self._traceback and (match := _ERROR.match(line)):
            self._error, self._traceback = match[0][:300], False
        if sentences.TELLING.search(line) and (row := self._told(line)) is not False:
            return row
        if match := _INDEXED.match(line):
            return self._nameless(int(match[1]), float(match[2]))
        if (own := own_line(line)) is not None:
            return self._row(own[0], _without_times(line)[0], own[1])
        if not _HINT.search(line):
            return None
        if match := sentences.EXPLODED.search(line):
            step, last = int(match["step"]), self._step
            near = last is None or last < step < 10 * last  # digits of the line that it was written over may follow
            return self._row(step if near or last is None else last + 1, None, {"loss": float(match["loss"])})
        if len(line) > LONGEST_METRICS:
            self._account.say("printed", f"{self._path}: a line of {len(line):,} characters is not taken for metrics.")
            return None
        if (bar := _BAR.match(line)) and "=" not in line[bar.end() :]:
            self._progress(int(bar[1]), int(bar[2]))
            if not _LOSS.search(line):
                return None
        if self._is_other_rank(line):
            return None
        if match := _RECORD.match(line):
            line = match[1]
        time, text = _without_times(line)
        if "\t" in text:
            text = _LOGGER.sub("", text)
        if ", loss is " in text:
            text = _MINDSPORE.sub(r"\1 = ", text)
        if match := _ROUND.match(text):
            text = f"round {match[1]} {text[match.end() :]}"
        if "][" in text or "] [" in text:
            text = _TWO_COUNTS.sub(r"\1epoch \2 ", text)
        if match := _LOSS_AT.match(text):
            text = f"iteration {match[2]} {match[1]} {text[match.end() :]}"
        if "] " in text:
            text = _TAGGED.sub(_untagged, text)
        if "atch [" in text:
            text = _BATCHES.sub(r"\1\2", text)
        if _GLUED.match(text):
            text = _GLUE.sub(" ", text)
        if "'s " in text:
            text = _OWNED.sub("/", text)
        if match := _BARE.match(text.strip()):
            name = "hella" if match[2].startswith("hella") else f"{match[2]} loss"
            return self._row(int(match[1]), time, {name: float(match[3])})
        row = self._metrics(text, time)
        if row is not None and row.values.get("number of skipped iterations") == 0.0:
            self._left_out(row.values)
        return row

    def _told(self, line: str) -> Row | Literal[False] | None:
        """What a sentence says of a step of which no row is printed; False: nothing."""
        if match := sentences.OVERFLOW.search(line):
            tried = number_of(match["tried"]) if match["tried"] else None
            self._overflows.append(_Overflow(self._bar[0] if self._bar else None, tried, float(match["scale"])))
            return None
        if (match := sentences.NO_GRADIENT.search(line)) and self._step is None:
            return Row(None, _without_times(line)[0], {"grad_norm": float(match["number"])})
        if (match := sentences.SAID_NAN.search(line)) and self._gave_up is None:
            at = sentences.AT.search(line, match.start())
            self._gave_up = (int(at["step"]) if at else None, self._step, line.strip()[:200])
        if match := sentences.SMALL_SCALE.search(line):
            return Row(self._step or 0, None, {"loss_scale": float(match["scale"])})
        if (match := sentences.OBJECTIVE.search(line)) and (
            value := number_of(match["value"] or match["log"])
        ) is not None:
            self._account.origins["loss"] = "minus the objective function"
            name = "loss" if match["name"] in (None, "output") else f"loss/{match['name']}"
            return self._row(int(match["last"] or match["seen"]), None, {name: -value})
        return False

    def _left_out(self, values: dict[str, float]) -> None:
        """Megatron prints a loss that is above 0, so that it leaves out one that is NaN: the step was not skipped, and
        there is a learning rate and a scale, but no loss."""
        if "loss scale" in values and not any("loss" in name and name != "loss scale" for name in values):
            name = self._loss_name()
            values["lm loss" if name == "loss" else name] = math.nan
            self._account.say(
                "left out", "a loss that a row of Megatron's leaves out though its step was taken is NaN."
            )

    def _nameless(self, step: int, value: float) -> Row | None:
        """The number of a line that has no names, once such lines follow one another."""
        last, self._nameless_step = self._nameless_step, step
        if last is None or step <= last:
            return None
        self._account.say("nameless", "numbers without a name, one for each step, are taken for the training loss.")
        return self._row(step, None, {"loss": value})

    def end(self) -> Iterator[Row]:
        """Say how the log ends: the loss scales after the last row are those of steps that were not taken."""
        over = self._overflows if len(self._overflows) >= LAST_OVERFLOWS else []
        if over and self._step is not None and over[0].tried is not None:
            yield Row(self._step, None, {"loss_scale": over[0].tried, "skipped_steps": float(self._skipped)})
        for number, overflow in enumerate(over, 1):
            step = overflow.bar if self._step is None else self._step + number
            if step is not None:
                yield Row(step, None, {"loss_scale": overflow.scale, "skipped_steps": float(self._skipped + number)})
        if self._gave_up is not None and (last := self._gave_up[:2]) != (None, None):
            step = max(last[0] or 0, (self._step or 0) + 1 if last[0] is None or last[0] == self._step else 0)
            self._account.say("said", f"not a row, but words: {self._gave_up[2]}")
            yield Row(step, None, {self._loss_name(): math.nan})
        if self._error is not None:
            self._account.outcome, self._account.reason = "crashed", f"The log ends with: {self._error}"

    def _loss_name(self) -> str:
        """What the rows so far call the training loss."""
        meanings = Naming(self._names).meanings
        return next((name for name, meaning in meanings.items() if meaning.name == "train_loss"), "loss")

    def _progress(self, done: int, total: int) -> None:
        if self._bar is None and done == total:
            return  # the end of a training of which nothing else was shown
        if self._bar is None or total >= self._bar[1]:
            self._bar = (done, total)

    def _is_other_rank(self, line: str) -> bool:
        match = _RANK.search(line[:200])
        if match is None:
            return False
        rank = next(group for group in match.groups() if group is not None)
        if self._rank is None:
            self._rank = rank
        if rank == self._rank:
            return False
        self._account.say("rank", f"lines of other ranks than {self._rank} are left out.")
        return True

    def _metrics(self, text: str, time: float | None) -> Row | None:
        pairs, inside, rest = _pairs(text)
        inside = inside or next((batch for name, pair in pairs.items() if (batch := _batch_of(name, pair))), None)
        steps, epoch, values = self._counters(text, pairs, inside)
        if epoch is not None:
            self._epoch = epoch
            self._first_epoch = epoch if self._first_epoch is None else self._first_epoch
        metrics = {name: value for name, value in values.items() if name != "epoch"}
        is_loss = any(_LOSS.search(name) and not _NOT_A_LOSS.search(name) for name in metrics)
        if not metrics or not (is_loss or steps or epoch is not None):
            return None  # "loading 3/7 ..." counts something else
        if not is_loss and ("epochs" in pairs or [*steps] == ["episode"]):
            return None  # what is planned ("batch_size: 32, epochs: 100"), or a word on an episode
        if inside is not None and not steps and self._is_evaluation(inside):
            rest, inside = f"{rest} evaluation", None
        of_validation = _VALIDATION.match(next(iter(metrics))) and not any(map(_TRAINS.search, metrics))
        of_training = any(
            _LOSS.search(name) and _TRAINS.search(name) for name in metrics
        )  # "loss train: 2.3, val: n/a"
        if of_validation or (_VALIDATION.search(rest) and not of_training):
            metrics = {name if _VALIDATION.search(name) else f"val/{name}": value for name, value in metrics.items()}
        step = self._moving(steps)
        if step is None and inside is not None:
            step = self._inside(*inside)
        if step is None and self._bar is not None:
            step = self._bar[0]
        if step is None and self._step is not None:
            step = self._step
        elif step is None and epoch is not None:
            return Row(epoch, time, {**metrics, "epoch": float(epoch)})
        if "epoch" in values or self._epoch is not None:
            metrics["epoch"] = values.get("epoch", float(self._epoch or 0))
        return self._row(step, time, metrics)

    def _counters(
        self, text: str, pairs: dict[str, _Pair], inside: tuple[int, int] | None
    ) -> tuple[dict[str, int], int | None, dict[str, float]]:
        """What of a line's numbers counts steps, what the epoch, and the rest."""
        steps: dict[str, int] = {}
        epoch: int | None = None
        episode: int | None = None
        values: dict[str, float] = {}
        for name, pair in pairs.items():
            word = _word(name)
            whole = step_of(pair.value)
            if word == "episode" and whole is not None and pair.counts:
                episode = whole
            elif word in _STEPS and whole is not None:
                if word == "s" and not text.lstrip().startswith("s:"):
                    continue
                if _batch_of(name, pair):
                    continue
                steps[word] = whole
                if pair.total and pair.total > 1 and word != "s":
                    self._account.planned_steps = max(self._account.planned_steps or 0, pair.total)
            elif word in ("epoch", "epochs", "ep") or (word == "train" and inside and whole is not None):
                epoch = whole if pair.counts and whole is not None else epoch
                values["epoch"] = pair.value
            elif word.partition(" ")[0] not in _LEFT_OUT:
                values[name] = pair.value / pair.total if pair.total and _SHARE.search(name) else pair.value
        if episode is not None and epoch is None and steps:
            values["epoch"] = float(episode)  # a count of steps may start again with each
        elif episode is not None and epoch is None and inside is None and self._counter in (None, "episode"):
            steps["episode"] = episode
        elif episode is not None:
            values["episode"] = float(episode)
        return steps, epoch, values

    def _moving(self, steps: dict[str, int]) -> int | None:
        """The step of a line by its counters: of several the first that is known, unless it stands while another goes
        on, as an optimizer's steps do while batches are accumulated."""
        if self._counter not in steps:
            self._counter = next((word for word in _STEPS if word in steps), None)
        if self._counter is None:
            return None
        if len(steps) > 1:
            before, self._counters_before = self._counters_before, steps
            if before.get(self._counter) == steps[self._counter]:
                moved = (word for word in _STEPS if word in steps and steps[word] > before.get(word, steps[word]))
                self._counter = next(moved, self._counter)
        return steps[self._counter]

    def _is_evaluation(self, inside: tuple[int, int]) -> bool:
        """Whether batches of another number follow the end of an epoch, as Keras' ``evaluate`` prints them."""
        last = self._batch
        ended = last is not None and last[0] == last[1] and self._batch_epoch == self._epoch
        return ended and last is not None and inside[1] < last[1]

    def _inside(self, done: int, total: int) -> int:
        """The step of batch ``done`` of ``total`` in the present epoch."""
        last, self._batch, self._batch_epoch = self._batch, (done, total), self._epoch
        if self._epoch is not None:
            return max(0, self._epoch - (1 if self._first_epoch else 0)) * total + done
        if last is not None and last[1] == total and (done < last[0] or done == last[0] == total):
            self._passes += 1
        return self._passes * total + done

    def _row(self, step: int | None, time: float | None, values: dict[str, float]) -> Row:
        if self._overflows:  # it went on after all
            self._skipped += len(self._overflows)
            told = {"loss_scale": self._overflows[-1].scale, "skipped_steps": float(self._skipped)}
            values = {**({} if "loss_scale" in values or "loss scale" in values else told), **values}
        self._error, self._overflows = None, []
        if self._gave_up is not None and step is not None:
            named, before, _ = self._gave_up
            self._gave_up = None if step > (before or 0 if named is None else named) else self._gave_up
        self._step = step
        if len(self._names) < MOST_NAMES:
            self._names.update(values.keys())
        return Row(step, time, values)


def _without_times(line: str) -> tuple[float | None, str]:
    """The moment that a line is stamped with (UTC where it names no zone), and the line without clocks and dates."""
    moment: float | None = None
    if match := _STAMP.search(line[:200]):
        zone = (match["zone"] or "+00:00").replace("Z", "+00:00")
        stamp = f"{match['date'].replace('/', '-')}T{match['time']}.{(match['part'] or '0').ljust(6, '0')}{zone}"
        try:
            moment = dt.datetime.fromisoformat(stamp).timestamp()
        except (ValueError, OverflowError):
            moment = None
        line = line[: match.start()] + "|" + line[match.end() :]
    if ":" in line:
        line = _CLOCK.sub("|", _DAY.sub("|", line))
    if "m " in line:
        line = _SPAN.sub("|", line)
    if "poch 0" in line:
        line = _CALLBACK.sub("|", line)
    return moment, _DATE.sub("|", _PLACE.sub("|", line))


def _untagged(tag: re.Match[str]) -> str:
    """Without its brackets, if what they name is a loss or a count."""
    word = _word(tag[1])
    return f"| {tag[1]} " if word in _STEPS or word == "epoch" or _LOSS.search(word) else tag[0]


def _batch_of(name: str, pair: _Pair) -> tuple[int, int] | None:
    """``batch 3/10`` is batch 3 of the 10 of an epoch."""
    whole = step_of(pair.value)
    if whole is None or not pair.total or pair.total < 2 or _word(name) not in _IN_EPOCH:
        return None
    return whole, pair.total


@functools.lru_cache(1024)
def _word(name: str) -> str:
    """A name without what says whose it is: ``train_num_updates`` is ``num_updates``, ``Epoch(train)`` is ``epoch``."""
    return _SPLIT.sub("", name.lower())


def _pairs(text: str) -> tuple[dict[str, _Pair], tuple[int, int] | None, str]:
    """Names with value and total (``3/10``), a fraction without a name, and the text that is in no name."""
    pairs: dict[str, _Pair] = {}
    fraction: tuple[int, int] | None = None
    rest: list[str] = []
    end = 0
    for match in _NUMBER.finditer(text):
        label, end = _RATE.sub("", text[end : match.start()]), match.end()
        value = number_of(match["number"].replace(",", ""))
        if value is None:
            continue
        total = int(match["total"]) if match["total"] and len(match["total"]) < 16 else None
        key, before = _key(label[-LONGEST_LABEL:])
        rest.append(before)
        unit = (match["unit"] or "").strip()
        value *= _SCALES.get(unit, 1.0)
        if not key:
            if total and fraction is None and value == int(value):
                fraction = (int(value), total)
            elif "|" in label and (after := _AFTER.match(text, match.end("number"))):
                name = after["name"].strip() + (" (%)" if after["percent"] else "")
                pairs.setdefault(name, _Pair(value, None, False))
            continue
        if value == 0 and _RATED.fullmatch(key) and rate(match["number"]) is None:
            continue
        if unit and unit not in _SCALES:
            key = f"{key} ({unit})"
        pairs.setdefault(key, _Pair(value, total, match["number"].isdecimal()))
    rest.append(text[end:])
    return pairs, fraction, " ".join(rest)


@functools.lru_cache(1024)
def _key(label: str) -> tuple[str, str]:
    """The name at the end of what stands before a number ("" without one), and what stands before the name."""
    label = label[2:] if label.startswith("/ ") else label.removeprefix(" / ")  # what parts it from the number before
    bare = _SHELL.sub("", label.rstrip().rstrip("[(\"'*")).rstrip(" \t[(\"'*")
    said = bare.endswith((":", "="))
    bare = bare.rstrip(" \t:=\"'*")
    place = 0
    for cut in _CUT.finditer(bare):
        if bare[cut.start()] == "(" and not bare[cut.end() :].count(" ") and bare.endswith(")"):
            continue  # "elapsed time (ms)": the unit belongs to the name
        if bare[cut.start()] == "[" and bare.endswith("]"):
            continue
        place = cut.end()
    before, name = bare[:place], _SYMBOLS.sub("", bare[place:]).strip(" \t\"'])}.-*#")
    if "(" in name and ")" not in name and bare.endswith(")"):
        name += ")"
    words = name.split()
    if 2 < len(words) < 5 and words[-1] == "is" and _LOSS.search(name):  # "Loss is nan" is a warning's sentence
        said, words = True, words[:-1]
        name = " ".join(words)
    if [word.lower() for word in words] == ["episode", "steps"]:
        return name, before  # how long it was
    if len(words) == 2 and words[1].lower() == "number" and (counter := _NUMBERED.get(words[0].lower())):
        return counter, before
    if words and words[-1].lower() in _STEPS and (len(words) <= 2 or not said):
        return words[-1], f"{before} {' '.join(words[:-1])}"
    if len(words) == 2 and "epoch" in (words[0].lower(), words[1].lower()) and not _OF_EPOCH.search(name):
        return "epoch", f"{before} {words[0]}"
    if not said and (len(words) > 2 or (words and words[-1].lower() in _PROSE)):
        return "", label
    if not words or len(words) > 6 or len(name) > 64 or not _KEY.fullmatch(name):
        return "", label
    return name, before
