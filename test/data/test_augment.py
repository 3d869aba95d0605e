"""Augmented bags: originals byte for byte, generated topics marked, provenance inside."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer

from wristworld_ros.data import augment as augment_module
from wristworld_ros.data.augment import (
    ERROR_CODES,
    RECORD,
    TOPICS,
    VIRTUAL_FRAME,
    AugmentedBagWriter,
)
from wristworld_ros.data.bag_writer import BagWriter
from wristworld_ros.data.bags import BagReader
from wristworld_ros.data.frames import BagFrames
from wristworld_ros.data.mcap import McapReader
from wristworld_ros.errors import BagError
from wristworld_ros.types import (
    CameraModel,
    ConditionMap,
    Doubt,
    PointCloud,
    Reconstruction,
    WristEstimate,
    WristFrame,
)

CAMERA = CameraModel.from_fov(1.0, 16, 16)


def result(stamp: int, level: int = 100) -> tuple[Reconstruction, WristFrame]:
    """What the two stages give for one moment, with made-up values."""
    T = np.eye(4)
    T[0, 3] = 0.25
    mask = np.zeros((16, 16), bool)
    mask[:4] = True
    condition = ConditionMap(
        np.where(mask[..., None], np.full(3, level, np.uint8), np.uint8(0)),
        mask,
        mask.astype(np.float32),
        np.where(mask, 0, -1).astype(np.int8),
        CAMERA,
    )
    empty = PointCloud(
        np.zeros((0, 3), np.float32),
        np.zeros((0, 3), np.uint8),
        np.zeros(0, np.float32),
        np.zeros(0, np.float32),
        np.zeros(0, np.uint8),
    )
    estimate = WristEstimate(
        T, CAMERA, np.eye(6) * 0.5, "learned", 0.5, 0.25, 7, 1.0, domain_distance=0.5
    )
    reconstruction = Reconstruction(
        stamp, estimate, empty, condition, "base_link", {"network": 0.5, "splat": 0.25}
    )
    wrist = WristFrame(
        stamp,
        np.full((16, 16, 3), level, np.uint8),
        mask.astype(np.float32),
        CAMERA,
        0.25,
        0.75,
        0.625,
        2,
        3,
        "stream",
        "mini",
        "ab" * 32,
        "torch",
        {"denoise": 0.5},
    )
    return reconstruction, wrist


def augment(source, out, **options) -> None:
    with BagReader(source) as bag:
        frames = BagFrames(bag)
        with AugmentedBagWriter(bag, out, {"commit": "abc", "list": [1]}, **options) as writer:
            for frame in frames:
                writer.add(frames.log_time_ns(frame.stamp_ns), *result(frame.stamp_ns))


def by_channel(path, generated: bool) -> dict[tuple, list[tuple]]:
    """(topic, schema, QoS and the rest) -> messages in order, byte for byte."""
    reader = McapReader(path)
    out = defaultdict(list)
    keys = {}
    for c in reader.channels.values():
        schema = reader.schemas[c.schema_id]
        marked = c.metadata.get("wristworld") == "generated"
        if marked == generated:
            keys[c.id] = (
                c.topic,
                c.message_encoding,
                tuple(c.metadata.items()),
                schema.name,
                schema.encoding,
                schema.data,
            )
    for m in reader.messages(keys):
        out[keys[m.channel_id]].append((m.sequence, m.log_time, m.publish_time, bytes(m.data)))
    reader.close()
    return dict(out)


def test_original_messages_are_kept_byte_for_byte(make_bag, tmp_path):
    source, out = make_bag(frames=5), tmp_path / "augmented.mcap"
    augment(source, out)
    assert by_channel(out, generated=False) == by_channel(source, generated=False)


def test_attachments_and_metadata_are_kept(make_bag, tmp_path):
    source = tmp_path / "source.mcap"
    attachment = b"\x01" + b"\0" * 7 + b"\x02" + b"\0" * 7  # times, then name, type, data, checksum
    attachment += (
        b"\x05\0\0\0a.txt" + b"\x0a\0\0\0text/plain" + b"\x02" + b"\0" * 7 + b"hi" + b"\0" * 4
    )
    with BagReader(make_bag()) as bag, BagWriter(source, types=bag.types) as copy:
        ids = {c: copy.add_connection(c) for c in bag.connections}
        copy.add_attachment(attachment)
        copy.add_metadata("operator", {"name": "me"})
        for m in bag.messages():
            copy.copy(ids[m.connection], m)
    augment(source, tmp_path / "out.mcap")
    reader = McapReader(tmp_path / "out.mcap")
    assert reader.attachments == [attachment]
    assert ("operator", {"name": "me"}) in reader.metadata
    assert by_channel(tmp_path / "out.mcap", False) == by_channel(source, False)


def test_a_sqlite_bag_keeps_payload_time_type_and_qos(make_bag, tmp_path):
    sqlite = Writer(tmp_path / "sqlite", version=9, storage_plugin=StoragePlugin.SQLITE3)
    with BagReader(make_bag("a.mcap")) as bag, sqlite as writer:
        ids = {
            c.topic: writer.add_connection(
                c.topic, c.msgtype, msgdef=c.definition.decode(), rihs01="RIHS01_x"
            )
            for c in bag.connections
        }
        for m in bag.messages():
            writer.write(ids[m.topic], m.log_time_ns, bytes(m.raw))
    augment(tmp_path / "sqlite", tmp_path / "out.mcap")
    with BagReader(tmp_path / "sqlite") as a, BagReader(tmp_path / "out.mcap") as b:
        kept = [m for m in b.messages() if not m.connection.metadata.get("wristworld")]
        originals = list(a.messages())
        assert [(m.connection, m.log_time_ns, bytes(m.raw)) for m in kept] == [
            (m.connection, m.log_time_ns, bytes(m.raw)) for m in originals
        ]


def test_generated_topics_are_marked_and_hold_the_results(make_bag, tmp_path):
    source, out = make_bag(frames=3), tmp_path / "augmented.mcap"
    augment(source, out)
    generated = by_channel(out, generated=True)
    assert {key[0] for key in generated} == {*TOPICS, "/tf"}
    assert all(len(messages) == 3 for messages in generated.values())
    with BagReader(source) as bag:
        stamps = [frame.stamp_ns for frame in BagFrames(bag)]
    with BagReader(out) as bag:
        decoded = {}
        for m in bag.messages():
            if m.connection.metadata.get("wristworld") and m.log_time_ns == stamps[1]:
                decoded[m.topic] = m.decode()
        image = decoded["/wrist/image_raw"]
        assert (image.width, image.height, image.encoding) == (16, 16, "rgb8")
        assert set(image.data.tolist()) == {100}
        assert image.header.stamp.sec * 10**9 + image.header.stamp.nanosec == stamps[1]
        assert image.header.frame_id == VIRTUAL_FRAME
        assert decoded["/wrist/condition/mask"].data.reshape(16, 16).sum() == 255 * 64
        assert decoded["/wrist/confidence"].data.reshape(16, 16)[0, 0] == 255
        assert decoded["/wrist/camera_info"].k[2] == 7.5
        estimate = decoded["/wrist/estimate"]
        assert (estimate.source, estimate.point_count, estimate.latency) == (2, 7, 0.75)
        assert estimate.pose.pose.position.x == 0.25
        assert estimate.pose.covariance.tolist() == (np.eye(6) * 0.5).reshape(-1).tolist()
        status = decoded["/wrist/status"]
        assert (status.mode, status.steps, status.seed) == ("stream", 2, 3)
        assert (status.model_sha256, status.frames_out) == ("ab" * 32, 2)
        assert (status.state, status.score, status.domain_distance) == (1, 0.625, 0.5)
        assert estimate.domain_distance == 0.5
        [transform] = decoded["/tf"].transforms
        assert (transform.child_frame_id, transform.transform.translation.x) == (
            VIRTUAL_FRAME,
            0.25,
        )
        [pairs] = [pairs for name, pairs in bag.metadata if name == RECORD]
    assert pairs["model_sha256"] == "ab" * 32
    assert (pairs["commit"], pairs["seed"], pairs["frames"]) == ("abc", "3", "3")
    assert json.loads(pairs["list"]) == [1]
    assert "/wrist/image_raw" in json.loads(pairs["topics"])


def test_a_refused_view_has_no_picture_and_a_status_that_says_why(make_bag, tmp_path):
    source, out = make_bag(frames=3), tmp_path / "augmented.mcap"
    told = [
        None,
        Doubt("out_of_domain", "too far", refused=True),
        Doubt("low_coverage", "little", refused=False),
    ]
    with (
        BagReader(source) as bag,
        AugmentedBagWriter(bag, out, {}) as writer,
    ):
        frames = BagFrames(bag)
        for frame, doubt in zip(frames, told, strict=True):
            made, view = result(frame.stamp_ns)
            refused = doubt is not None and doubt.refused
            log_time = frames.log_time_ns(frame.stamp_ns)
            writer.add(log_time, made, None if refused else view, doubt)
    messages = {"/wrist/image_raw": 0, "/wrist/confidence": 0, "/wrist/camera_info": 0}
    with BagReader(out) as bag:
        statuses = [m.decode() for m in bag.messages(["/wrist/status"])]
        for m in bag.messages(messages):
            messages[m.topic] += 1
        [pairs] = [pairs for name, pairs in bag.metadata if name == RECORD]
    assert set(messages.values()) == {2} and pairs["frames"] == "2"
    assert [s.state for s in statuses] == [1, 3, 2]
    assert [s.error_code for s in statuses] == [0, 9, 6]
    assert [s.error_message for s in statuses] == ["", "too far", "little"]
    assert [(s.frames_in, s.frames_out) for s in statuses] == [(1, 1), (2, 1), (3, 2)]
    assert [s.drop_causes for s in statuses] == [[], ["out_of_domain"], ["out_of_domain"]]
    assert statuses[1].domain_distance == 0.5


def test_codes_and_states_are_those_of_the_message():
    text = (Path(__file__).parents[2] / "msg" / "GenerationStatus.msg").read_text()
    for name, value in {
        **{f"STATE_{k}": getattr(augment_module, f"STATE_{k}") for k in
           ("GENERATING", "DEGRADED", "REFUSED")},
        **{f"ERROR_{cause.upper()}": code for cause, code in ERROR_CODES.items()},
    }.items():  # fmt: skip
        assert re.search(rf"^uint\d+ {name}={value}\b", text, re.MULTILINE), name


def test_an_augmented_bag_is_still_a_source_of_the_same_frames(make_bag, tmp_path):
    source, out = make_bag(), tmp_path / "augmented.mcap"
    augment(source, out)
    with BagReader(source) as a, BagReader(out) as b:
        for before, after in zip(BagFrames(a), BagFrames(b), strict=True):
            assert before.stamp_ns == after.stamp_ns
            assert [v.name for v in before.views] == [v.name for v in after.views]
            assert np.array_equal(before.T_world_wrist, after.T_world_wrist)


def test_names_that_are_taken_are_refused_and_nothing_is_written(make_bag, tmp_path):
    source = tmp_path / "taken.mcap"
    with BagReader(make_bag()) as bag, BagWriter(source, types=bag.types) as copy:
        for c in bag.connections:
            copy.add_connection(c)
        copy.add_topic("/wrist/image_raw", "sensor_msgs/msg/Image", "image")
    text = "already has /wrist/image_raw, which would be generated"
    with BagReader(source) as bag, pytest.raises(BagError, match=text):
        AugmentedBagWriter(bag, tmp_path / "out.mcap", {})
    assert not list(tmp_path.glob("out*"))


def test_overwriting_is_refused(make_bag, tmp_path):
    source, out = make_bag(), tmp_path / "augmented.mcap"
    before = source.read_bytes()
    with BagReader(source) as bag, pytest.raises(BagError, match="is the bag to read from"):
        AugmentedBagWriter(bag, source, {}, overwrite=True)
    assert source.read_bytes() == before
    augment(source, out)
    with pytest.raises(BagError, match="exists already"):
        augment(source, out)
    augment(source, out, overwrite=True)
    with BagReader(out) as bag, pytest.raises(BagError, match="already has /wrist"):
        AugmentedBagWriter(bag, tmp_path / "twice.mcap", {})


def test_after_an_error_there_is_no_bag_of_that_name(make_bag, tmp_path):
    out = tmp_path / "augmented.mcap"
    with (
        BagReader(make_bag()) as bag,
        pytest.raises(RuntimeError, match="half way"),
        AugmentedBagWriter(bag, out, {}) as writer,
    ):
        writer.add(2**62, *result(5))
        raise RuntimeError("half way")
    assert not out.exists()
    assert (tmp_path / "augmented.mcap.partial").exists()
