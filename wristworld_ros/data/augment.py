"""Augmented bags: every original message byte for byte, and generated topics marked as such."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wristworld_ros.data.bag_writer import BagWriter
from wristworld_ros.data.bags import BagMessage, BagReader
from wristworld_ros.data.messages import (
    Fields,
    camera_info_fields,
    header_fields,
    image_fields,
    pose_fields,
    tf_fields,
    transform_fields,
)
from wristworld_ros.errors import BagError
from wristworld_ros.types import Doubt, Reconstruction, WristFrame

if TYPE_CHECKING:
    from typing_extensions import Self

#: Stored with every generated topic, and name of the metadata record with the provenance.
MARK = {"wristworld": "generated"}
RECORD = "wristworld_generated"
VIRTUAL_FRAME = "wrist_camera_virtual_optical_frame"
TOPICS: Mapping[str, tuple[str, str]] = {
    "/wrist/estimate": ("wristworld_ros/msg/WristEstimate", "state"),
    "/wrist/condition/image": ("sensor_msgs/msg/Image", "image"),
    "/wrist/condition/mask": ("sensor_msgs/msg/Image", "image"),
    "/wrist/condition/camera_info": ("sensor_msgs/msg/CameraInfo", "image"),
    "/wrist/image_raw": ("sensor_msgs/msg/Image", "image"),
    "/wrist/camera_info": ("sensor_msgs/msg/CameraInfo", "image"),
    "/wrist/confidence": ("sensor_msgs/msg/Image", "image"),
    "/wrist/status": ("wristworld_ros/msg/GenerationStatus", "state"),
}
#: Values of the messages' constants.
SOURCES = {"kinematic": 1, "learned": 2, "fused": 3}
STATE_GENERATING, STATE_DEGRADED, STATE_REFUSED = 1, 2, 3
ERROR_CODES = {"low_coverage": 6, "out_of_domain": 9}


def estimate_fields(result: Reconstruction, child_frame: str = VIRTUAL_FRAME) -> Fields:
    """Fields of wristworld_ros/WristEstimate."""
    estimate = result.estimate
    return {
        "header": header_fields(result.stamp_ns, result.world_frame),
        "child_frame_id": child_frame,
        "pose": {
            "pose": pose_fields(estimate.T_world_wrist),
            "covariance": np.asarray(estimate.covariance, np.float64).reshape(36),
        },
        "source": SOURCES[estimate.source],
        "confidence": estimate.confidence,
        "coverage": estimate.coverage,
        "point_count": estimate.point_count,
        "front_facing_fraction": estimate.front_facing_fraction,
        "reprojection_error": estimate.reprojection_error,
        "domain_distance": estimate.domain_distance,
        **_latency(result.latency),
    }


def status_fields(
    frame: WristFrame,
    frames_in: int,
    frames_out: int,
    domain_distance: float = float("nan"),
    doubt: Doubt | None = None,
) -> Fields:
    """Fields of wristworld_ros/GenerationStatus for a view that is given, without drops."""
    return {
        "header": header_fields(frame.stamp_ns, VIRTUAL_FRAME),
        "mode": frame.mode,
        "backend": frame.backend,
        "steps": frame.steps,
        **_latency(frame.latency),
        "coverage": frame.coverage,
        "imagined_fraction": frame.imagined_fraction,
        "score": frame.score,
        "domain_distance": domain_distance,
        "model_id": frame.model_id,
        "model_sha256": frame.model_sha256,
        "seed": frame.seed,
        "frames_in": frames_in,
        "frames_out": frames_out,
        **_state(doubt),
    }


def refused_fields(result: Reconstruction, doubt: Doubt, frames_in: int, frames_out: int) -> Fields:
    """Fields of wristworld_ros/GenerationStatus where no view is given."""
    return {
        "header": header_fields(result.stamp_ns, VIRTUAL_FRAME),
        "coverage": result.condition.coverage,
        "domain_distance": result.estimate.domain_distance,
        "frames_in": frames_in,
        "frames_out": frames_out,
        **_state(doubt),
    }


def _state(doubt: Doubt | None) -> Fields:
    if doubt is None:
        return {"state": STATE_GENERATING}
    return {
        "state": STATE_REFUSED if doubt.refused else STATE_DEGRADED,
        "error_code": ERROR_CODES[doubt.cause],
        "error_message": doubt.text,
    }


def _latency(stages: Mapping[str, float]) -> Fields:
    return {
        "latency": sum(stages.values()),
        "latency_stages": list(stages),
        "latency_seconds": np.array(list(stages.values()), np.float32),
    }


class AugmentedBagWriter:
    """Copies a bag and adds what was generated from it, in the order of time.

    Original messages keep payload, log time, publish time, sequence, schema and QoS. Generated
    topics carry ``MARK`` in their channel, and the record ``RECORD`` says what made them.

    Args:
        source: bag to copy, open.
        out: bag to write; must not exist unless ``overwrite``.
        provenance: commit, command and the like, for the record.

    Raises:
        BagError: ``out`` is the source or exists, or a generated topic is in the source already.
    """

    def __init__(
        self,
        source: BagReader,
        out: str | Path,
        provenance: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> None:
        out = Path(out)
        if out.resolve() == source.path.resolve():
            raise BagError(f"{out} is the bag to read from; write to another path.")
        if taken := sorted(set(TOPICS) & set(source.topics)):
            raise BagError(
                f"bag {source.path} already has {', '.join(taken)}, which would be generated. "
                "Use the original bag, or remove these topics (ros2 bag convert)."
            )
        if any(c.metadata.get("wristworld") for c in source.connections):
            raise BagError(f"bag {source.path} is an augmented one already; use its original.")
        self._bag = BagWriter(
            out, version=_metadata_version(source), types=source.types, overwrite=overwrite
        )
        self._provenance = dict(provenance)
        self._frames = self._views = 0
        self._refused: Counter[str] = Counter()
        try:
            self._ids = {c: self._bag.add_connection(c) for c in source.connections}
            for topic, (msgtype, qos) in TOPICS.items():
                self._bag.add_topic(topic, msgtype, qos, extra=MARK)
            self._bag.add_topic("/tf", "tf2_msgs/msg/TFMessage", "tf", extra=MARK, beside=True)
            for attachment in source.attachments:
                self._bag.add_attachment(attachment)
            for name, pairs in source.metadata:
                self._bag.add_metadata(name, pairs)
        except BaseException:
            self._bag.abort()
            raise
        self._originals: Iterator[BagMessage] = source.messages()
        self._next = next(self._originals, None)
        self.copied = 0

    def add(
        self,
        log_time_ns: int,
        result: Reconstruction,
        frame: WristFrame | None,
        doubt: Doubt | None = None,
    ) -> None:
        """Append what was generated for one moment, after the originals up to its log time.

        Args:
            frame: None where the view was refused; then there is no picture of this moment.
            doubt: what is to be said of the view, or why it was refused.
        """
        self._copy_until(log_time_ns)
        self._frames += 1
        stamp, condition = result.stamp_ns, result.condition
        pose = transform_fields(
            result.estimate.T_world_wrist, stamp, result.world_frame, VIRTUAL_FRAME
        )
        for topic, fields in (
            ("/tf", tf_fields([pose])),
            ("/wrist/estimate", estimate_fields(result)),
            ("/wrist/condition/image", _image(condition.image, "rgb8", stamp)),
            ("/wrist/condition/mask", _image(condition.mask_image, "mono8", stamp)),
            (
                "/wrist/condition/camera_info",
                camera_info_fields(condition.camera, stamp, VIRTUAL_FRAME),
            ),
        ):
            self._bag.write(topic, fields, log_time_ns)
        if frame is None:
            assert doubt is not None
            self._refused[doubt.cause] += 1
            status = refused_fields(result, doubt, self._frames, self._views)
        else:
            self._views += 1
            self._add_view(log_time_ns, frame)
            distance = result.estimate.domain_distance
            status = status_fields(frame, self._frames, self._views, distance, doubt)
        status["drop_causes"] = list(self._refused)
        status["drop_counts"] = np.array(list(self._refused.values()), np.uint64)
        self._bag.write("/wrist/status", status, log_time_ns)

    def _add_view(self, log_time_ns: int, frame: WristFrame) -> None:
        stamp = frame.stamp_ns
        confidence = np.round(np.clip(frame.confidence, 0, 1) * 255).astype(np.uint8)
        for topic, fields in (
            ("/wrist/image_raw", _image(frame.image, "rgb8", stamp)),
            ("/wrist/camera_info", camera_info_fields(frame.camera, stamp, VIRTUAL_FRAME)),
            ("/wrist/confidence", _image(confidence, "mono8", stamp)),
        ):
            self._bag.write(topic, fields, log_time_ns)
        self._provenance.update(
            model_id=frame.model_id,
            model_sha256=frame.model_sha256,
            seed=frame.seed,
            steps=frame.steps,
            mode=frame.mode,
            backend=frame.backend,
        )

    def _copy_until(self, log_time_ns: int | None) -> None:
        while self._next is not None and (
            log_time_ns is None or self._next.log_time_ns <= log_time_ns
        ):
            message = self._next
            self._bag.copy(self._ids[message.connection], message)
            self.copied += 1
            self._next = next(self._originals, None)

    def close(self) -> None:
        """Copy the rest, write the provenance, and give the bag its name."""
        self._copy_until(None)
        pairs = {
            "topics": json.dumps([*TOPICS, "/tf (frame " + VIRTUAL_FRAME + ")"]),
            "frames": str(self._views),
            **{k: v if isinstance(v, str) else json.dumps(v) for k, v in self._provenance.items()},
        }
        self._bag.add_metadata(RECORD, pairs)
        self._bag.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self._bag.abort()


def _image(pixels: Any, encoding: str, stamp: int) -> Fields:
    return image_fields(pixels, encoding, stamp, VIRTUAL_FRAME)


def _metadata_version(source: BagReader) -> int:
    """9 when the bag states QoS by names, as rosbag2 does from version 9 on, else 8."""
    named = (isinstance(q.get("durability"), str) for c in source.connections for q in c.qos)
    return 9 if any(named) else 8
