"""What a user gets wrong: each leads to a diagnostics entry that names the thing and the cure."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_bench import CAMERAS, NODES, Bench
from sensor_msgs.msg import CameraInfo, Image

from wristworld_ros.msg import WristEstimate
from wristworld_ros.types import CameraModel

pytestmark = pytest.mark.ros


@pytest.fixture(autouse=True)
def both_nodes_live_on(bench: Bench, anchor_camera: CameraModel) -> Iterator[None]:
    """Whatever a test does to one node: afterwards both answer, and good input gives a picture."""
    yield
    assert bench.graph.ended() == {}
    bench.restart()
    stamp = bench.send_set(anchor_camera)
    bench.wait("a picture after all", lambda: stamp in bench.stamps("/wrist/image_raw"))


def test_missing_camera(bench: Bench) -> None:
    bench.restart(cameras=["anchor_0", "nowhere"])
    bench.publisher("/anchor_0/image_raw", Image, 2)
    for node in NODES:
        status = bench.wait_for_problem(
            f"{node}: input /nowhere/image_raw",
            "nobody publishes it",
            "cameras",
            "/anchor_0/image_raw",  # what there is instead, once the node has discovered it
        )
        assert status.level == DiagnosticStatus.ERROR
        assert "camera 'nowhere'" in status.message


def test_camera_that_falls_silent(bench: Bench, anchor_camera: CameraModel) -> None:
    bench.restart()
    stamp = bench.send_set(anchor_camera)
    bench.wait("a picture", lambda: stamp in bench.stamps("/wrist/image_raw"))
    bench.wait_for_problem(
        "reconstruction_node: input /anchor_1/image_raw", "no message for", "bench"
    )
    bench.wait_for_problem(
        "generation_node: input /wrist/condition/image", "diagnostics of that node"
    )


def test_missing_camera_info(bench: Bench) -> None:
    bench.restart(cameras=["uncalibrated"], pose_source="kinematic")
    stamp, bench.next_stamp = bench.next_stamp, bench.next_stamp + 200_000_000
    bench.send_hand(stamp)
    bench.publisher("/uncalibrated/image_raw", Image, 2).publish(bench.image("uncalibrated", stamp))
    bench.wait_for_problem(
        "reconstruction_node: input /uncalibrated/camera_info",
        "calibration of camera 'uncalibrated'",
        "nobody publishes it",
    )
    refusal = bench.wait("a refusal", lambda: bench.received["/wrist/estimate"])[0]
    assert refusal.source == WristEstimate.SOURCE_NONE
    assert refusal.error_code in (WristEstimate.ERROR_CALIBRATION, WristEstimate.ERROR_TRANSFORM)
    assert "uncalibrated" in refusal.error_message


def test_missing_transform(bench: Bench, anchor_camera: CameraModel) -> None:
    bench.restart(wrist_frame="tool_camera", pose_source="kinematic", tf_timeout=0.05)
    bench.send_set(anchor_camera)
    bench.wait_for_problem("reconstruction_node: frames", "no_transform", "tool_camera")
    bench.wait_for_problem("reconstruction_node: transforms", "tool_camera", "Publish it on /tf")
    refusal = bench.wait("a refusal", lambda: bench.received["/wrist/estimate"])[0]
    assert refusal.error_code == WristEstimate.ERROR_TRANSFORM


def test_auto_goes_on_without_calibration_and_says_so(bench: Bench) -> None:
    bench.restart(cameras=["loose"], calibration_timeout=0.0)
    stamp, bench.next_stamp = bench.next_stamp, bench.next_stamp + 200_000_000
    bench.publisher("/loose/image_raw", Image, 2).publish(bench.image("loose", stamp))
    bench.wait("a picture", lambda: stamp in bench.stamps("/wrist/image_raw"))
    estimate = bench.received["/wrist/estimate"][0]
    assert estimate.source == WristEstimate.SOURCE_LEARNED
    assert estimate.header.frame_id == "loose_optical_frame"
    status = bench.wait_for_problem("reconstruction_node: transforms", "Going on without")
    assert status.level == DiagnosticStatus.WARN


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoding": "bayer_rggb8"}, ("bayer_rggb8", "not supported", "rgb8")),
        ({"encoding": "16UC1"}, ("16UC1", "depth", "Check the topic name")),
        ({"width": 0}, ("image size 0 x 48", "Check the driver's resolution")),
        ({"height": 480}, ("truncated",)),
    ],
    ids=["unknown encoding", "depth as colour", "zero size", "truncated data"],
)
def test_bad_image(bench: Bench, change: dict[str, object], words: tuple[str, ...]) -> None:
    bench.restart()
    stamp, bench.next_stamp = bench.next_stamp, bench.next_stamp + 200_000_000
    message = bench.image("anchor_0", stamp)
    for name, value in change.items():
        setattr(message, name, value)
    bench.publisher("/anchor_0/image_raw", Image, 2).publish(message)
    for node in NODES:
        status = bench.wait_for_problem(f"{node}: input /anchor_0/image_raw", *words)
        assert status.level == DiagnosticStatus.ERROR
        bench.wait(
            "the count", lambda node=node: bench.frames(node).get("dropped invalid_input") == 1
        )


def test_zero_stamp(bench: Bench) -> None:
    bench.restart()
    bench.publisher("/anchor_0/image_raw", Image, 2).publish(bench.image("anchor_0", 0))
    bench.wait_for_problem(
        "reconstruction_node: input /anchor_0/image_raw", "stamp is zero", "header.stamp"
    )


def test_nan_in_k(bench: Bench, anchor_camera: CameraModel) -> None:
    bench.restart()
    stamp = bench.send_set(anchor_camera)
    bench.wait("a picture", lambda: stamp in bench.stamps("/wrist/image_raw"))
    info = CameraInfo(width=64, height=48, k=[float("nan")] * 9)
    bench.publisher("/anchor_1/camera_info", CameraInfo, 1).publish(info)
    status = bench.wait_for_problem(
        "reconstruction_node: input /anchor_1/camera_info", "nan", "Calibrate the camera"
    )
    assert status.level == DiagnosticStatus.ERROR
    stamp, bench.next_stamp = bench.next_stamp, bench.next_stamp + 200_000_000
    bench.send_hand(stamp)
    bench.send_images(stamp)
    refusal = bench.wait(
        "a refusal", lambda: [m for m in bench.received["/wrist/estimate"] if m.error_code]
    )[0]
    assert refusal.error_code == WristEstimate.ERROR_CALIBRATION


def test_camera_info_of_another_size(bench: Bench) -> None:
    bench.restart()
    bench.send_set(CameraModel.from_fov(0.9, 640, 480))
    bench.wait_for_problem(
        "reconstruction_node: frames", "camera_info is for 640 x 480", "of the same stream"
    )


def test_qos_that_does_not_match(bench: Bench) -> None:
    bench.restart(cameras=["fast"])
    profile = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = bench.node.create_publisher(Image, "/fast/image_raw", profile)
    try:
        for node in NODES:
            bench.wait_for_problem(
                f"{node}: input /fast/image_raw",
                "QoS does not match",
                "bench offers best_effort",
                "Set input_reliability to best_effort",
            )
    finally:
        bench.node.destroy_publisher(publisher)


@pytest.mark.parametrize(
    ("node", "file"),
    [
        ("reconstruction_node", "stage1/model.safetensors"),
        ("generation_node", "stage2/model.safetensors"),
        ("generation_node", "autoencoder/model.safetensors"),
    ],
)
@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_damaged_weights(
    bench: Bench, tiny_models: Path, tmp_path: Path, node: str, file: str, damage: str
) -> None:
    shutil.copytree(tiny_models, tmp_path / "weights")
    path = tmp_path / "weights" / file
    content = bytearray(path.read_bytes())
    content[-10] ^= 0xFF
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(content if damage == "altered" else content[: len(content) // 2])
    bench.to_unconfigured(node)
    assert not bench.set(node, model_path=str(tmp_path / "weights"))
    assert not bench.transition(node, "configure")
    assert bench.state(node) == "unconfigured"
    status = bench.wait_for_problem(f"{node}: lifecycle", "cannot configure", str(path))
    assert status.level == DiagnosticStatus.ERROR
    assert "Restore" in status.message
    other = NODES[1 - NODES.index(node)]
    assert bench.state(other) == "active"


def test_wrist_camera_given_in_part(bench: Bench) -> None:
    bench.to_unconfigured("reconstruction_node")
    assert not bench.set("reconstruction_node", wrist_width=64)
    assert not bench.transition("reconstruction_node", "configure")
    bench.wait_for_problem("reconstruction_node: lifecycle", "wrist_width=64", "set both")


def test_missing_camera_info_of_the_wrist(bench: Bench, anchor_camera: CameraModel) -> None:
    bench.restart(wrist_camera_info_topic="/hand_eye/camera_info")
    bench.send_set(anchor_camera)
    bench.wait_for_problem(
        "reconstruction_node: input /hand_eye/camera_info", "virtual wrist camera", "nobody"
    )
    bench.wait_for_problem("reconstruction_node: frames", "no_wrist_camera_info", "wrist_fov_y")


def test_cameras_are_only_those_of_the_parameter(bench: Bench) -> None:
    bench.restart(cameras=[CAMERAS[0]])
    assert bench.node.count_subscribers(f"/{CAMERAS[1]}/camera_info") == 0
