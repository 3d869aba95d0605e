"""The anchor cameras of a node: subscriptions, checks, and synchronised sets of images."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from wristworld_ros.data.messages import (
    decode_camera_info,
    decode_compressed_image,
    decode_depth,
    decode_image,
    frame_name,
    stamp_to_ns,
)
from wristworld_ros.data.sync import NANOSECONDS, FrameSynchronizer
from wristworld_ros.errors import InvalidInputError, WristWorldError
from wristworld_ros.nodes import qos
from wristworld_ros.nodes.base import WristNode
from wristworld_ros.nodes.monitoring import InputMonitor
from wristworld_ros.types import CameraModel

#: Suffix that tells the depth image of a camera from its colour image in the synchroniser.
_DEPTH = "/depth/image_raw"


@dataclass(frozen=True)
class CameraFrame:
    """One image as it came: H x W x 3 uint8 RGB, or H x W float32 depth [m]."""

    image: Any
    stamp_ns: int
    frame_id: str


@dataclass(frozen=True)
class CameraSet:
    """One image of every camera, taken within the slop.

    Attributes:
        stamp_ns: of the first camera, which the outputs carry [ns].
        frames: camera -> image; depth: camera -> depth, empty unless asked for.
        arrival: monotonic time at which the last image came [s].
    """

    stamp_ns: int
    frames: Mapping[str, CameraFrame]
    depth: Mapping[str, CameraFrame]
    arrival: float


def positive_stamp(header: Any, topic: str) -> int:
    """Stamp of a header [ns].

    Raises:
        InvalidInputError: the stamp is zero or malformed.
    """
    stamp = stamp_to_ns(header.stamp, topic)
    if stamp == 0:
        raise InvalidInputError(
            f"{topic}: its stamp is zero, so it cannot be matched with other images. Let the "
            "driver fill header.stamp."
        )
    return stamp


def image_decoder(transport: str) -> tuple[type, str, Callable[[Any, str], Any]]:
    """Message class, topic suffix and decoder of an ``image_transport``."""
    if transport == "compressed":
        return CompressedImage, "/image_raw/compressed", decode_compressed_image
    return Image, "/image_raw", decode_image


class CameraInputs:
    """Subscribes to the cameras of a node and hands out synchronised sets.

    A set counts as arrived with the image of the first camera; what the synchroniser or the
    checks drop of that camera is counted as a dropped set, so that the sums agree.

    Args:
        node: gets the subscriptions and counters.
        on_set: called in the executor with each complete set.
        on_time_jump: called when stamps jumped back (a bag that starts over).
        depth: also read depth images.
    """

    def __init__(
        self,
        node: WristNode,
        on_set: Callable[[CameraSet], None],
        on_time_jump: Callable[[], None],
        *,
        depth: bool = False,
    ) -> None:
        p = node.parameters
        self._node, self._on_set, self._on_time_jump = node, on_set, on_time_jump
        self.cameras: list[str] = list(p.cameras)
        keys = self.cameras + [c + _DEPTH for c in self.cameras if depth]
        self.sync: FrameSynchronizer[CameraFrame] = FrameSynchronizer(
            keys, slop_s=p.sync_slop, buffer_size=p.sync_queue
        )
        self._counted: dict[str, int] = {}
        self._newest_ns = 0
        message_type, suffix, decode = image_decoder(p.image_transport)
        profile = qos.image(p.input_reliability, p.sync_queue)
        for key in keys:
            is_depth = key.endswith(_DEPTH)
            topic = key if is_depth else key + suffix
            camera = key.removesuffix(_DEPTH)
            role = f"{'depth' if is_depth else 'image'} of camera '{camera}'"
            kind = "sensor_msgs/msg/" + ("Image" if is_depth else message_type.__name__)
            node.subscribe(
                InputMonitor(topic, kind, profile, role),
                Image if is_depth else message_type,
                self._receiver(key, topic, decode_depth if is_depth else decode),
            )

    def _receiver(
        self, key: str, topic: str, decode: Callable[[Any, str], Any]
    ) -> Callable[[Any], int]:
        first = key == self.cameras[0]

        def receive(message: Any) -> int:
            if first:
                self._node.frames.arrived()
            try:
                stamp = positive_stamp(message.header, topic)
                frame = CameraFrame(
                    decode(message, topic), stamp, frame_name(message.header.frame_id)
                )
            except WristWorldError:
                if first:
                    self._node.frames.dropped("invalid_input")
                raise
            if stamp < self._newest_ns - NANOSECONDS:
                self._newest_ns = 0
                self._on_time_jump()
            self._newest_ns = max(self._newest_ns, stamp)
            sets = self.sync.push(key, stamp, frame)
            self._count_drops()
            for s in sets:
                self._emit(s.stamp_ns, s.payloads)
            return stamp

        return receive

    def _emit(self, stamp_ns: int, payloads: Mapping[str, CameraFrame]) -> None:
        frames = {c: payloads[c] for c in self.cameras}
        depth = {c: payloads[c + _DEPTH] for c in self.cameras if c + _DEPTH in payloads}
        self._on_set(CameraSet(stamp_ns, frames, depth, time.monotonic()))

    def _count_drops(self) -> None:
        """Carry new drops of the first camera over to the node's counters."""
        for cause, total in self.sync.drops_by_camera[self.cameras[0]].items():
            self._node.frames.dropped(cause, total - self._counted.get(cause, 0))
            self._counted[cause] = total

    @property
    def waiting(self) -> int:
        """Sets that have begun and lack an image of another camera."""
        return self.sync.waiting[self.cameras[0]]

    def drops_by_camera(self) -> dict[str, int]:
        """``camera cause`` -> dropped images, for diagnostics; only what is not zero."""
        return {
            f"{camera} {cause}": n
            for camera, causes in self.sync.drops_by_camera.items()
            for cause, n in causes.items()
            if n
        }


class CameraInfoInput:
    """Latest calibration of one camera.

    Attributes:
        camera: the model, None while unknown.
        known: whether a usable message came; a K of zeros says "not calibrated" and counts.
        error: why the last message was refused, empty when it was not.
    """

    def __init__(self, node: WristNode, topic: str, role: str, *, required: bool) -> None:
        self.camera: CameraModel | None = None
        self.frame_id = ""
        self.known = False
        self.error = ""
        self.topic = topic
        profile = qos.image(node.parameters.input_reliability)
        monitor = InputMonitor(topic, "sensor_msgs/msg/CameraInfo", profile, role, required)
        node.subscribe(monitor, CameraInfo, self._receive)

    def _receive(self, message: Any) -> int:
        try:
            self.camera = decode_camera_info(message, self.topic)
        except WristWorldError as error:
            self.camera, self.known, self.error = None, False, str(error)
            raise
        self.known, self.error = True, ""
        self.frame_id = frame_name(message.header.frame_id)
        return stamp_to_ns(message.header.stamp, self.topic)
