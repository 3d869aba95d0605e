"""Bags: reading mcap, sqlite3 and folders, also damaged ones; writing them whole or not at all."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
import yaml
from rosbags.rosbag2 import Reader as RosbagsReader
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.rosbag2.enums import CompressionFormat, CompressionMode

from wristworld_ros.data.bag_writer import BagWriter
from wristworld_ros.data.bags import BagReader
from wristworld_ros.data.messages import image_fields
from wristworld_ros.errors import BagError, InvalidInputError


def content(path: Path) -> list[tuple[str, int, bytes]]:
    with BagReader(path) as bag:
        return [(m.topic, m.log_time_ns, bytes(m.raw)) for m in bag.messages()]


def as_sqlite(source: Path, folder: Path, **compression) -> Path:
    """The same messages as rosbags writes them with storage sqlite3."""
    with BagReader(source) as bag:
        writer = Writer(folder, version=9, storage_plugin=StoragePlugin.SQLITE3)
        if compression:
            writer.set_compression(compression["mode"], CompressionFormat.ZSTD)
        with writer:
            connections = {}
            for c in bag.connections:
                connections[c.topic] = writer.add_connection(
                    c.topic, c.msgtype, msgdef=c.definition.decode(), rihs01="RIHS01_x"
                )
            for m in bag.messages():
                writer.write(connections[m.topic], m.log_time_ns, bytes(m.raw))
    return folder


def test_topics_types_and_messages(make_bag, scene):
    with BagReader(make_bag(frames=3)) as bag:
        assert bag.counts["/anchor_0/image_raw"] == 3
        assert bag.msgtype("/tf_static") == "tf2_msgs/msg/TFMessage"
        latched = {c.topic for c in bag.connections if c.latched}
        assert latched == {"/tf_static", "/instruction"}
        [text] = bag.messages(["/instruction"])
        assert text.decode().data == "lift the cube"
        images = list(bag.messages(["/anchor_1/image_raw"]))
        assert [m.log_time_ns for m in images] == [
            scene.start_ns + i * scene.period_ns for i in range(3)
        ]
        assert np.array_equal(images[2].decode().data.reshape(24, 32, 3), scene.picture(1, 2))
        assert bag.damage == []
        with pytest.raises(
            BagError, match=r"has no topic '/nothing'; it has /anchor_0/camera_info"
        ):
            list(bag.messages(["/nothing"]))


def test_single_files_folders_and_sqlite_hold_the_same(make_bag, tmp_path):
    single = make_bag("a.mcap")
    expected = sorted(content(single))
    assert sorted(content(make_bag("folder"))) == expected
    folder = as_sqlite(single, tmp_path / "sqlite")
    assert sorted(content(folder)) == expected
    assert sorted(content(folder / "sqlite.db3")) == expected


@pytest.mark.parametrize("mode", [CompressionMode.FILE, CompressionMode.MESSAGE])
def test_compressed_bags_are_read(make_bag, tmp_path, mode):
    single = make_bag("a.mcap")
    folder = as_sqlite(single, tmp_path / "packed", mode=mode)
    assert sorted(content(folder)) == sorted(content(single))


def test_a_folder_is_a_bag_for_others_too(make_bag):
    folder = make_bag("folder", frames=2)
    with RosbagsReader(folder) as other:
        assert other.message_count == 22
        durability = {c.topic: c.ext.offered_qos_profiles[0].durability for c in other.connections}
        assert durability["/instruction"].name == "TRANSIENT_LOCAL"
        assert durability["/tf"].name == "VOLATILE"
    info = yaml.safe_load((folder / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert info["relative_file_paths"] == ["folder_0.mcap"]
    assert info["message_count"] == 22


def test_a_folder_without_its_description_or_a_part_is_read_with_a_note(make_bag):
    folder = make_bag("folder", frames=2)
    expected = content(folder)
    (folder / "metadata.yaml").unlink()
    with BagReader(folder) as bag:
        assert "metadata.yaml is missing" in bag.damage[0]
        assert len(list(bag.messages())) == len(expected)
    (folder / "metadata.yaml").write_text("rosbag2_bagfile_information: [")
    with BagReader(folder) as bag:
        assert "metadata.yaml cannot be read" in bag.damage[0]
    (folder / "metadata.yaml").write_text(
        "rosbag2_bagfile_information:\n  relative_file_paths: [folder_0.mcap, folder_1.mcap]\n"
    )
    with BagReader(folder) as bag:
        assert bag.damage == ["folder: folder_1.mcap, a part of the bag, is missing"]
        assert len(list(bag.messages())) == len(expected)


def test_split_bags_are_merged_by_time(make_bag, tmp_path):
    whole = content(make_bag("a.mcap", frames=4))
    folder = tmp_path / "split"
    folder.mkdir()
    with BagReader(tmp_path / "a.mcap") as bag:
        parts = [BagWriter(folder / f"split_{i}.mcap", types=bag.types) for i in range(2)]
        ids = [{c: part.add_connection(c) for c in bag.connections} for part in parts]
        for i, m in enumerate(bag.messages()):
            parts[i % 2].copy(ids[i % 2][m.connection], m)
        for part in parts:
            part.close()
    merged = content(folder)
    assert sorted(merged) == sorted(whole)
    assert [m[1] for m in merged] == sorted(m[1] for m in whole)


def test_no_bag_at_all(tmp_path):
    with pytest.raises(BagError, match=r"bag .*nowhere does not exist"):
        BagReader(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BagError, match="holds no bag"):
        BagReader(tmp_path / "empty")
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(BagError, match=r"a\.txt is not a bag: known are \.mcap and \.db3"):
        BagReader(tmp_path / "a.txt")
    (tmp_path / "a.db3").write_text("hello")
    with pytest.raises(BagError, match=r"\(5 bytes\) is not an sqlite3 bag"):
        BagReader(tmp_path / "a.db3")
    sqlite3.connect(tmp_path / "other.db3").execute("CREATE TABLE x(y)").connection.close()
    with pytest.raises(BagError, match="no table of topics"):
        BagReader(tmp_path / "other.db3")


def test_truncated_sqlite_is_salvaged(make_bag, tmp_path):
    single = make_bag("a.mcap", frames=40)
    whole = set(content(single))
    data = (as_sqlite(single, tmp_path / "sqlite") / "sqlite.db3").read_bytes()
    recovered = []
    for share in (0.3, 0.6, 0.9):
        part = tmp_path / "part.db3"
        part.write_bytes(data[: int(len(data) * share)])
        with BagReader(part) as bag:
            got = {(m.topic, m.log_time_ns, bytes(m.raw)) for m in bag.messages()}
            assert "messages were recovered, the rest is lost" in bag.damage[0]
            assert sum(bag.counts.values()) == len(got)
        assert got < whole
        recovered.append(len(got))
    assert recovered == sorted(recovered)
    assert recovered[0] > 50
    part.write_bytes(data[:5000])
    with pytest.raises(BagError, match=r"damaged so early|not an sqlite3 bag|no table"):
        BagReader(part)


def test_an_unmerged_write_ahead_log_is_reported(make_bag, tmp_path):
    file = as_sqlite(make_bag("a.mcap"), tmp_path / "sqlite") / "sqlite.db3"
    file.with_name("sqlite.db3-wal").write_bytes(b"x" * 100)
    with BagReader(file) as bag:
        assert "wal_checkpoint" in bag.damage[0]


def test_a_damaged_message_is_named(tmp_path):
    path = tmp_path / "a.mcap"
    with BagWriter(path) as writer:
        writer.add_topic("/text", "std_msgs/msg/String")
        writer.write("/text", {"data": "hello"}, 5_000_000_000)
    with BagReader(path) as bag, BagWriter(tmp_path / "b.mcap") as writer:
        channel = writer.add_connection(bag.connections[0])
        [message] = bag.messages()
        writer.copy(channel, type(message)(**{**message.__dict__, "raw": message.raw[:9]}))
    with BagReader(tmp_path / "b.mcap") as bag:
        [message] = bag.messages()
        with pytest.raises(
            InvalidInputError, match=r"/text at 5\.000 s: 9 bytes are not a std_msgs"
        ):
            message.decode()


def test_writing_is_deterministic(make_bag):
    a = make_bag("1/same.mcap").read_bytes()
    b = make_bag("2/same.mcap").read_bytes()
    assert a == b


def test_a_bag_has_its_name_only_when_it_is_complete(tmp_path):
    path = tmp_path / "a.mcap"
    image = image_fields(np.zeros((2, 2, 3), np.uint8), "rgb8", 1, "cam")
    with pytest.raises(RuntimeError, match="out of luck"), BagWriter(path) as writer:
        writer.add_topic("/image", "sensor_msgs/msg/Image", "image")
        writer.write("/image", image, 1)
        raise RuntimeError("out of luck")
    assert not path.exists()
    partial = tmp_path / "a.mcap.partial"
    partial.rename(tmp_path / "rescued.mcap")
    with BagReader(tmp_path / "rescued.mcap") as bag:
        assert len(list(bag.messages())) == 1
        assert bag.damage
    with pytest.raises(RuntimeError, match="at once"), BagWriter(path):
        raise RuntimeError("at once")
    assert not partial.exists()


def test_writing_refuses_what_it_cannot_do(tmp_path):
    path = tmp_path / "a.mcap"
    with BagWriter(path) as writer:
        writer.add_topic("/text", "std_msgs/msg/String", "latched")
        with pytest.raises(BagError, match="'/text' is in this bag already"):
            writer.add_topic("/text", "std_msgs/msg/String")
        with pytest.raises(BagError, match="'/other' was not declared"):
            writer.write("/other", {}, 0)
        with pytest.raises(BagError, match="QoS 'best' is not one of"):
            writer.add_topic("/x", "std_msgs/msg/String", "best")
        with pytest.raises(InvalidInputError, match="no field"):
            writer.write("/text", {"text": "x"}, 0)
    before = path.read_bytes()
    with pytest.raises(BagError, match="exists already"):
        BagWriter(path)
    assert path.read_bytes() == before
    with BagWriter(path, overwrite=True) as writer:
        writer.add_topic("/new", "std_msgs/msg/String")
    with BagReader(path) as bag:
        assert bag.topics == ["/new"]
    (tmp_path / "file").write_text("")
    with pytest.raises(BagError, match="cannot write"):
        BagWriter(tmp_path / "file" / "below.mcap")
