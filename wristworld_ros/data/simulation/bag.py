"""Simulated episodes as ROS 2 bags (mcap), with the topics and frames of docs/topics.

The true wrist camera is recorded under its own name (``wrist_true``), so that nothing mistakes it
for an input.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from wristworld_ros.data.bag_writer import BagWriter
from wristworld_ros.data.messages import (
    camera_info_fields,
    compressed_image_fields,
    depth_to_millimetres,
    image_fields,
    joint_state_fields,
    tf_fields,
    transform_fields,
)
from wristworld_ros.data.simulation.episode import SimulatedEpisode, simulate_episode
from wristworld_ros.data.simulation.splits import get_split
from wristworld_ros.data.simulation.urdf import robot_urdf
from wristworld_ros.errors import BagError
from wristworld_ros.types import CameraModel, Image

#: Stamp of the first frame: the same for every episode, so that bags are reproducible [ns].
START_NS = 1_704_067_200 * 1_000_000_000  # 2024-01-01 00:00 UTC

WORLD_FRAME = "base_link"
HAND_FRAME = "hand"
WRIST_FRAME = "wrist_camera_optical_frame"
TRUE_WRIST = "wrist_true"


def bag_path(out_dir: str | Path, split: str, seed: int) -> Path:
    """File of an episode's bag in ``out_dir``."""
    return Path(out_dir) / f"{split}_{seed:06d}.mcap"


def write_bags(
    split: str,
    seeds: Iterable[int],
    out_dir: str | Path,
    *,
    wrist_size: tuple[int, int] = (128, 128),
    anchor_size: tuple[int, int] = (256, 256),
    n_anchors: int = 3,
    shadows: bool = True,
    compressed: bool = False,
    with_depth: bool = True,
    overwrite: bool = False,
    motion: str = "task",
) -> list[Path]:
    """Simulate ``seeds`` and write one bag each.

    Args:
        split, seeds: which episodes.
        out_dir: folder for the bags; made if missing.
        wrist_size, anchor_size: (width, height) [px].
        n_anchors, shadows, motion: as in ``simulate_episode``.
        compressed, with_depth: as in ``write_bag``.
        overwrite: replace bags that exist.

    Returns:
        The bags, one per seed.

    Raises:
        InvalidInputError: a seed is not of the split, or a size cannot be.
        BagError: a bag exists already; found before anything is simulated.
    """
    chosen = list(seeds)
    for seed in chosen:
        get_split(split).check_seed(seed)
    paths = [bag_path(out_dir, split, seed) for seed in chosen]
    present = [str(path) for path in paths if path.exists()]
    if present and not overwrite:
        raise BagError(
            f"{len(present)} of {len(paths)} bags exist already, {present[0]} first. "
            "Remove them, choose another folder, or overwrite them (--overwrite)."
        )
    for seed, path in zip(tqdm(chosen, unit="episode", desc=split), paths, strict=True):
        episode = simulate_episode(
            seed,
            split,
            wrist_size=wrist_size,
            anchor_size=anchor_size,
            n_anchors=n_anchors,
            shadows=shadows,
            motion=motion,
        )
        write_bag(episode, path, compressed=compressed, with_depth=with_depth, overwrite=overwrite)
    return paths


