"""Reading text: what becomes training data, what is held out, and what is said about data that cannot be used."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monitor.errors import ConfigError
from trainer.config import TaskConfig
from trainer.tasks.base import EpochSampler
from trainer.tasks.text import Windows, _is_near, load_text


def load(data: Path | None, **more: object) -> tuple[bytes, bytes, str]:
    config = TaskConfig.model_validate({"data": None if data is None else str(data), "seq_len": 8, **more})
    text = load_text(config)
    return bytes(text.train.numpy()), bytes(text.val.numpy()), text.summary


def refusal(data: Path, **more: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load(data, **more)
    return str(caught.value)


def test_standard_library_is_python_source_split_by_file() -> None:
    train, val, summary = load(None, max_data_mib=1.0, val_fraction=0.1)
    assert b"import " in train and b"def " in val
    assert 0.9 * 2**20 < len(train) + len(val) < 1.1 * 2**20
    assert len(val) / (len(train) + len(val)) == pytest.approx(0.1, abs=0.1)
    held_out = {document for document in val.split(b"\0") if document}
    assert not held_out & set(train.split(b"\0"))
    assert summary.startswith("Python's standard library: ")


def test_same_files_give_the_same_bytes_wherever_they_lie(tmp_path: Path, texts: Path) -> None:
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for file in sorted(texts.iterdir(), reverse=True):
        (copy / file.name).write_bytes(file.read_bytes())
    assert load(copy)[:2] == load(texts)[:2]


def test_repeated_hidden_and_binary_files_are_left_out(tmp_path: Path) -> None:
    for name, content in {
        "a.txt": b"one " * 20, "b.txt": b"two " * 20, "same.txt": b"one " * 20,
        ".hidden": b"secret " * 20, "image.bin": b"\x89PNG\0" * 20, "empty.txt": b"",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_bytes(b"inside " * 20)
    train, val, summary = load(tmp_path)
    assert sorted([train, val]) == [b"one " * 20 + b"\0", b"two " * 20 + b"\0"]
    assert summary.endswith("MiB held out, 1 repeated files left out, 1 binary or unreadable files left out")


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from([letter * 30 for letter in "abcdefgh"]), min_size=2, max_size=12),
    st.floats(0.01, 0.49),
    st.sampled_from([None, 1.0]),
)
def test_no_text_is_on_both_sides_nor_twice_on_one(texts: list[str], share: float, near: float | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for index, text in enumerate(texts):
            Path(folder, f"{index}.txt").write_text(text)
        if len(set(texts)) == 1:
            return  # one document is cut
        train, val, _ = load(Path(folder), val_fraction=share, near_duplicates=near)
    sides = [[document.decode() for document in side.split(b"\0")[:-1]] for side in (train, val)]
    assert sorted(sides[0] + sides[1]) == sorted(set(texts))
    assert sides[0] and sides[1]


def test_near_duplicates_are_left_out_from_the_share_on_that_is_given(tmp_path: Path) -> None:
    lines = [f"line number {index} of the original" for index in range(102)]  # 100 runs of three
    (tmp_path / "one").write_text("\n".join(lines))
    (tmp_path / "two").write_text("\n\n".join(f"\t{line}  " for line in lines))
    (tmp_path / "three").write_text("something else")
    assert load(tmp_path, near_duplicates=1.0)[2].endswith("MiB held out, 1 repeated files left out")
    assert "repeated" not in load(tmp_path)[2]
    known: set[int] = set()
    assert not _is_near("\n".join(lines).encode(), known, 0.61)
    edited = "\n".join([*lines[:62], *(f"new {index}" for index in range(40))]).encode()  # 60 of its 100 runs are known
    assert not _is_near(edited, set(known), 0.61)
    assert _is_near(edited, known, 0.6)


def test_a_short_document_without_three_lines_is_no_near_duplicate() -> None:
    known: set[int] = set()
    assert [_is_near(text, known, 0.5) for text in (b"return None\n", b"return None\n")] == [False, False]


def test_one_file_is_cut_near_its_end(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    file.write_bytes(bytes(range(1, 201)))
    train, val, _ = load(file, val_fraction=0.1)
    assert train + val == bytes(range(1, 201)) + b"\0"
    assert len(val) == 20


def test_more_than_the_cap_is_not_read(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"{index}.txt").write_text(f"{index} " * 20_000)
    train, val, _ = load(tmp_path, max_data_mib=0.25)
    assert len(train) + len(val) < 0.26 * 2**20


def test_links_to_folders_are_not_followed(tmp_path: Path, texts: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("only this " * 50)
    (tmp_path / "data" / "link").symlink_to(texts)
    assert load(tmp_path / "data")[2].split(":")[1].startswith(" 1 documents")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "does not exist. Give a text file or a folder of text files."),
        (lambda path: path.mkdir(), "holds no files. Give a text file or a folder of text files."),
        (lambda path: path.write_bytes(b""), "no text in it (no bytes)."),
        (lambda path: path.write_bytes(b"\0" * 99), "no text in it (1 binary or unreadable of 1 files)."),
        (lambda path: path.write_bytes(b"short"), "and one sequence needs 9. Give more text, or lower task.seq_len."),
    ],
    ids=["missing", "empty folder", "empty file", "binary file", "too short"],
)
def test_unusable_data_is_refused_with_the_reason(tmp_path: Path, make: object, message: str) -> None:
    make(tmp_path / "data")  # type: ignore[operator]
    told = refusal(tmp_path / "data")
    assert told.startswith(f"task.data = {tmp_path / 'data'}: ")
    assert message in told


def test_windows_are_consecutive_and_targets_are_one_byte_ahead() -> None:
    windows = Windows(torch.arange(25, dtype=torch.uint8), seq_len=8)
    assert len(windows) == 3
    batch = windows.batch(torch.tensor([2, 0]))
    assert batch.inputs.tolist() == [list(range(16, 24)), list(range(8))]
    assert batch.targets.tolist() == [list(range(17, 25)), list(range(1, 9))]


def test_epoch_draws_every_example_once_in_a_new_order() -> None:
    sampler = EpochSampler(10, seed=3)
    epochs = [sampler.take(10).tolist() for _ in range(3)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_draws_do_not_depend_on_how_they_are_cut_nor_on_other_random_numbers() -> None:
    whole = EpochSampler(7, seed=3).take(20).tolist()
    sampler = EpochSampler(7, seed=3)
    pieces = []
    for size in (3, 3, 9, 5):
        torch.rand(11)
        pieces += sampler.take(size).tolist()
    assert pieces == whole
    assert sampler.drawn == 20


def test_sampler_continues_from_its_state() -> None:
    sampler = EpochSampler(7, seed=3)
    sampler.take(12)
    state = sampler.state_dict()
    expected = sampler.take(9).tolist()
    resumed = EpochSampler(7, seed=0)
    resumed.load_state_dict(state)
    assert resumed.take(9).tolist() == expected


def test_sampler_refuses_other_data() -> None:
    with pytest.raises(ValueError, match="the data hold 8 training examples now and 7 when the checkpoint was written"):
        EpochSampler(8, seed=3).load_state_dict(EpochSampler(7, seed=3).state_dict())


@given(size=st.integers(1, 9), before=st.integers(0, 30), skipped=st.integers(0, 40), after=st.integers(1, 20))
def test_skipped_examples_are_as_if_they_had_been_taken(size: int, before: int, skipped: int, after: int) -> None:
    one, other = EpochSampler(size, seed=3), EpochSampler(size, seed=3)
    assert one.take(before + 1).tolist() == other.take(before + 1).tolist()
    one.skip(skipped)
    if skipped:
        other.take(skipped)
    assert one.drawn == other.drawn
    resumed = EpochSampler(size, seed=3)
    resumed.load_state_dict(one.state_dict())
    assert one.take(after).tolist() == other.take(after).tolist() == resumed.take(after).tolist()
