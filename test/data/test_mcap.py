"""The MCAP container: what is written comes back, and damage costs no more than it has to."""

from __future__ import annotations

import struct
from pathlib import Path

import lz4.frame
import pytest
from rosbags.rosbag2 import Reader as RosbagsReader

from wristworld_ros.data.mcap import Channel, McapReader, McapWriter, Message, Schema
from wristworld_ros.errors import BagError


def write(path: Path, times: list[int], size: int = 60_000, compression: str = "none") -> Path:
    writer = McapWriter(path, "test", compression)
    writer.add_schema(Schema(1, "pkg/msg/A", "ros2msg", b"uint8[] data\n"))
    writer.add_channel(Channel(3, 1, "/a", "cdr", {"offered_qos_profiles": "[]"}))
    writer.add_channel(Channel(4, 1, "/b", "cdr", {}))
    for i, time in enumerate(times):
        data = struct.pack("<I", i) * (size // 4)
        writer.write(Message(3 + i % 2, i, time, time + 1, memoryview(data)))
    writer.add_metadata("made by", {"who": "me", "köln": "ü"})
    writer.close()
    return path


def read(path: Path, channels=(3, 4), **span) -> list[tuple[int, int, int, int, bytes]]:
    reader = McapReader(path)
    out = [(*m[:4], bytes(m.data)) for m in reader.messages(channels, **span)]
    reader.close()
    return out


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_everything_comes_back_in_the_order_of_time(tmp_path, compression):
    times = [50, 10, 30, 20, 40] * 9  # across several chunks
    path = write(tmp_path / "a.mcap", times, compression=compression)
    reader = McapReader(path)
    messages = list(reader.messages([3, 4]))
    assert [m.log_time for m in messages] == sorted(times)
    order = sorted(range(len(times)), key=lambda i: (times[i], i))
    assert [m.sequence for m in messages] == order
    assert all(bytes(m.data[:4]) == struct.pack("<I", m.sequence) for m in messages)
    assert all(m.publish_time == m.log_time + 1 for m in messages)
    assert reader.counts == {3: 23, 4: 22}
    assert reader.metadata == [("made by", {"who": "me", "köln": "ü"})]
    assert reader.channels[3].metadata == {"offered_qos_profiles": "[]"}
    assert reader.schemas[1].data == b"uint8[] data\n"
    assert reader.damage == []


def test_channels_and_times_are_selected(tmp_path):
    path = write(tmp_path / "a.mcap", list(range(100)))
    assert [m[2] for m in read(path, [3], start_ns=10, stop_ns=20)] == [10, 12, 14, 16, 18]


def test_the_same_calls_give_the_same_bytes(tmp_path):
    a = write(tmp_path / "a.mcap", [1, 2, 3], compression="zstd")
    b = write(tmp_path / "b.mcap", [1, 2, 3], compression="zstd")
    assert a.read_bytes() == b.read_bytes()


def test_another_implementation_reads_it(tmp_path):
    path = write(tmp_path / "a.mcap", list(range(40)), compression="zstd")
    with RosbagsReader(path) as other:
        theirs = [(c.topic, time, bytes(raw)) for c, time, raw in other.messages()]
    ours = [("/a" if m[0] == 3 else "/b", m[2], m[4]) for m in read(path)]
    assert theirs == ours


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_file_cut_anywhere_gives_a_prefix_and_says_so(tmp_path, compression):
    path = write(tmp_path / "a.mcap", list(range(60)), compression=compression)
    whole, data = read(path), path.read_bytes()
    found = []
    for cut in [8, 9, 30, 200, *(len(data) * i // 9 for i in range(1, 9)), len(data) - 1]:
        part = tmp_path / "cut.mcap"
        part.write_bytes(data[:cut])
        reader = McapReader(part)
        got = [(*m[:4], bytes(m.data)) for m in reader.messages([3, 4])]
        assert got == whole[: len(got)]
        assert sum(reader.counts.values()) == len(got)
        assert reader.damage, cut
        assert "cut.mcap: at byte" in reader.damage[0]
        found.append(len(got))
    assert found == sorted(found)
    assert found[0] == 0
    assert found[-1] == 60
    assert 0 < found[6] < 60


def test_altered_bytes_cost_their_chunk_only_and_are_noticed(tmp_path):
    path = write(tmp_path / "a.mcap", list(range(60)))
    whole, data = read(path), bytearray(path.read_bytes())
    data[data.index(struct.pack("<I", 30) * 50) + 100] ^= 1
    path.write_bytes(data)
    reader = McapReader(path)
    got = [(*m[:4], bytes(m.data)) for m in reader.messages([3, 4])]
    assert set(got) < set(whole)
    assert len(got) >= 40
    assert 30 not in [m[1] for m in got]
    [damage] = reader.damage
    assert "the checksum does not match, its bytes were altered" in damage
    assert "messages from 0.000 s" in damage


def test_a_broken_record_in_the_middle_is_bridged_by_the_index(tmp_path):
    path = write(tmp_path / "a.mcap", list(range(60)))
    whole, data = read(path), bytearray(path.read_bytes())
    first_chunk = 8 + 9 + int.from_bytes(data[9:17], "little")
    data[first_chunk + 1 : first_chunk + 9] = b"\xff" * 8  # an impossible length
    path.write_bytes(data)
    assert read(path) == whole  # the chunk knows its size, the index where the next one is
    data[first_chunk] = 0  # and an impossible type
    path.write_bytes(data)
    reader = McapReader(path)
    got = [(*m[:4], bytes(m.data)) for m in reader.messages([3, 4])]
    assert got == whole[-len(got) :]
    assert 20 < len(got) < 60
    assert "chunks of them found by the index" in reader.damage[0]


def test_lz4_and_unknown_compressions(tmp_path):
    path = write(tmp_path / "a.mcap", [1, 2, 3], size=400)
    data = path.read_bytes()
    start = 8 + 9 + int.from_bytes(data[9:17], "little")
    length = int.from_bytes(data[start + 1 : start + 9], "little")
    head, records = data[start + 9 : start + 9 + 28], data[start + 9 + 40 : start + 9 + length]

    def with_chunk(name: bytes, packed: bytes) -> list:
        chunk = head + struct.pack("<I", len(name)) + name + struct.pack("<Q", len(packed)) + packed
        part = tmp_path / "part.mcap"
        part.write_bytes(data[:start] + struct.pack("<BQ", 6, len(chunk)) + chunk)
        return [m[1] for m in read(part)]

    assert with_chunk(b"lz4", lz4.frame.compress(records)) == [0, 1, 2]
    assert with_chunk(b"brotli", records) == []


@pytest.mark.parametrize("content", [b"", b"\x89MC", b"hello world, this is no bag"])
def test_what_is_not_mcap_is_refused(tmp_path, content):
    path = tmp_path / "a.mcap"
    path.write_bytes(content)
    with pytest.raises(BagError, match=rf"\({len(content)} bytes\) is not an MCAP file"):
        McapReader(path)
    with pytest.raises(BagError, match="cannot open .*missing"):
        McapReader(tmp_path / "missing.mcap")
