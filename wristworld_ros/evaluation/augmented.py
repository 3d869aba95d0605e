"""Scores of a recording that already holds generated topics: of the live nodes, or of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wristworld_ros.data import messages
from wristworld_ros.data.bags import BagReader
from wristworld_ros.data.frames import BagFrames
from wristworld_ros.errors import BagError
from wristworld_ros.evaluation.baselines import true_condition
from wristworld_ros.evaluation.report import EpisodeReport
from wristworld_ros.evaluation.scores import percentiles
from wristworld_ros.geometry.transforms import from_quaternion
from wristworld_ros.types import CameraModel, ConditionMap, FloatArray, Image

#: Part of a moment -> topic, relative to the namespace.
TOPICS: Mapping[str, str] = {
    "image": "wrist/image_raw",
    "camera": "wrist/camera_info",
    "confidence": "wrist/confidence",
    "condition": "wrist/condition/image",
    "mask": "wrist/condition/mask",
    "estimate": "wrist/estimate",
    "status": "wrist/status",
}
SOURCES = {0: "refused", 1: "kinematic", 2: "learned", 3: "fused"}


@dataclass
class GeneratedMoment:
    """What was published for one stamp; parts that are missing are None.

    Attributes:
        log_time_ns: when the picture was recorded [ns].
        latency: ``reconstruction`` and ``generation`` -> seconds since the last anchor image.
    """

    image: Image | None = None
    camera: CameraModel | None = None
    confidence: np.ndarray | None = None
    condition: Image | None = None
    mask: np.ndarray | None = None
    T_world_wrist: FloatArray | None = None
    world_frame: str = ""
    source: str = ""
    log_time_ns: int = 0
    latency: dict[str, float] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether there is a picture and what it was made from."""
        parts = (self.image, self.camera, self.condition, self.mask)
        return all(part is not None for part in parts)

    def condition_map(self) -> ConditionMap:
        """The condition map; its depth was not published and is 0."""
        assert self.camera is not None and self.condition is not None and self.mask is not None
        return ConditionMap(
            image=self.condition,
            mask=self.mask,
            depth=np.zeros(self.mask.shape, np.float32),
            view=np.where(self.mask, 0, -1).astype(np.int8),
            camera=self.camera,
        )


@dataclass(frozen=True)
class LiveNumbers:
    """How the nodes did.

    Attributes:
        frames_in, frames_out: sets of anchor images, and pictures, as generation_node counts.
        drops: cause -> sets dropped.
        rate_hz: pictures per second of recording time, NaN with fewer than two.
        latency_s: part -> p50, p99 and mean [s].
        model_id, model_sha256: what the status names.
    """

    frames_in: int
    frames_out: int
    drops: dict[str, int]
    rate_hz: float
    latency_s: dict[str, Any]
    model_id: str
    model_sha256: str


def read_generated(
    bag: BagReader, namespace: str = ""
) -> tuple[dict[int, GeneratedMoment], LiveNumbers]:
    """Generated moments by stamp, and the numbers of the nodes.

    Raises:
        BagError: the bag has no generated picture.
    """
    prefix = "/" + (namespace.strip("/") + "/" if namespace.strip("/") else "")
    topics = {prefix + topic: part for part, topic in TOPICS.items()}
    if prefix + TOPICS["image"] not in bag.topics:
        raise BagError(
            f"bag {bag.path} has no '{prefix + TOPICS['image']}': nothing was generated in it. "
            "Record while the nodes run, or make it with `wristworld run`."
        )
    moments: dict[int, GeneratedMoment] = {}
    last_status: Any = None
    for m in bag.messages(set(topics) & set(bag.topics)):
        message = m.decode()
        part = topics[m.topic]
        moment = moments.setdefault(
            messages.stamp_to_ns(message.header.stamp, m.topic), GeneratedMoment()
        )
        if part == "status":
            last_status = message
            if message.state == 1:
                moment.latency["generation"] = float(message.latency)
        else:
            _fill(moment, part, message, m.topic, m.log_time_ns)
    made = [m for m in moments.values() if m.image is not None]
    times = sorted(m.log_time_ns for m in made)
    span = (times[-1] - times[0]) / 1e9 if len(times) > 1 else 0.0
    parts = ("reconstruction", "generation")
    return moments, LiveNumbers(
        frames_in=int(last_status.frames_in) if last_status else len(made),
        frames_out=int(last_status.frames_out) if last_status else len(made),
        drops=_drops(last_status),
        rate_hz=(len(times) - 1) / span if span > 0 else float("nan"),
        latency_s={p: percentiles([m.latency[p] for m in made if p in m.latency]) for p in parts},
        model_id=last_status.model_id if last_status else "",
        model_sha256=last_status.model_sha256 if last_status else "",
    )


