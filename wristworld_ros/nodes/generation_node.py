"""Stage 2 as a node: condition map, mask and anchor images in, virtual wrist camera out.

Subscribed: ``wrist/condition/image``, ``wrist/condition/mask``, ``wrist/condition/camera_info``,
``wrist/estimate``, ``<camera>/image_raw[/compressed]``, ``instruction``.
Published: ``wrist/image_raw``, ``wrist/image_raw/compressed`` and ``wrist/confidence`` (while
someone listens), ``wrist/camera_info``, ``wrist/status``, ``/diagnostics``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from wristworld_ros.data.augment import ERROR_CODES, status_fields
from wristworld_ros.data.messages import (
    camera_info_fields,
    compressed_image_fields,
    decode_camera_info,
    decode_image,
    frame_name,
    header_fields,
    image_fields,
)
from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.generation.doubt import doubt
from wristworld_ros.msg import GenerationStatus as M
from wristworld_ros.msg import WristEstimate
from wristworld_ros.nodes import qos
from wristworld_ros.nodes.base import Refusal, WristNode
from wristworld_ros.nodes.cameras import CameraInputs, CameraSet, positive_stamp
from wristworld_ros.nodes.conversions import fill
from wristworld_ros.nodes.instruction import InstructionInput
from wristworld_ros.nodes.monitoring import ERROR, OK, WARN, InputMonitor
from wristworld_ros.nodes.parameters import GenerationParameters
from wristworld_ros.nodes.process import run_node
from wristworld_ros.types import (
    AnchorFrame,
    AnchorView,
    CameraModel,
    ConditionMap,
    Doubt,
    WristFrame,
)

_CONDITION_CURE = "Look at the diagnostics of that node: it says which of its inputs is missing"
#: Frames of one chunk that the next one looks at again, so that the two agree.
CARRIED = 2
#: A picture whose brightest value is below this is black.
BLACK = 4


@dataclass
class _ConditionParts:
    """The four messages of one condition map, as they come in."""

    image: Any = None
    mask: Any = None
    camera: CameraModel | None = None
    frame_id: str = ""
    domain_distance: float | None = None

    @property
    def complete(self) -> bool:
        parts = (self.image, self.mask, self.camera, self.domain_distance)
        return all(part is not None for part in parts)


@dataclass(frozen=True)
class GenerationInput:
    """Condition map and anchor images of one stamp, and how far these are from training."""

    anchors: CameraSet
    condition: ConditionMap
    frame_id: str
    domain_distance: float


@dataclass
class _Backlog:
    """Condition maps and anchor sets by stamp, until they meet."""

    conditions: dict[int, _ConditionParts] = field(default_factory=dict)
    anchors: dict[int, CameraSet] = field(default_factory=dict)

    def clear(self) -> int:
        """Forget all; returns the number of anchor sets."""
        count = len(self.anchors)
        self.conditions.clear()
        self.anchors.clear()
        return count


class GenerationNode(WristNode[list[GenerationInput]]):
    """Lifecycle node around ``Generator``."""

    def __init__(self, **node_arguments: object) -> None:
        super().__init__(GenerationParameters, **node_arguments)

    # --- lifecycle --------------------------------------------------------------------------------

    def load(self) -> None:
        """Weights and publishers."""
        p = self.parameters
        self.limit_threads()
        from wristworld_ros.generation import Generator

        self._generator = Generator.from_pretrained(
            p.model_path or None,
            steps=p.steps,
            seed=p.seed,
            mode=p.mode,
            device=p.device,
            backend=p.backend,
            strict=p.strict_backend,
        )
        images = qos.image(p.output_reliability)
        self.advertise("wrist/image_raw", Image, images)
        self.advertise("wrist/image_raw/compressed", CompressedImage, images)
        self.advertise("wrist/camera_info", CameraInfo, images)
        self.advertise("wrist/confidence", Image, images)
        self.advertise("wrist/status", M, qos.state())

    def unmatched(self) -> int:
        """Sets that lack a camera or a condition map."""
        return self._cameras.waiting + len(self._backlog.anchors)

    def abandon(self) -> int:
        """The same, and those that lack the rest of their chunk."""
        return self._cameras.waiting + self._backlog.clear() + len(self._chunk)

    def unload(self) -> None:
        """Release the weights."""
        self._generator = None

    def listen(self) -> None:
        """Condition map, cameras, instruction."""
        self._backlog = _Backlog()
        self._chunk: list[GenerationInput] = []
        self._chunk_grew = 0.0
        self._carried: list[tuple[ConditionMap, AnchorFrame]] = []
        self._restart = False
        self._said_waiting = False
        assert self._generator is not None
        self._generator.reset()
        for part, message_type, receive in (
            ("image", Image, self._receive_image),
            ("mask", Image, self._receive_mask),
            ("camera_info", CameraInfo, self._receive_camera_info),
        ):
            topic = f"wrist/condition/{part}"
            kind = f"sensor_msgs/msg/{message_type.__name__}"
            role = f"{part} of the condition map, from reconstruction_node"
            profile = qos.image(self.parameters.output_reliability, self.parameters.sync_queue)
            monitor = InputMonitor(topic, kind, profile, role, cure=_CONDITION_CURE)
            self.subscribe(monitor, message_type, receive)
        role = "how far to trust the condition map, from reconstruction_node"
        kind, profile = "wristworld_ros/msg/WristEstimate", qos.state(self.parameters.sync_queue)
        monitor = InputMonitor("wrist/estimate", kind, profile, role, cure=_CONDITION_CURE)
        self.subscribe(monitor, WristEstimate, self._receive_estimate)
        self._doubt: Doubt | None = None
        self._instruction = InstructionInput(self)
        self._cameras = CameraInputs(self, self._receive_anchors, self._time_jumped)

    # --- inputs -----------------------------------------------------------------------------------

    def _receive_image(self, message: Image) -> int:
        stamp = positive_stamp(message.header, "wrist/condition/image")
        image = decode_image(message, "wrist/condition/image")
        return self._add_part(stamp, lambda c: setattr(c, "image", image))

    def _receive_mask(self, message: Image) -> int:
        topic = "wrist/condition/mask"
        stamp = positive_stamp(message.header, topic)
        if message.encoding != "mono8":
            raise InvalidInputError(f"{topic}: encoding '{message.encoding}'; need mono8.")
        mask = decode_image(message, topic)[..., 0]
        return self._add_part(stamp, lambda c: setattr(c, "mask", mask))

    def _receive_camera_info(self, message: CameraInfo) -> int:
        topic = "wrist/condition/camera_info"
        stamp = positive_stamp(message.header, topic)
        camera = decode_camera_info(message, topic)
        if camera is None:
            raise CalibrationError(f"{topic}: K is zero. The virtual camera needs intrinsics.")

        def add(part: _ConditionParts) -> None:
            part.camera, part.frame_id = camera, frame_name(message.header.frame_id)

        return self._add_part(stamp, add)

    def _receive_estimate(self, message: WristEstimate) -> int:
        stamp = positive_stamp(message.header, "wrist/estimate")
        if message.error_code:  # there is no condition map of this stamp
            return stamp
        distance = float(message.domain_distance)
        return self._add_part(stamp, lambda c: setattr(c, "domain_distance", distance))

    def _add_part(self, stamp: int, add: Callable[[_ConditionParts], None]) -> int:
        conditions = self._backlog.conditions
        add(conditions.setdefault(stamp, _ConditionParts()))
        while len(conditions) > self.parameters.sync_queue:
            del conditions[min(conditions)]
        self._match(stamp)
        return stamp

    def _receive_anchors(self, anchors: CameraSet) -> None:
        waiting = self._backlog.anchors
        waiting[anchors.stamp_ns] = anchors
        while len(waiting) > self.parameters.sync_queue:
            self._drop_unmatched(min(waiting))
        self._match(anchors.stamp_ns)

    def _drop_unmatched(self, stamp: int) -> None:
        """reconstruction_node has made no condition map of this set, or will not any more."""
        del self._backlog.anchors[stamp]
        self.frames.dropped("no_condition")

    def _match(self, stamp: int) -> None:
        """Start the generation at ``stamp`` if all has come; older sets have lost their turn."""
        condition, anchors = (
            self._backlog.conditions.get(stamp),
            self._backlog.anchors.get(stamp),
        )
        if condition is None or anchors is None or not condition.complete:
            return
        for older in [s for s in self._backlog.anchors if s < stamp]:
            self._drop_unmatched(older)
        for older in [s for s in self._backlog.conditions if s <= stamp]:
            del self._backlog.conditions[older]
        del self._backlog.anchors[stamp]
        try:
            assert condition.domain_distance is not None
            item = GenerationInput(
                anchors, _condition_map(condition), condition.frame_id, condition.domain_distance
            )
        except InvalidInputError as error:
            self.frames.dropped("invalid_input")
            raise error
        if self.parameters.mode == "stream":
            self.submit([item])
            return
        self._chunk.append(item)
        self._chunk_grew = time.monotonic()
        if len(self._chunk) >= self.parameters.chunk_length:
            chunk, self._chunk = self._chunk, []
            self.submit(chunk)

    def _time_jumped(self) -> None:
        """A bag starts over: nothing that waits has a partner any more."""
        self.frames.dropped("time_jump", self._backlog.clear() + len(self._chunk))
        self._chunk = []
        self._restart = True

    # --- work -------------------------------------------------------------------------------------

    def count_in(self, item: list[GenerationInput]) -> int:
        """Sets of images in an item: one in mode stream, a chunk in mode chunk."""
        return len(item)

    def process(self, item: list[GenerationInput]) -> None:
        """Generate and publish the views of one item."""
        assert self._generator is not None
        if self._restart:
            self._restart = False
            self._carried = []
            self._generator.reset()
        good: list[tuple[GenerationInput, Doubt | None]] = []
        for one in item:
            found = self._doubt = self._doubt_of(one)
            if found is None or not found.refused:
                good.append((one, found))
            else:
                self.drop([one], Refusal(found.cause, ERROR_CODES[found.cause], found.text))
        if not good:
            return
        frames = [self._anchor_frame(one) for one, _ in good]
        conditions = [one.condition for one, _ in good]
        if self.parameters.mode == "stream":
            results = [self._generator(conditions[0], frames[0])]
        else:
            pairs = self._carried + list(zip(conditions, frames, strict=True))
            together = self._generator.chunk([c for c, _ in pairs], [f for _, f in pairs])
            results = together[len(self._carried) :]
            self._carried = pairs[-CARRIED:]
        for (one, found), result in zip(good, results, strict=True):
            try:
                _check_picture(result)
            except Refusal as refusal:
                self.drop([one], refusal)
            else:
                self._publish_result(one, result, found)

    def _doubt_of(self, one: GenerationInput) -> Doubt | None:
        return doubt(
            one.condition.coverage,
            one.domain_distance,
            self.parameters.refuse_below_coverage,
            self.parameters.refuse_beyond_domain,
        )

    def _anchor_frame(self, one: GenerationInput) -> AnchorFrame:
        views = tuple(
            AnchorView(name, image.image, image.stamp_ns)
            for name, image in one.anchors.frames.items()
        )
        return AnchorFrame(one.anchors.stamp_ns, views, instruction=self._instruction.text)

    # --- outputs ----------------------------------------------------------------------------------

    def _publish_result(
        self, one: GenerationInput, result: WristFrame, found: Doubt | None
    ) -> None:
        stamp, frame_id = one.anchors.stamp_ns, one.frame_id
        begun = time.monotonic()
        self.publish(
            "wrist/camera_info",
            fill(CameraInfo(), camera_info_fields(result.camera, stamp, frame_id)),
        )
        if self.wanted("wrist/confidence"):
            confidence = np.round(np.clip(result.confidence, 0, 1) * 255).astype(np.uint8)
            fields = image_fields(confidence, "mono8", stamp, frame_id)
            self.publish("wrist/confidence", fill(Image(), fields))
        if self.wanted("wrist/image_raw/compressed"):
            fields = compressed_image_fields(
                result.image, "jpeg", stamp, frame_id, quality=self.parameters.jpeg_quality
            )
            self.publish("wrist/image_raw/compressed", fill(CompressedImage(), fields))
        self.publish(
            "wrist/image_raw",
            fill(Image(), image_fields(result.image, "rgb8", stamp, frame_id)),
        )
        latency = time.monotonic() - one.anchors.arrival
        stages = {**result.latency, "publish": time.monotonic() - begun}
        self.frames.published(stages, latency)
        self._said_waiting = False
        self._publish_status(
            stamp,
            frame_id,
            {
                **status_fields(result, 0, 0, one.domain_distance, found),
                "latency": latency,
                "latency_stages": list(stages),
                "latency_seconds": np.array(list(stages.values()), np.float32),
            },
        )

    def refused(self, item: list[GenerationInput], refusal: Refusal) -> None:
        """Say on wrist/status that there is no picture for these stamps, and why."""
        for one in item:
            self._publish_status(
                one.anchors.stamp_ns,
                one.frame_id,
                {
                    "state": M.STATE_REFUSED,
                    "latency": time.monotonic() - one.anchors.arrival,
                    "coverage": one.condition.coverage,
                    "domain_distance": one.domain_distance,
                    "error_code": refusal.code,
                    "error_message": str(refusal),
                },
            )

    def _publish_status(self, stamp: int, frame_id: str, fields: dict[str, Any]) -> None:
        drops = self.frames.drops
        common = {
            "header": header_fields(stamp, frame_id),
            "mode": self.parameters.mode,
            "frames_in": self.frames.frames_in,
            "frames_out": self.frames.frames_out,
            "drop_causes": list(drops),
            "drop_counts": np.array(list(drops.values()), np.uint64),
        }
        unknown = {"domain_distance": float("nan")}
        self.publish("wrist/status", fill(M(), {**unknown, **fields, **common}))

    # --- diagnostics ------------------------------------------------------------------------------

    def components(self) -> list[DiagnosticStatus]:
        """Synchronisation, doubts; and wrist/status when an input is missing."""
        timeout = self.parameters.input_timeout
        if self._chunk and time.monotonic() - self._chunk_grew > timeout:  # end of a recording
            chunk, self._chunk = self._chunk, []
            self.submit(chunk)
        problems = [
            text for level, text in (m.status(self, timeout) for m in self.inputs) if level == ERROR
        ]
        if problems and not self._said_waiting:
            self._said_waiting = True
            self._publish_status(
                0,
                "",
                {
                    "state": M.STATE_WAITING,
                    "error_code": M.ERROR_MISSING_INPUT,
                    "error_message": " | ".join(problems),
                },
            )
        backlog = self._backlog
        values = {
            "anchor sets without a condition map": len(backlog.anchors),
            "condition maps without anchor images": len(backlog.conditions),
            "frames in the next chunk": len(self._chunk),
            **self._cameras.drops_by_camera(),
        }
        text = f"{self._cameras.sync.emitted} sets of anchor images"
        doubted = self._doubt
        return [
            self._status("synchronisation", OK, text, values),
            self._status("view", OK, "as in training", {})
            if doubted is None
            else self._status("view", WARN, f"{doubted.cause}: {doubted.text}", {}),
        ]


def _condition_map(parts: _ConditionParts) -> ConditionMap:
    """The parts as one record; depth and view are not sent and not used here."""
    camera = parts.camera
    assert camera is not None
    size = parts.image.shape[:2]
    if (camera.height, camera.width) != size or parts.mask.shape != size:
        raise InvalidInputError(
            f"condition map: image {size}, mask {parts.mask.shape}, camera_info "
            f"{(camera.height, camera.width)} (height, width) differ. Start both nodes from the "
            "same version."
        )
    return ConditionMap.from_published(parts.image, parts.mask, camera)


def _check_picture(result: WristFrame) -> None:
    """Refuse a picture with values that are not finite, and a black one."""
    if not np.isfinite(result.confidence).all() or not np.isfinite(result.coverage):
        raise Refusal(
            "not_finite",
            M.ERROR_NOT_FINITE,
            "the generated picture holds NaN or infinite values and was withheld. Check the "
            "weights (wristworld info), or set steps and device to their defaults.",
        )
    if int(result.image.max()) < BLACK:
        raise Refusal(
            "black_frame",
            M.ERROR_MODEL,
            f"the generated picture is black (brightest value {int(result.image.max())} of 255) "
            "and was withheld. Check the anchor images' exposure and the weights (wristworld "
            "info).",
        )


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the executable ``generation_node``."""
    run_node(GenerationNode, args)


if __name__ == "__main__":
    main()
