"""Lines whose numbers are named by their places alone, as the programs that print them define."""

from __future__ import annotations

import re

from monitor.importers.rows import number_of

_DARKNET = re.compile(
    r"\s*(?P<step>\d{1,12})(?:, [\d.]+)?: (?P<loss>[-\d.einfa]+), (?P<mean>[-\d.einfa]+) avg(?: loss)?, "
    r"(?P<rate>[\d.e-]+) rate,"
)
_MARIAN = re.compile(
    r"\bEp\. (?P<epoch>\d{1,9})(?:\.\d+)? : Up\. (?P<step>\d{1,12}) : "
    r"(?:Sen\. [\d,]+ : Cost (?P<loss>[-+\d.einfa]+)|(?P<name>[a-z][\w-]{0,40}) : (?P<value>[-+\d.einfa]+)(?= : ))"
)
_MARIAN_NORM = re.compile(r" : gNorm (?P<norm>[-+\d.einfa]+)")
_MARIAN_RATE = re.compile(r" : L\.r\. (?P<rate>[\d.e-]+)")
_VITS = re.compile(
    r"\t(?:INFO|DEBUG)\t\[(?P<losses>(?:[-+\d.einfa]+, ){2,12})(?P<step>\d{1,12}), (?P<rate>[\d.e-]+)\]$"
)
_VITS_LOSSES = ("loss/disc", "loss/gen", "loss/fm", "loss/mel", "loss/dur", "loss/kl")
_YOLO = re.compile(r"\s*(?P<epoch>\d{1,6})/\d{1,6}\s+[\d.]+G(?P<rest>(?:\s+(?:[-+\d.e]+|-?nan|-?inf)){13})\s*")
_ROUNDED = re.compile(r"0\.0{4,}")


def own_line(line: str) -> tuple[int, dict[str, float]] | None:
    """Step and values of a line of darknet, Marian, VITS or a YOLO's results.txt, up to YOLOv7; None: another's."""
    if " rate, " in line and (match := _DARKNET.match(line)):
        return _known(match["step"], {"loss": match["loss"], "avg loss": match["mean"], "lr": rate(match["rate"])})
    if " : Up. " in line and (match := _MARIAN.search(line)):
        if match["name"]:
            name = "loss" if match["name"] == "ce-mean-words" else match["name"]
            return _known(match["step"], {f"val/{name}": match["value"], "epoch": match["epoch"]})
        norm, lr = _MARIAN_NORM.search(line), _MARIAN_RATE.search(line)
        told = {"loss": match["loss"], "grad_norm": norm and norm["norm"], "lr": lr and lr["rate"]}
        return _known(match["step"], {**told, "epoch": match["epoch"]})
    if "G " in line and (match := _YOLO.fullmatch(line)):
        # box, objectness, class, total, targets, image size, precision, recall, mAP, mAP or F1, the three of validation
        rest = match["rest"].split()
        val = [number_of(text) for text in rest[10:]]
        told = {"train/loss": rest[3], "metrics/mAP_0.5": rest[8]}
        if any(val):  # else it was not validated
            told["val/loss"] = str(sum(number for number in val if number is not None))
        return _known(match["epoch"], told)
    if "\t[" in line and (match := _VITS.search(line)):
        losses = match["losses"].split(", ")[:-1]
        names = _VITS_LOSSES if len(losses) == len(_VITS_LOSSES) else [f"loss/{n}" for n in range(1, 1 + len(losses))]
        return _known(match["step"], {**dict(zip(names, losses, strict=True)), "lr": match["rate"]})
    return None


def rate(written: str) -> str | None:
    """A learning rate, unless it is too small for the decimals it was written with: ``0.000000`` is no zero. In a long
    warm-up it is many rows; in darknet's, which grows with the fourth power of the step, a hundred and more."""
    return None if _ROUNDED.fullmatch(written) else written


def _known(step: str, written: dict[str, str | None]) -> tuple[int, dict[str, float]] | None:
    numbers = {name: number_of(text) for name, text in written.items() if text is not None}
    values = {name: number for name, number in numbers.items() if number is not None}
    return (int(step), values) if len(values) == len(numbers) else None