def _fill(moment: GeneratedMoment, part: str, message: Any, topic: str, log_time: int) -> None:
    if part == "image":
        moment.image = messages.decode_image(message, topic).copy()
        moment.log_time_ns = log_time
    elif part == "condition":
        moment.condition = messages.decode_image(message, topic).copy()
    elif part == "mask":
        moment.mask = messages.decode_image(message, topic)[..., 0] > 127
    elif part == "confidence":
        moment.confidence = messages.decode_image(message, topic)[..., 0].astype(np.float32) / 255
    elif part == "camera":
        moment.camera = messages.decode_camera_info(message, topic)
    elif message.source:
        p, q = message.pose.pose.position, message.pose.pose.orientation
        moment.T_world_wrist = from_quaternion((p.x, p.y, p.z), (q.x, q.y, q.z, q.w))
        moment.world_frame = messages.frame_name(message.header.frame_id)
        moment.source = SOURCES.get(int(message.source), "unknown")
        moment.latency["reconstruction"] = float(message.latency)


def _drops(status: Any) -> dict[str, int]:
    if status is None:
        return {}
    return {c: int(n) for c, n in zip(status.drop_causes, status.drop_counts, strict=True)}


def report_augmented(
    path: str | Path,
    out: str | Path,
    *,
    title: str | None = None,
    namespace: str = "",
    mean_image: Image | None = None,
    provenance: Mapping[str, Any] | None = None,
    with_lpips: bool = True,
    **frame_options: Any,
) -> EpisodeReport:
    """Score what a bag holds; writes video, contact sheet and metrics.json to ``out``.

    Args:
        path: bag with anchors, ``wrist_true`` (for scores) and the generated topics.
        namespace: of the nodes that generated.
        frame_options: as for ``BagFrames``.

    Raises:
        BagError: no bag, no cameras, or nothing generated in it.
    """
    with BagReader(path) as bag:
        moments, live = read_generated(bag, namespace)
        has_depth = any(t.endswith("/depth/image_raw") for t in bag.topics)
        frames = BagFrames(bag, **{"use_depth": has_depth, **frame_options})
        report = EpisodeReport(
            out,
            title or Path(path).stem,
            mean_image=mean_image,
            provenance=provenance,
            with_lpips=with_lpips,
        )
        with report:
            for frame, moment, truth in _matched(frames, moments):
                same_world = moment.world_frame == frame.world_frame and frame.calibrated
                true_map = None
                assert moment.image is not None and moment.camera is not None
                if truth is not None and truth.T_world_camera is not None and same_world:
                    camera = truth.camera or moment.camera
                    camera = camera.resized(moment.camera.width, moment.camera.height)
                    true_map = true_condition(frame, truth.T_world_camera, camera)
                confidence = moment.confidence
                if confidence is None:  # not published unless somebody listens
                    confidence = np.ones(moment.image.shape[:2], np.float32)
                report.add(
                    frame,
                    moment.condition_map(),
                    moment.image,
                    confidence,
                    T_world_wrist=moment.T_world_wrist if same_world else None,
                    source=moment.source,
                    truth=truth,
                    true_map=true_map,
                )
        if report.frames == 0:
            raise BagError(
                f"bag {path}: no generated picture has the stamp of a set of anchor images "
                f"({len(moments)} stamps were published, {frames.frames} sets recorded)."
            )
        report.save(
            frames={
                "recorded": frames.frames,
                "in": live.frames_in,
                "out": live.frames_out,
                "dropped": live.drops,
            },
            rate_hz=None if np.isnan(live.rate_hz) else live.rate_hz,
            live_latency_s=live.latency_s,
            model={"id": live.model_id, "sha256": live.model_sha256},
            notes=frames.notes,
            damage=bag.damage,
        )
    return report


def _matched(
    frames: BagFrames, moments: Mapping[int, GeneratedMoment]
) -> Iterator[tuple[Any, GeneratedMoment, Any]]:
    """Frames whose stamp something was generated for."""
    for frame, truth in frames.with_truth():
        moment = moments.get(frame.stamp_ns)
        if moment is not None and moment.complete:
            yield frame, moment, truth
