"""Arrow framing by hand against pyarrow's own reading, at every length and with every bit flipped."""

from __future__ import annotations

import zlib

import pyarrow as pa
import pytest

from monitor.runfile import format as fmt
from monitor.runfile import framing
from monitor.runfile.columns import scalars_batch
from monitor.runfile.writer import Row

NAMES = ("a", "b")
SCHEMA = fmt.scalars_schema(NAMES)
HEAD = framing.encode_schema(SCHEMA)
SEED = zlib.crc32(HEAD)


def block(first: int, rows: int = 3) -> bytes:
    steps = range(first, first + rows)
    batch, _ = scalars_batch([Row(step, float(step), {"a": step / 7, "b": None}) for step in steps], NAMES, SCHEMA)
    return bytes(framing.encode_batch(batch, len(HEAD), SEED))


def ranges(found: framing.Scan) -> list[tuple[int, int]]:
    """(start, stop) of the stretches, neighbours joined."""
    joined: list[tuple[int, int]] = []
    for stretch in found.good:
        if joined and joined[-1][1] == stretch.start:
            joined[-1] = (joined[-1][0], stretch.stop)
        else:
            joined.append((stretch.start, stretch.stop))
    return joined


def test_a_batch_is_an_arrow_message_with_its_checksums() -> None:
    data = HEAD + block(1) + block(4) + framing.END_OF_STREAM
    with pa.ipc.open_stream(data) as reader:
        first, second = reader.iter_batches_with_custom_metadata()
    assert first.batch.column("step").to_pylist() == [1, 2, 3]
    assert second.batch.column("b").to_pylist() == [None] * 3
    body = pa.ipc.read_message(block(1)).body
    assert first.custom_metadata[b"crc32"] == b"%08x" % zlib.crc32(body)
    assert len(first.custom_metadata[b"head32"]) == 8


@pytest.mark.parametrize("final", [False, True])
def test_every_truncation_gives_exactly_the_complete_batches(final: bool) -> None:
    blocks = [block(1), block(4), block(7)]
    data = b"".join(blocks)
    ends = [0, *(sum(map(len, blocks[: count + 1])) for count in range(3))]
    for length in range(len(data) + 1):
        found = framing.scan(data[:length], SEED, final)
        whole = max(end for end in ends if end <= length)
        assert ranges(found) == ([(0, whole)] if whole else [])
        assert found.end == (length if final else whole)
        assert found.problems == []


def test_every_flipped_bit_is_found_and_the_rest_is_kept() -> None:
    first, second, third = block(1), block(4), block(7)
    for index in range(len(second)):
        for bit in range(8):
            broken = bytearray(second)
            broken[index] ^= 1 << bit
            found = framing.scan(bytes(first + broken + third), SEED, final=True)
            assert ranges(found)[0] == (0, len(first)), (index, bit)
            assert ranges(found)[-1][1] == len(first + broken + third), (index, bit)
            assert sum(stop - start for start, stop in ranges(found)) == len(first) + len(third), (index, bit)
            assert [position for position, _ in found.problems] == [len(first)], (index, bit)


def test_a_flipped_bit_in_the_schema_is_found() -> None:
    damaged = HEAD.replace(b"a", b"c", 1)
    assert framing.scan(block(1), zlib.crc32(damaged), final=True).good == []


@pytest.mark.parametrize("tail", [b"\0" * 100, b"\xff" * 100, bytes(range(256)), b"\xff\xff\xff\xff\x10\0\0\0"])
def test_a_strange_tail_of_a_live_segment_is_left_for_later(tail: bytes) -> None:
    found = framing.scan(block(1) + tail, SEED, final=False)
    assert ranges(found) == [(0, len(block(1)))]
    assert found.end == len(block(1))
    assert found.problems == []


def test_a_broken_batch_is_passed_over_when_a_whole_one_follows() -> None:
    broken = bytearray(block(1))
    broken[4] ^= 0x40  # its length
    found = framing.scan(bytes(broken) + block(4), SEED, final=False)
    assert ranges(found) == [(len(broken), len(broken) + len(block(4)))]
    assert found.problems[0][0] == 0


def test_the_end_mark_ends_it() -> None:
    found = framing.scan(block(1) + framing.END_OF_STREAM + b"whatever", SEED, final=True)
    assert found.ended
    assert found.end == len(block(1)) + 8


def test_declared_sizes_are_bounded_before_anything_is_allocated() -> None:
    with pytest.raises(framing.BadMessage, match="declared metadata size 2147483647 is not within"):
        framing.parse_message(framing.CONTINUATION + b"\xff\xff\xff\x7f" + bytes(100), 0)
    data = bytearray(block(1))
    message = framing.parse_message(data, 0)
    assert message is not None
    length = message.end - message.metadata_end
    at = data.index(length.to_bytes(8, "little"))
    data[at : at + 8] = (1 << 50).to_bytes(8, "little")
    with pytest.raises(framing.BadMessage, match="declared body size 1125899906842624"):
        framing.parse_message(data, 0)
    data = bytearray(block(1))
    rows = (3).to_bytes(8, "little")
    at = data.index(rows, 8, message.metadata_end)  # RecordBatch.length comes before the lengths of the columns
    data[at : at + 8] = (1 << 40).to_bytes(8, "little")
    with pytest.raises(framing.BadMessage, match="1099511627776 rows in a body of"):
        framing.parse_message(data, 0)


def test_a_compressed_batch_is_refused() -> None:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, SCHEMA, options=options) as stream:
        stream.write_batch(pa.ipc.open_stream(HEAD + block(1)).read_next_batch())
    data = sink.getvalue().to_pybytes()[len(HEAD) :]
    assert "compressed" in framing.scan(data, SEED, final=True).problems[0][1]


def test_a_batch_without_checksums_is_refused() -> None:
    batch = pa.ipc.open_stream(HEAD + block(1)).read_next_batch()
    found = framing.scan(batch.serialize().to_pybytes(), SEED, final=True)
    assert found.good == []
    assert len(found.problems) == 1


def test_a_file_of_marks_costs_bounded_time() -> None:
    data = framing.CONTINUATION * 500_000
    found = framing.scan(data, SEED, final=True)
    assert found.good == []
    assert found.end == len(data)
