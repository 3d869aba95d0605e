"""From a bag to AnchorFrames: cameras matched by stamp, calibration and poses as recorded."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wristworld_ros.data import messages
from wristworld_ros.data.bags import BagMessage, BagReader
from wristworld_ros.data.joints import JointHistory
from wristworld_ros.data.sync import FrameSynchronizer, SyncedSet
from wristworld_ros.errors import BagError, InvalidInputError, TransformLookupError
from wristworld_ros.geometry.tf_tree import TransformTree
from wristworld_ros.types import AnchorFrame, AnchorView, CameraModel, FloatArray, Image

logger = logging.getLogger(__name__)

IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
TRUTH = "wrist_true"
#: A frame waits this long (log time) for its depth and its true wrist image.
COMPANION_WAIT_NS = 1_000_000_000


@dataclass(frozen=True)
class WristTruth:
    """What the real wrist camera saw at a frame, for evaluation only.

    Attributes:
        image: H x W x 3 uint8 RGB.
        camera: its intrinsics, or None.
        T_world_camera: its pose in the world, or None.
    """

    image: Image
    camera: CameraModel | None
    T_world_camera: FloatArray | None


def image_topics(bag: BagReader) -> dict[str, str]:
    """Third-person camera name -> image topic; raw before compressed; wrist and depth left out."""
    found: dict[str, str] = {}
    for suffix, msgtype in (("/image_raw", IMAGE), ("/image_raw/compressed", COMPRESSED)):
        for topic in bag.topics:
            if topic.endswith(suffix) and bag.msgtype(topic) == msgtype:
                name = topic.removesuffix(suffix).strip("/")
                parts = name.split("/")
                if name and not any(p.startswith("wrist") or p == "depth" for p in parts):
                    found.setdefault(name, topic)
    return dict(sorted(found.items()))


def find_cameras(bag: BagReader, cameras: Sequence[str] | None) -> dict[str, str]:
    """Camera name -> image topic, for the names given or for all third-person cameras.

    Raises:
        BagError: an unknown name, none found, or more than 8 found and none named.
    """
    available = image_topics(bag)
    listing = ", ".join(available) or "none"
    if cameras:
        names = [c.strip("/") for c in cameras]
        if unknown := [n for n in names if n not in available]:
            raise BagError(
                f"bag {bag.path} has no camera {', '.join(map(repr, unknown))}; cameras with an "
                f"image_raw or image_raw/compressed topic: {listing}."
            )
        return {n: available[n] for n in names}
    if not 1 <= len(available) <= 8:
        raise BagError(
            f"bag {bag.path} has {len(available)} third-person cameras ({listing}); 1 to 8 are "
            "possible. Name the ones to use, or record <camera>/image_raw topics."
        )
    return available


@dataclass(frozen=True)
class _Picture:
    """A decoded third-person image on its way through the synchroniser."""

    image: Image
    log_time_ns: int


class _Series:
    """Values by stamp, added in any order."""

    def __init__(self) -> None:
        self.stamps: list[int] = []
        self.values: list[Any] = []

    def add(self, stamp_ns: int, value: Any) -> None:
        i = bisect_right(self.stamps, stamp_ns)
        self.stamps.insert(i, stamp_ns)
        self.values.insert(i, value)

    def at(self, stamp_ns: int) -> Any:
        """Newest value not after the stamp, else the first one, else None."""
        i = bisect_right(self.stamps, stamp_ns)
        return self.values[max(i - 1, 0)] if self.values else None


class BagFrames:
    """The AnchorFrames of a bag; iterate over it, or over ``with_truth()``.

    The bag is read twice: calibration, transforms, joints and instruction first, then images.
    A camera without camera_info or transform gives an uncalibrated view, and ``notes`` says why.

    Args:
        bag: an open bag.
        cameras: names (topic prefixes); all third-person cameras when None.
        slop_s: largest difference between the stamps of one frame [s].
        offsets_s: camera -> seconds added to its stamps for matching.
        world_frame: robot base. When it is not connected to any camera, the world is the optical
            frame of the first camera.
        wrist_frame: TF frame of the wrist camera (kinematic pose).
        wrist_camera: intrinsics of the wrist camera to synthesise, or None.
        instruction: overrides the one in the bag.
        use_depth: also read ``<camera>/depth/image_raw``.
        tf_tolerance_s: how far outside its samples a transform is held [s].

    Attributes:
        cameras: camera name -> image topic.
        tree: all transforms of the bag.
        frames: AnchorFrames given out so far.
        notes: reasons why something of the input was not used, each once.

    Raises:
        BagError: unknown camera, or no camera.
        CalibrationError: naming the topic, when a camera_info holds NaN or is impossible.
    """

    def __init__(
        self,
        bag: BagReader,
        cameras: Sequence[str] | None = None,
        *,
        slop_s: float = 0.02,
        offsets_s: Mapping[str, float] | None = None,
        world_frame: str = "base_link",
        wrist_frame: str = "wrist_camera_optical_frame",
        wrist_camera: CameraModel | None = None,
        instruction: str | None = None,
        use_depth: bool = False,
        tf_tolerance_s: float = 0.1,
    ) -> None:
        self.bag = bag
        self.cameras = find_cameras(bag, cameras)
        self.tree = TransformTree()
        self.frames = 0
        self.notes: list[str] = []
        self._noted: set[str] = set()
        self._slop_s, self._offsets_s = slop_s, offsets_s
        self._world, self._wrist_frame = world_frame, wrist_frame
        self._wrist_camera, self._instruction = wrist_camera, instruction
        self._tf_tolerance_s = tf_tolerance_s
        self._sync = self._new_sync()
        self._undecodable: Counter[str] = Counter()
        self._log_times: dict[int, int] = {}
        self._decoded: set[str] = set()
        self._infos = {name: _Series() for name in (*self.cameras, TRUTH)}
        self._joints, self._instructions = JointHistory(), _Series()
        #: URDF of the robot (``/robot_description``), empty without one.
        self.robot_description = ""
        #: Name of its root link; where it is looked up. None: joints say nothing of places.
        self.robot_root: str | None = None
        #: Joints that have to be known, or none of them is given out.
        self.robot_joints: tuple[str, ...] = ()
        self._depth_topics = {}
        if use_depth:
            for name in self.cameras:
                if f"/{name}/depth/image_raw" in bag.topics:
                    self._depth_topics[name] = f"/{name}/depth/image_raw"
                else:
                    self.note(f"no depth: the bag has no topic '/{name}/depth/image_raw'")
        self._read_calibration()
        self._frame_ids = self._first_frame_ids()
        self._posed = True
        self._choose_world()

    # --- counters ---------------------------------------------------------------------------------

    @property
    def drops(self) -> dict[str, int]:
        """Cause -> camera images that are in no frame: those of the sync, and ``undecodable``."""
        return {**self._sync.drops, "undecodable": sum(self._undecodable.values())}

    def log_time_ns(self, stamp_ns: int) -> int:
        """When the last image of a frame that was given out was recorded [ns]."""
        return self._log_times[stamp_ns]

    @property
    def images(self) -> int:
        """Third-person images read so far."""
        return sum(self._sync.received.values()) + sum(self._undecodable.values())

    @property
    def expected(self) -> int:
        """Frames that there can be at most, from the message counts."""
        return min(self.bag.counts[topic] for topic in self.cameras.values())

    def note(self, text: str, key: str = "") -> None:
        """Note and log a text, the first time that it (or its key) comes up."""
        if (key or text) not in self._noted:
            self._noted.add(key or text)
            self.notes.append(text)
            logger.warning(text)

    def _new_sync(self) -> FrameSynchronizer[_Picture]:
        return FrameSynchronizer(
            list(self.cameras), slop_s=self._slop_s, offsets_s=self._offsets_s, buffer_size=30
        )

    # --- first pass -------------------------------------------------------------------------------

    def _read_calibration(self) -> None:
        info_topics = {f"/{name}/camera_info": name for name in self._infos}
        topics = {"/tf", "/tf_static", "/joint_states", "/instruction"}
        topics |= {"/robot_description", *info_topics}
        present = topics & set(self.bag.topics)
        for name in self.cameras:
            if f"/{name}/camera_info" not in present:
                self.note(f"camera '{name}' is uncalibrated: no topic '/{name}/camera_info'")
        if not present:
            return
        for m in self.bag.messages(present):
            decoded = self._decode(m)
            if decoded is None:
                continue
            stamp, message = decoded
            if m.topic in info_topics:
                self._add_info(info_topics[m.topic], message, stamp, m.topic)
            elif m.topic in ("/tf", "/tf_static"):
                for transform in message.transforms:
                    self._add_transform(transform, m.topic)
            elif m.topic == "/joint_states":
                try:
                    joints = messages.decode_joint_state(message, m.topic)
                except InvalidInputError as error:
                    self.note(str(error))
                    continue
                self._joints.add(stamp, joints)
            elif m.topic == "/robot_description":
                self.robot_description = message.data
            else:
                self._instructions.add(m.log_time_ns, message.data)

    def _add_info(self, name: str, message: Any, stamp: int, topic: str) -> None:
        camera = messages.decode_camera_info(message, topic)
        if camera is None:
            self.note(f"camera '{name}' is uncalibrated: K is all zero in '{topic}'")
        previous = self._infos[name].values[-1:] or [None]
        if not _same_camera(previous[0], camera):
            self._infos[name].add(stamp, camera)

    def _add_transform(self, transform: Any, topic: str) -> None:
        try:
            parent, child, stamp, T = messages.decode_transform(transform, topic)
            self.tree.set_transform(parent, child, stamp, T, static=topic == "/tf_static")
        except InvalidInputError as error:
            self.note(f"transform left out: {error}")

    def _first_frame_ids(self) -> dict[str, str]:
        """Optical frame of each camera: from the header of its first image, else its name."""
        out = {}
        for name, topic in self.cameras.items():
            frame = f"{name}_optical_frame"
            for m in self.bag.messages([topic]):
                decoded = self._decode(m)
                if decoded is not None and decoded[1].header.frame_id:
                    frame = messages.frame_name(decoded[1].header.frame_id)
                    break
            out[name] = frame
        return out

    def _choose_world(self) -> None:
        if self._connected(self._world, *self._frame_ids.values()):
            return
        first, *others = self._frame_ids.values()
        why = self._reason(self._world, first)
        self.note(f"the world is the frame of the first camera, '{first}': {why}")
        self._world = first
        self._posed = self._connected(first, *others, self._wrist_frame)
        if not self._posed:
            self.note("no pose is known in that world: the views are uncalibrated")

    def _connected(self, target: str, *sources: str) -> bool:
        return any(not self._reason(target, source) for source in sources)

    def _reason(self, target: str, source: str) -> str:
        """Why two frames cannot be connected at any time; empty when they can."""
        try:
            self.tree.time_range(target, source)
        except TransformLookupError as error:
            return str(error)
        return ""

    # --- second pass ------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[AnchorFrame]:
        for frame, _ in self._iterate(truth=False):
            yield frame

    def with_truth(self) -> Iterator[tuple[AnchorFrame, WristTruth | None]]:
        """Frames with the true wrist view (topic ``wrist_true/image_raw``) where there is one."""
        return self._iterate(truth=True)

    def _iterate(self, truth: bool) -> Iterator[tuple[AnchorFrame, WristTruth | None]]:
        self._sync = self._new_sync()
        self._undecodable.clear()
        self.frames = 0
        cameras = {topic: name for name, topic in self.cameras.items()}
        companions = {topic: deque[Any](maxlen=16) for topic in self._depth_topics.values()}
        truth_topic = next(
            (t for t in (f"/{TRUTH}/image_raw", f"/{TRUTH}/image_raw/compressed")
             if truth and t in self.bag.topics), ""
        )  # fmt: skip
        if truth_topic:
            companions[truth_topic] = deque[Any](maxlen=16)
        pending: deque[tuple[int, SyncedSet[_Picture]]] = deque()
        for m in self.bag.messages({*cameras, *companions}):
            decoded = self._decode(m)
            if decoded is None:
                continue
            stamp, message = decoded
            if m.topic in companions:
                companions[m.topic].append((stamp, m, message))
            elif (image := self._image(m, message)) is not None:
                picture = _Picture(image, m.log_time_ns)
                for synced in self._sync.push(cameras[m.topic], stamp, picture):
                    pending.append((m.log_time_ns, synced))
            while pending and self._ready(*pending[0], companions, m.log_time_ns):
                yield self._frame(pending.popleft()[1], companions, truth_topic)
        for _, synced in pending:
            yield self._frame(synced, companions, truth_topic)
        self._sync.finish()

    def _ready(
        self,
        log_time: int,
        synced: SyncedSet[_Picture],
        companions: Mapping[str, deque[Any]],
        now: int,
    ) -> bool:
        newest = max(synced.stamps_ns.values())
        arrived = all(queue and queue[-1][0] >= newest for queue in companions.values())
        return arrived or now - log_time > COMPANION_WAIT_NS

    def _frame(
        self,
        synced: SyncedSet[_Picture],
        companions: Mapping[str, deque[Any]],
        truth_topic: str,
    ) -> tuple[AnchorFrame, WristTruth | None]:
        stamp, pictures = synced.stamp_ns, synced.payloads
        last = max(picture.log_time_ns for picture in pictures.values())
        self._log_times[stamp] = last
        instruction = self._instruction
        if instruction is None:
            instruction = self._instructions.at(last) or ""
        joints, T_world_robot = self._joints.at(stamp), None
        if missing := [name for name in self.robot_joints if name not in (joints or {})]:
            self.note(f"the robot's body is not drawn where joint_states lack {missing[0]}")
            joints = None
        if self.robot_root not in (None, self._world):
            T_world_robot = self._pose(self.robot_root, stamp, "the robot's body is not drawn")
            joints = None if T_world_robot is None else joints
        frame = AnchorFrame(
            stamp_ns=stamp,
            views=tuple(
                self._view(name, picture.image, synced.stamps_ns[name], companions)
                for name, picture in pictures.items()
            ),
            T_world_wrist=self._pose(self._wrist_frame, stamp, "no kinematic wrist pose"),
            wrist_camera=self._wrist_camera,
            instruction=instruction,
            world_frame=self._world,
            joints=joints,
            T_world_robot=T_world_robot,
        )
        self.frames += 1
        return frame, self._truth(companions[truth_topic], stamp) if truth_topic else None

    def _view(
        self, name: str, image: Image, stamp: int, companions: Mapping[str, deque[Any]]
    ) -> AnchorView:
        depth = None
        if name in self._depth_topics:
            topic = self._depth_topics[name]
            found = _nearest(companions[topic], stamp, round(self._slop_s * 1e9))
            if found is None:
                self.note(f"'{topic}' has no message within the slop of some frames")
            else:
                depth = messages.decode_depth(found[2], topic)
        return AnchorView(
            name=name,
            image=image,
            stamp_ns=stamp,
            camera=self._infos[name].at(stamp),
            T_world_camera=self._pose(
                self._frame_ids[name], stamp, f"camera '{name}' is without pose"
            ),
            depth=depth,
        )

    def _truth(self, queue: deque[Any], stamp: int) -> WristTruth | None:
        found = _nearest(queue, stamp, round(self._slop_s * 1e9))
        if found is None:
            self.note(f"'{TRUTH}' has no image within the slop of some frames")
            return None
        _, m, message = found
        image = self._image(m, message)
        if image is None:
            return None
        frame_id = messages.frame_name(message.header.frame_id) or self._wrist_frame
        pose = self._pose(frame_id, stamp, "no true wrist pose")
        return WristTruth(image, self._infos[TRUTH].at(stamp), pose)

    def _pose(self, frame: str, stamp: int, consequence: str) -> FloatArray | None:
        """``T_world_frame`` at a moment, or None with a note."""
        if not self._posed:
            return None
        try:
            return self.tree.lookup(self._world, frame, stamp, self._tf_tolerance_s)
        except TransformLookupError as error:
            known = self._reason(self._world, frame)
            self.note(f"{consequence}: {known or error}", key=f"{consequence} {bool(known)}")
            return None

    # --- messages ---------------------------------------------------------------------------------

    def _decode(self, m: BagMessage) -> tuple[int, Any] | None:
        """Stamp and fields of a message, or None (noted) when its bytes are damaged.

        The stamp is that of the header, or the log time where there is none or it was left 0.
        """
        try:
            message = m.decode()
            header = getattr(message, "header", None)
            stamp = messages.stamp_to_ns(header.stamp, m.topic) if header else m.log_time_ns
        except InvalidInputError as error:
            if m.topic in self.cameras.values():
                self._undecodable[m.topic] += 1
            self.note(str(error), key=f"damaged {m.topic}")
            return None
        if stamp == 0:
            self.note(f"the stamps of '{m.topic}' are 0; taking the time of recording instead")
            stamp = m.log_time_ns
        return stamp, message

    def _image(self, m: BagMessage, message: Any) -> Image | None:
        """Picture of a message. The first one of a topic must be readable, later ones are noted."""
        try:
            if m.connection.msgtype == COMPRESSED:
                image = messages.decode_compressed_image(message, m.topic)
            else:
                image = messages.decode_image(message, m.topic)
        except InvalidInputError as error:
            if m.topic not in self._decoded:
                raise
            self._undecodable[m.topic] += 1
            self.note(str(error), key=f"damaged {m.topic}")
            return None
        self._decoded.add(m.topic)
        return image


def iterate_frames(
    bag: BagReader, cameras: Sequence[str] | None = None, **options: Any
) -> BagFrames:
    """The AnchorFrames of a bag; ``options`` as for ``BagFrames``, which also has the counters."""
    return BagFrames(bag, cameras, **options)


def _nearest(queue: deque[Any], stamp: int, tolerance_ns: int) -> Any:
    best = min(queue, key=lambda item: abs(item[0] - stamp), default=None)
    return best if best is not None and abs(best[0] - stamp) <= tolerance_ns else None


def _same_camera(a: CameraModel | None, b: CameraModel | None) -> bool:
    if a is None or b is None:
        return a is b
    return np.array_equal(a.K, b.K) and (a.width, a.height, a.distortion_model, a.D) == (
        b.width,
        b.height,
        b.distortion_model,
        b.D,
    )