def write_bag(
    episode: SimulatedEpisode,
    path: str | Path,
    *,
    compressed: bool = False,
    with_depth: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write one episode; the bag gets its name when it is complete (``.partial`` before).

    Args:
        episode: what to write.
        path: a single file if it ends in ``.mcap``, else a folder.
        compressed: PNG (lossless) on ``<camera>/image_raw/compressed`` instead of raw images.
        with_depth: record the anchors' depth as 16UC1 in millimetres.
        overwrite: replace a bag that exists.

    Raises:
        BagError: the bag exists, or cannot be written.
    """
    with BagWriter(path, overwrite=overwrite) as writer:
        writer.add_metadata(
            "wristworld_simulation",
            {
                "split": episode.split,
                "seed": str(episode.seed),
                "robot": episode.robot,
                "fps": f"{episode.fps:g}",
            },
        )
        cameras = (*episode.anchor_names, TRUE_WRIST)
        _declare(writer, cameras, episode.anchor_names if with_depth else (), compressed)
        _write_latched(writer, episode)
        for frame in range(len(episode)):
            _write_frame(writer, episode, frame, compressed=compressed, with_depth=with_depth)
    return Path(path)


def _image_topic(camera: str, compressed: bool) -> str:
    return f"/{camera}/image_raw/compressed" if compressed else f"/{camera}/image_raw"


def _optical_frame(camera: str) -> str:
    return WRIST_FRAME if camera == TRUE_WRIST else f"{camera}_optical_frame"


def _declare(
    writer: BagWriter, cameras: tuple[str, ...], with_depth: tuple[str, ...], compressed: bool
) -> None:
    image_type = "sensor_msgs/msg/CompressedImage" if compressed else "sensor_msgs/msg/Image"
    for camera in cameras:
        writer.add_topic(_image_topic(camera, compressed), image_type, "image")
        writer.add_topic(f"/{camera}/camera_info", "sensor_msgs/msg/CameraInfo", "image")
    for camera in with_depth:
        writer.add_topic(f"/{camera}/depth/image_raw", "sensor_msgs/msg/Image", "image")
    writer.add_topic("/joint_states", "sensor_msgs/msg/JointState", "state")
    writer.add_topic("/tf", "tf2_msgs/msg/TFMessage", "tf")
    writer.add_topic("/tf_static", "tf2_msgs/msg/TFMessage", "tf_static")
    writer.add_topic("/instruction", "std_msgs/msg/String", "latched")
    writer.add_topic("/robot_description", "std_msgs/msg/String", "latched")


def _write_latched(writer: BagWriter, episode: SimulatedEpisode) -> None:
    """Static transforms, the instruction and the robot's description, once at the start."""
    static = [
        transform_fields(pose, START_NS, WORLD_FRAME, _optical_frame(name))
        for name, pose in zip(episode.anchor_names, episode.T_world_camera, strict=True)
    ]
    static.append(transform_fields(episode.T_hand_wrist, START_NS, HAND_FRAME, WRIST_FRAME))
    writer.write("/tf_static", tf_fields(static), START_NS)
    writer.write("/instruction", {"data": episode.instruction}, START_NS)
    writer.write("/robot_description", {"data": robot_urdf(episode.robot)}, START_NS)


def _write_frame(
    writer: BagWriter,
    episode: SimulatedEpisode,
    frame: int,
    *,
    compressed: bool,
    with_depth: bool,
) -> None:
    """Everything of one moment; transforms first, so that players send them before the images."""
    stamp = START_NS + episode.stamp_ns(frame)
    hand = transform_fields(episode.T_world_hand[frame], stamp, WORLD_FRAME, HAND_FRAME)
    writer.write("/tf", tf_fields([hand]), stamp)
    joints = dict(zip(episode.joint_names, episode.joint_positions[frame].tolist(), strict=True))
    writer.write("/joint_states", joint_state_fields(joints, stamp), stamp)
    for view, name in enumerate(episode.anchor_names):
        if with_depth:
            depth = depth_to_millimetres(episode.anchor_depth[view, frame])
            fields = image_fields(depth, "16UC1", stamp, _optical_frame(name))
            writer.write(f"/{name}/depth/image_raw", fields, stamp)
        _write_view(
            writer,
            name,
            episode.anchor_rgb[view, frame],
            episode.anchor_cameras[view],
            stamp,
            compressed,
        )
    _write_view(
        writer, TRUE_WRIST, episode.wrist_rgb[frame], episode.wrist_camera, stamp, compressed
    )


def _write_view(
    writer: BagWriter, name: str, image: Image, camera: CameraModel, stamp: int, compressed: bool
) -> None:
    frame_id = _optical_frame(name)
    writer.write(f"/{name}/camera_info", camera_info_fields(camera, stamp, frame_id), stamp)
    if compressed:
        fields = compressed_image_fields(image, "png", stamp, frame_id)
    else:
        fields = image_fields(image, "rgb8", stamp, frame_id)
    writer.write(_image_topic(name, compressed), fields, stamp)
