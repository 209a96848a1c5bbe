"""Byte-pair tokens: any bytes survive them, and what they are is learnt from the training text alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainer.tasks.bpe import Encoded, encoded

TRAIN = b"def walk(tree):\n    return tree\n\0" * 20 + bytes(range(1, 256)) + b"\xff\xfe\0"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "gradiometer"


def text(result: Encoded, tokens: np.ndarray) -> bytes:
    return b"".join(result.words[token] for token in tokens)


def test_any_bytes_survive_and_the_first_tokens_are_the_bytes() -> None:
    val = b"def other\0\xc3\x28 \x00tree" + bytes(range(256))
    result = encoded(TRAIN, val, 300)
    assert (text(result, result.train), text(result, result.val)) == (TRAIN, val)
    assert list(result.words[:256]) == [bytes([byte]) for byte in range(256)]
    assert 256 < len(result.words) <= 300
    assert len(result.train) < len(TRAIN) / 2


def test_tokens_are_learnt_from_the_training_text_only() -> None:
    result = encoded(TRAIN, b"zebra " * 500, 400)
    assert b"tree" in {word.strip() for word in result.words}
    assert b"zebra" not in {word.strip() for word in result.words}


def test_no_token_crosses_the_end_of_a_document() -> None:
    result = encoded(b"a\0a\0" * 200, b"a\0", 300)
    assert [word for word in result.words if b"\0" in word] == [b"\0"]


def test_cache_gives_the_same_and_a_damaged_one_is_made_anew(cache: Path) -> None:
    first = encoded(TRAIN, b"tree", 300)
    (file,) = cache.iterdir()
    again = encoded(TRAIN, b"tree", 300)
    file.write_bytes(file.read_bytes()[:100])
    anew = encoded(TRAIN, b"tree", 300)
    for other in (again, anew):
        assert other.words == first.words
        assert np.array_equal(other.train, first.train) and np.array_equal(other.val, first.val)
    assert list(cache.iterdir()) == [file]


def test_a_cache_that_cannot_be_written_costs_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert text(encoded(TRAIN, b"tree", 300), encoded(TRAIN, b"tree", 300).val) == b"tree"
