"""What programs say in words of a step of which they print no row: a pattern each."""

from __future__ import annotations

import re

OVERFLOW = re.compile(
    r"overflow\b.{0,60}loss scale(?: to:? *|: (?P<tried>[\d.e+-]+), reducing to )(?P<scale>\d[\d.e+]*(?:e-\d+)?)",
    re.I,
)
"""As fairseq, DeepSpeed and their kin say it between two rows."""
NO_GRADIENT = re.compile(r"grad(?:ient)?[ _]norm is (?P<number>nan|inf)\b", re.I)
"""As ESPnet says that it took no step; it prints no norm else."""
SAID_NAN = re.compile(
    r"loss (?:became|is|was) (?:infinite or )?nan\b(?!.{0,40}(?:skip|ignor|setting))|nan/inf loss\b"
    r"|losstensor is inf or nan|nan loss (?:during training|encountered|with \w+)|model diverged with loss = nan",
    re.I,
)
"""A program that gives up on a NaN says so and prints no row of it: detectron2, DETR, TensorFlow, AllenNLP, Coqui."""
TELLING = re.compile(r"[Oo]verflow|OVERFLOW| is | was |became|[Nn]a[Nn]|NAN|Obj\(")
"""What each of these sentences has, and few rows; in the case of its letters, which is much faster."""
AT = re.compile(r"\b(?:iteration|step|iter|epoch)\W{0,3}(?P<step>\d{1,15})\b", re.I)
SMALL_SCALE = re.compile(r"grad[ _]scale is (?:too )?small(?:, exiting)?: (?P<scale>[\d.]+(?:e-?\d+)?)", re.I)
"""As icefall says it, rank by rank."""
OBJECTIVE = re.compile(
    r"average objective function for '(?P<name>\w+)'.{0,60}?minibatches \d+-(?P<last>\d{1,15}) is "
    r"(?P<value>[-+\d.e]+|-?nan|-?inf)"
    r"|After (?P<seen>\d{1,15}) sequences .{0,40}Obj\(log\[Pzx\]\) = (?P<log>[-+\d.e]+|-?nan|-?inf)",
    re.I,
)
"""Kaldi's and Eesen's: a log probability, which is maximised."""
EXPLODED = re.compile(r"loss exploded to (?P<loss>nan|inf|[-+]?\d[\d.e+]*) at step (?P<step>\d{1,15})", re.I)
"""As Tacotron says that it ends; it prints no row of that step."""
