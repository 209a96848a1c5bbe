"""Byte-pair tokens, learnt from the training text by the ``tokenizers`` library; encoded text is kept in a cache."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monitor.errors import ConfigError

PATTERN = r"\x00| ?[^\W\d]+| ?\d| ?[^\w\s\x00]+|\s+"
"""What merges stay within: a separator, a word, a digit, a run of signs, white space; after Radford et al. 2019."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Text as tokens."""

    words: tuple[bytes, ...]
    """What each token stands for; the first 256 are the bytes."""
    train: np.ndarray
    """int32[N]."""
    val: np.ndarray
    """int32[M]."""


def encoded(train: bytes, val: bytes, vocab_size: int) -> Encoded:
    """Both texts in at most ``vocab_size`` tokens, which are learnt from ``train`` alone.

    Bytes pass through Latin-1, which has one character for each: any text survives, and token n below 256 is byte n.
    Learning and encoding take a second or so per MiB and core, reading the cache next to none.

    Raises:
        ConfigError: the library is not installed.
    """
    try:
        import tokenizers
    except ImportError:
        raise ConfigError(
            "task.tokens = bpe needs the tokenizers library, which is not installed. "
            "Install it with: pip install 'gradiometer[bpe]', or use task.tokens = bytes."
        ) from None
    digest = hashlib.sha256(f"{tokenizers.__version__} {vocab_size} {PATTERN} {len(train)}\n".encode() + train + val)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gradiometer"
    file = cache / f"bpe-{digest.hexdigest()[:32]}.npz"
    with suppress(OSError, ValueError, KeyError, zipfile.BadZipFile):  # absent or damaged
        return _read(file)
    result = _learnt(train, val, vocab_size)
    with suppress(OSError):  # without a cache the next start takes longer
        _keep(result, file)
    return result


def _learnt(train: bytes, val: bytes, vocab_size: int) -> Encoded:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PATTERN), "isolated")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=[chr(byte) for byte in range(256)], show_progress=False
    )
    tokenizer.train_from_iterator(train.decode("latin-1").split("\0"), trainer)

    def tokens(text: bytes) -> np.ndarray:
        documents = [f"{document}\0" for document in text.decode("latin-1").split("\0")]
        documents[-1] = documents[-1][:-1]
        parts = tokenizer.encode_batch_fast(documents)  # in parallel
        return np.concatenate([np.asarray(part.ids, dtype=np.int32) for part in parts])

    words = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return Encoded(tuple(word.encode("latin-1") for word, _ in words), tokens(train), tokens(val))


def _read(file: Path) -> Encoded:
    with file.open("rb") as content, np.load(content, allow_pickle=False) as stored:
        ends = stored["ends"].tolist()
        joined = stored["joined"].tobytes()
        words = tuple(joined[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True))
        return Encoded(words, stored["train"], stored["val"])


def _keep(result: Encoded, file: Path) -> None:
    """Under another name first, so that ranks that start together never read half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    ends = np.cumsum([len(word) for word in result.words])
    joined = np.frombuffer(b"".join(result.words), dtype=np.uint8)
    with tempfile.NamedTemporaryFile(dir=file.parent, suffix=".part", delete=False) as part:
        np.savez(part, ends=ends, joined=joined, train=result.train, val=result.val)
    Path(part.name).replace(file)
