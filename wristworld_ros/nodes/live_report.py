"""Results of a live run: the augmented bag and the report, from what was recorded.

Needs no ROS: the recorded messages are read by ``data.message_types``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from tqdm import tqdm

from wristworld_ros.data.augment import MARK, RECORD, SOURCES, STATE_DEGRADED
from wristworld_ros.data.bag_writer import BagWriter, qos_profile
from wristworld_ros.data.bags import BagMessage, BagReader, Connection
from wristworld_ros.data.frames import BagFrames
from wristworld_ros.data.message_types import MessageTypes
from wristworld_ros.data.messages import decode_camera_info, decode_image, stamp_to_ns
from wristworld_ros.errors import WristWorldError
from wristworld_ros.evaluation.baselines import true_condition
from wristworld_ros.evaluation.report import EpisodeReport
from wristworld_ros.evaluation.scores import percentiles
from wristworld_ros.geometry.transforms import from_quaternion
from wristworld_ros.types import ConditionMap

if TYPE_CHECKING:
    from wristworld_ros.nodes.playback import PlaybackTimes, Recorded

_SOURCE_NAMES = {number: name for name, number in SOURCES.items()}
#: Last part of a topic -> QoS that it is published with, where that is not ``image``.
_QOS = {"estimate": "state", "status": "state", "diagnostics": "state", "tf": "tf"}
#: Outputs that are needed to show a frame, without the namespace.
_PARTS = (
    "wrist/estimate",
    "wrist/condition/image",
    "wrist/condition/mask",
    "wrist/condition/camera_info",
    "wrist/image_raw",
    "wrist/confidence",
    "wrist/status",
)


@dataclass
class LiveFrame:
    """All that was published with one stamp: topic without namespace -> decoded message."""

    parts: dict[str, Any] = field(default_factory=dict)
    received: float = 0.0

    @property
    def complete(self) -> bool:
        return all(name in self.parts for name in _PARTS)


def only_virtual(
    recorded: Iterable[Recorded], types: MessageTypes, virtual_frame: str
) -> list[Recorded]:
    """What the graph published: without /tf messages of others, which the bag holds already."""
    kept = []
    for message in recorded:
        if message.topic == "/tf":
            transforms = types.deserialize(message.msgtype, message.raw).transforms
            if not any(t.child_frame_id == virtual_frame for t in transforms):
                continue
        kept.append(message)
    return kept


def write_augmented(
    source: BagReader,
    out: Path,
    recorded: Sequence[Recorded],
    times: PlaybackTimes,
    provenance: Mapping[str, str],
) -> None:
    """The bag that was played, byte for byte, with what was recorded, marked as generated.

    Recorded messages get the time of their arrival on the bag's own time line.
    """
    with BagWriter(out, types=source.types, overwrite=True) as bag:
        ids = {c: bag.add_connection(c) for c in source.connections}
        recorded_as = {c.topic: c.metadata.get("offered_qos_profiles") for c in source.connections}
        added: dict[str, tuple[int, Connection]] = {}
        for topic, msgtype in {m.topic: m.msgtype for m in recorded}.items():
            name = _QOS.get(topic.rsplit("/", 1)[-1], "image")
            profiles = yaml.safe_dump([qos_profile(name)], sort_keys=False).strip()
            connection = Connection(
                topic,
                msgtype,
                "ros2msg",
                bag.types.definition(msgtype).encode(),
                "cdr",
                {
                    "offered_qos_profiles": recorded_as.get(topic) or profiles,
                    "topic_type_hash": bag.types.type_hash(msgtype),
                    **MARK,
                },
            )
            added[topic] = bag.add_connection(connection), connection
        waiting = sorted(recorded, key=lambda m: m.time)
        position = 0
        sequence = dict.fromkeys(added, 0)

        def write_until(log_time_ns: int | None) -> None:
            nonlocal position
            while position < len(waiting):
                m = waiting[position]
                at = times.to_bag_time(m.time)
                if log_time_ns is not None and at > log_time_ns:
                    return
                number, connection = added[m.topic]
                bag.copy(
                    number,
                    BagMessage(connection, sequence[m.topic], at, at, m.raw, bag.types),
                )
                sequence[m.topic] += 1
                position += 1

        for message in source.messages():
            write_until(message.log_time_ns)
            bag.copy(ids[message.connection], message)
        write_until(None)
        bag.add_metadata(RECORD, {"topics": ", ".join(sorted(added)), **provenance})


def live_frames(
    recorded: Iterable[Recorded], types: MessageTypes, namespace: str
) -> dict[int, LiveFrame]:
    """Stamp [ns] -> what was published for it; only stamps with a picture and all its parts."""
    prefix = f"/{namespace}/" if namespace else "/"
    frames: dict[int, LiveFrame] = {}
    for m in recorded:
        name = m.topic.removeprefix(prefix)
        if name not in _PARTS:
            continue
        message = types.deserialize(m.msgtype, m.raw)
        if getattr(message, "error_code", 0) and getattr(message, "state", 0) != STATE_DEGRADED:
            continue
        frame = frames.setdefault(stamp_to_ns(message.header.stamp, m.topic), LiveFrame())
        frame.parts[name] = message
        if name == "wrist/image_raw":
            frame.received = m.time
    return {stamp: frame for stamp, frame in sorted(frames.items()) if frame.complete}


def report_live(
    report: EpisodeReport,
    source: BagFrames,
    frames: Mapping[int, LiveFrame],
    times: PlaybackTimes,
) -> dict[str, Any]:
    """Put every recorded frame into the report; returns rate and latency as a user sees them.

    Raises:
        WristWorldError: the graph gave no picture at all.
    """
    if not frames:
        raise WristWorldError(
            "the nodes published no complete wrist view. The causes are in /diagnostics of "
            "augmented.mcap, and in nodes.log."
        )
    image_topics = list(source.cameras.values())
    latency: list[float] = []
    with tqdm(total=len(frames), unit="frame", desc="scoring") as progress:
        for anchor, truth in source.with_truth():
            live = frames.get(anchor.stamp_ns)
            if live is None:
                continue
            estimate, status = live.parts["wrist/estimate"], live.parts["wrist/status"]
            camera = decode_camera_info(live.parts["wrist/condition/camera_info"])
            assert camera is not None
            condition = ConditionMap.from_published(
                np.array(decode_image(live.parts["wrist/condition/image"])),
                decode_image(live.parts["wrist/condition/mask"])[..., 0],
                camera,
            )
            position, turn = estimate.pose.pose.position, estimate.pose.pose.orientation
            T_world_wrist = from_quaternion(
                [position.x, position.y, position.z], [turn.x, turn.y, turn.z, turn.w]
            )
            same_world = estimate.header.frame_id == anchor.world_frame and anchor.calibrated
            true_map = None
            if truth is not None and truth.T_world_camera is not None and same_world:
                true_camera = (truth.camera or camera).resized(camera.width, camera.height)
                true_map = true_condition(anchor, truth.T_world_camera, true_camera)
            report.add(
                anchor,
                condition,
                np.array(decode_image(live.parts["wrist/image_raw"])),
                decode_image(live.parts["wrist/confidence"])[..., 0].astype(np.float32) / 255,
                T_world_wrist=T_world_wrist if same_world else None,
                source=_SOURCE_NAMES.get(estimate.source, "none"),
                truth=truth,
                true_map=true_map,
                latency={**_stages("stage1", estimate), **_stages("stage2", status)},
                score=status.score,
                domain_distance=estimate.domain_distance,
            )
            log_time = source.log_time_ns(anchor.stamp_ns)
            sent = [times.sent.get(topic, {}).get(log_time) for topic in image_topics]
            latency.append(live.received - max(t for t in sent if t is not None))
            progress.update()
    received = sorted(frame.received for frame in frames.values())
    span = received[-1] - received[0]
    return {
        "rate_hz": (len(received) - 1) / span if span > 0 else 0.0,
        "latency_s": percentiles(latency),
        "played_s": times.finished - times.started,
        "playback_rate": times.rate,
        "messages_sent_late": times.late,
    }


def _stages(prefix: str, message: Any) -> dict[str, float]:
    return {
        f"{prefix}_{name}": float(seconds)
        for name, seconds in zip(message.latency_stages, message.latency_seconds, strict=True)
    }


def account(counters: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """The nodes' own counters: frames in, out, dropped by cause; what never matched is a drop."""
    result: dict[str, Any] = {}
    for node, values in counters.items():
        dropped = {
            key.removeprefix("dropped "): int(n)
            for key, n in values.items()
            if key.startswith("dropped ")
        }
        if unmatched := int(values.get("unmatched", 0)):
            cause = "no_condition" if "generation" in node else "unmatched"
            dropped[cause] = dropped.get(cause, 0) + unmatched
        result[node] = {
            "in": int(values["frames_in"]),
            "out": int(values["frames_out"]),
            "dropped": dropped,
        }
    return result


def through_both(
    counts: Mapping[str, Mapping[str, Any]], reconstruction: str, generation: str
) -> dict[str, Any]:
    """Sets of images into the graph, pictures out of it, and why the others were dropped.

    What generation_node reports as ``no_condition`` is what reconstruction_node has dropped for a
    reason of its own; anything beyond that was lost on the way from one to the other.
    """
    first, second = counts[reconstruction], counts[generation]
    dropped: dict[str, int] = dict(first["dropped"])
    for cause, n in second["dropped"].items():
        if cause == "no_condition":
            cause, n = "lost_between_nodes", n - (first["in"] - first["out"])
        if n > 0:
            dropped[cause] = dropped.get(cause, 0) + n
    return {"in": first["in"], "out": second["out"], "dropped": dropped}
