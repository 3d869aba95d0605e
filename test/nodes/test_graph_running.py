"""The two nodes in processes of their own: stamps, counts, QoS, lifecycle, parameters."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rclpy.qos import ReliabilityPolicy
from ros_bench import CAMERAS, NODES, Bench, stamp_of
from sensor_msgs.msg import CameraInfo, CompressedImage, JointState
from std_msgs.msg import String

from wristworld_ros.data.messages import (
    camera_info_fields,
    decode_image,
    decode_point_cloud,
    decode_transform,
    joint_state_fields,
)
from wristworld_ros.geometry.transforms import from_quaternion
from wristworld_ros.msg import GenerationStatus, WristEstimate
from wristworld_ros.nodes import qos
from wristworld_ros.nodes.conversions import fill
from wristworld_ros.reconstruction.calibration_file import (
    PlacedCamera,
    StationCalibration,
    save_calibration,
)
from wristworld_ros.types import ROBOT_MASK, CameraModel

pytestmark = pytest.mark.ros


def test_every_output_carries_the_stamp_of_the_anchor_images(
    bench: Bench, anchor_camera: CameraModel
) -> None:
    bench.restart(pose_source="kinematic", wrist_width=64, wrist_height=48, wrist_fov_y=1.2)
    sent = []
    for _ in range(3):
        stamp = bench.send_set(anchor_camera)
        sent.append(stamp)
        bench.wait("a picture", lambda stamp=stamp: stamp in bench.stamps("/wrist/image_raw"))
    for topic in bench.received:
        if topic not in ("/tf", "/wrist/points"):
            bench.wait(topic, lambda topic=topic: set(bench.stamps(topic)) >= set(sent))
            waiting = 0  # the stamp of a status that says what is missing
            assert [s for s in bench.stamps(topic) if s != waiting] == sent, topic
    image = decode_image(bench.received["/wrist/image_raw"][-1])
    assert image.shape == (48, 64, 3) and image.max() > 4
    info = bench.received["/wrist/camera_info"][-1]
    assert (info.width, info.height) == (64, 48)
    assert info.k[4] == pytest.approx(24 / np.tan(0.6)) and info.k[5] == pytest.approx(23.5)
    assert {m.header.frame_id for m in bench.received["/wrist/image_raw"]} == {
        "wrist_camera_virtual_optical_frame"
    }
    estimate = bench.received["/wrist/estimate"][-1]
    assert estimate.source == WristEstimate.SOURCE_KINEMATIC
    assert estimate.header.frame_id == "base_link"
    virtual = [
        decode_transform(t)
        for m in bench.received["/tf"]
        for t in m.transforms
        if t.child_frame_id == "wrist_camera_virtual_optical_frame"
    ]
    assert [stamp for _, _, stamp, _ in virtual] == sent
    np.testing.assert_allclose(virtual[-1][3][:3, 3], [0.5, 0.0, 0.4], atol=1e-9)
    points, _, confidence = decode_point_cloud(bench.received["/wrist/points"][-1])
    assert len(points) == estimate.point_count == len(confidence)
    status = next(m for m in bench.received["/wrist/status"] if stamp_of(m) == sent[-1])
    # Random weights trust next to none of their depth: a view is given, and so is the doubt.
    assert status.state == GenerationStatus.STATE_DEGRADED and status.mode == "stream"
    assert status.error_code == GenerationStatus.ERROR_LOW_COVERAGE
    assert "most of it is imagined" in status.error_message
    assert 0.25 < status.score < 0.4
    assert status.domain_distance == estimate.domain_distance > 0
    bench.wait_for_problem("generation_node: view", "low_coverage", "add an anchor camera")
    assert status.frames_in == status.frames_out == 3 and len(status.model_sha256) == 64
    assert dict(zip(status.latency_stages, status.latency_seconds, strict=True))["denoise"] > 0


def test_fused_goes_on_from_the_saved_mount(
    bench: Bench, anchor_camera: CameraModel, tmp_path: Path
) -> None:
    """The file's mount corrects TF's; the node says that one frame tells it nothing more."""
    path = tmp_path / "station.yaml"
    mount = from_quaternion([0.02, 0.0, -0.01], [0.0, 0.0, 0.0, 1.0])
    covariances = {"mount": 1e-6 * np.eye(6)}
    saved = StationCalibration(mount, covariances=covariances, hand_frame="another_frame")
    save_calibration(path, saved)
    bench.to_unconfigured("reconstruction_node")
    changes = {"pose_source": "fused", "calibration_file": str(path)}
    assert not bench.set("reconstruction_node", **changes)
    assert not bench.transition("reconstruction_node", "configure")
    bench.wait_for_problem("reconstruction_node: lifecycle", "another_frame", "Set wrist_frame")

    save_calibration(path, replace(saved, hand_frame="wrist_camera_optical_frame"))
    bench.restart(**changes)
    stamp = bench.send_set(anchor_camera)
    bench.wait("an estimate", lambda: stamp in bench.stamps("/wrist/estimate"))
    estimate = bench.received["/wrist/estimate"][-1]
    assert estimate.source == WristEstimate.SOURCE_FUSED
    # The hand looks down from (0.5, 0, 0.4): x right, z down.
    place = estimate.pose.pose.position
    np.testing.assert_allclose([place.x, place.y, place.z], [0.52, 0.0, 0.41], atol=1e-6)
    bench.wait_for_problem("reconstruction_node: mount", "the given mount is used")


def test_fused_places_a_camera_without_tf_by_the_saved_calibration(
    bench: Bench, anchor_camera: CameraModel, tmp_path: Path
) -> None:
    """Such a camera is no reason to refuse: all is in the robot's frame, by the file's pose."""
    path, name = tmp_path / "station.yaml", "loose"
    above = from_quaternion([0.5, 0.1, 0.6], [1.0, 0.0, 0.0, 0.0])
    saved = StationCalibration(
        np.eye(4),
        cameras={name: PlacedCamera(None, above)},
        covariances={"mount": 1e-6 * np.eye(6), name: 1e-6 * np.eye(6)},
        hand_frame="wrist_camera_optical_frame",
    )
    save_calibration(path, saved)
    bench.restart(
        cameras=[name], pose_source="fused", calibration_file=str(path), calibration_timeout=0.0
    )
    info = camera_info_fields(anchor_camera, 0, f"{name}_optical_frame")
    bench.say(f"/{name}/camera_info", CameraInfo, 1, fill(CameraInfo(), info))
    stamp, bench.next_stamp = bench.next_stamp, bench.next_stamp + 200_000_000
    bench.send_hand(stamp)
    bench.send_images(stamp, [name])
    bench.wait("an estimate", lambda: stamp in bench.stamps("/wrist/estimate"))
    estimate = bench.received["/wrist/estimate"][-1]
    assert estimate.source == WristEstimate.SOURCE_FUSED
    assert estimate.header.frame_id == "base_link"
    place = estimate.pose.pose.position
    np.testing.assert_allclose([place.x, place.y, place.z], [0.5, 0.0, 0.4], atol=1e-6)


URDF = """
<robot name="stick">
  <link name="base_link"/>
  <link name="stick">
    <visual><origin xyz="0.5 0.06 0.3"/><geometry><box size="0.02 0.02 0.2"/></geometry></visual>
  </link>
  <link name="wrist_camera_optical_frame"/>
  <joint name="lift" type="prismatic">
    <parent link="base_link"/><child link="stick"/><axis xyz="0 0 1"/>
    <limit lower="-1" upper="1" effort="1" velocity="1"/>
  </joint>
  <joint name="mount" type="fixed">
    <parent link="stick"/><child link="wrist_camera_optical_frame"/>
    <origin xyz="0.5 0 0.3" rpy="3.14159265358979 0 0"/>
  </joint>
</robot>
"""


def test_the_robot_is_drawn_and_places_the_camera_by_its_joints(
    bench: Bench, anchor_camera: CameraModel
) -> None:
    """No TF of the wrist: the URDF has its frame, 0.3 m above the joint, which is lifted by 0.1."""
    bench.restart(pose_source="kinematic")
    bench.publisher("/robot_description", String, 1, qos.latched()).publish(String(data=URDF))
    bench.wait_for_input("reconstruction_node", "/robot_description")

    def send(**joints: float) -> int:
        stamp, bench.next_stamp = bench.next_stamp, bench.next_stamp + 200_000_000
        bench.send_calibration(anchor_camera)
        message = fill(JointState(), joint_state_fields(joints, stamp))
        bench.say("/joint_states", JointState, 1, message, qos.state())
        bench.send_images(stamp)
        return stamp

    stamp = send(lift=0.1)
    bench.wait("an estimate", lambda: stamp in bench.stamps("/wrist/estimate"))
    estimate = bench.received["/wrist/estimate"][-1]
    place = estimate.pose.pose.position
    np.testing.assert_allclose([place.x, place.y, place.z], [0.5, 0.0, 0.4], atol=1e-9)
    bench.wait("a mask", lambda: stamp in bench.stamps("/wrist/condition/mask"))
    mask = decode_image(bench.received["/wrist/condition/mask"][-1])[..., 0]
    assert (mask == ROBOT_MASK).sum() > 5  # the stick, 6 cm beside the camera
    assert set(np.unique(mask)) <= {0, ROBOT_MASK, 255}
    assert estimate.coverage == pytest.approx((mask == 255).mean(), abs=1e-6)

    send(elbow=0.1)
    bench.wait_for_problem("reconstruction_node: robot", "not drawn", "lack lift")


def test_kinematic_takes_a_calibrated_mount_as_it_is(
    bench: Bench, anchor_camera: CameraModel, tmp_path: Path
) -> None:
    path = tmp_path / "mount.yaml"
    bench.to_unconfigured("reconstruction_node")
    changes = {"pose_source": "kinematic", "calibration_file": str(path)}
    assert not bench.set("reconstruction_node", **changes)
    assert not bench.transition("reconstruction_node", "configure")
    bench.wait_for_problem("reconstruction_node: lifecycle", "no calibration_file", "mount.yaml")
    mount = from_quaternion([0.02, 0.0, -0.01], [0.0, 0.0, 0.0, 1.0])
    saved = StationCalibration(mount, hand_frame="wrist_camera_optical_frame")
    save_calibration(path, saved)
    bench.restart(**changes)
    stamp = bench.send_set(anchor_camera)
    bench.wait("an estimate", lambda: stamp in bench.stamps("/wrist/estimate"))
    estimate = bench.received["/wrist/estimate"][-1]
    assert estimate.source == WristEstimate.SOURCE_KINEMATIC
    place = estimate.pose.pose.position
    np.testing.assert_allclose([place.x, place.y, place.z], [0.52, 0.0, 0.41], atol=1e-6)


def test_points_in_the_frame_of_the_first_camera_and_no_more_than_asked(
    bench: Bench, anchor_camera: CameraModel
) -> None:
    bench.restart(pose_source="kinematic", points_frame="anchor", max_points=50)
    stamp = bench.send_set(anchor_camera)
    bench.wait("points", lambda: stamp in bench.stamps("/wrist/points"))
    message = bench.received["/wrist/points"][-1]
    assert message.header.frame_id == f"{CAMERAS[0]}_optical_frame"
    points, _, _ = decode_point_cloud(message)
    assert 1 <= len(points) <= 50
    # Both cameras look down from 0.6 m; what they see lies before them.
    assert (points[:, 2] > 0).all()


def test_every_frame_is_accounted_for_when_the_nodes_cannot_keep_up(
    bench: Bench, anchor_camera: CameraModel
) -> None:
    bench.restart(sync_queue=50)
    bench.send_set(anchor_camera)
    for _ in range(24):  # as fast as they leave
        stamp, bench.next_stamp = bench.next_stamp, bench.next_stamp + 33_333_333
        bench.send_hand(stamp)
        bench.send_images(stamp)

    def settled() -> bool:
        counts = [bench.frames(node) for node in NODES]
        # Each may say so before the first condition map has left or reached it: that is too early.
        return all(
            c and c["frames_in"] == 25 and c["in_work"] == 0 and c["frames_out"] >= 1
            for c in counts
        )

    bench.wait("all frames accounted for", settled)
    for node in NODES:
        counts = bench.frames(node)
        dropped = sum(n for key, n in counts.items() if key.startswith("dropped "))
        assert counts["frames_out"] + dropped + counts["unmatched"] == 25
    bench.wait(
        "the pictures",
        lambda: (
            len(bench.received["/wrist/image_raw"]) == bench.frames("generation_node")["frames_out"]
        ),
    )


def test_reliability_of_inputs_and_outputs_follows_the_parameters(bench: Bench) -> None:
    bench.restart(input_reliability="best_effort")
    published = bench.node.get_publishers_info_by_topic("/wrist/image_raw")
    assert [p.qos_profile.reliability for p in published] == [ReliabilityPolicy.RELIABLE]
    topic = "/anchor_0/image_raw"
    asked = bench.wait(
        "both nodes listening",
        lambda: (
            (found := bench.node.get_subscriptions_info_by_topic(topic))
            and len(found) == 2
            and found
        ),
    )
    assert {s.qos_profile.reliability for s in asked} == {ReliabilityPolicy.BEST_EFFORT}
    bench.restart(output_reliability="best_effort")
    published = bench.wait(
        "the new publisher",
        lambda: (
            (found := bench.node.get_publishers_info_by_topic("/wrist/image_raw"))
            and len(found) == 1
            and found
        ),
    )
    assert published[0].qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT


def test_compressed_cameras(bench: Bench, anchor_camera: CameraModel) -> None:
    bench.restart(image_transport="compressed")
    stamp, bench.next_stamp = bench.next_stamp, bench.next_stamp + 200_000_000
    bench.send_calibration(anchor_camera)
    bench.send_hand(stamp)
    for name in CAMERAS:
        publisher = bench.publisher(f"/{name}/image_raw/compressed", CompressedImage, 2)
        publisher.publish(bench.compressed(name, stamp))
    bench.wait("a picture", lambda: stamp in bench.stamps("/wrist/image_raw"))


def test_chunks_give_every_frame_a_picture(bench: Bench, anchor_camera: CameraModel) -> None:
    bench.restart(mode="chunk", chunk_length=2)
    sent = []
    for _ in range(5):  # two chunks, and one frame that leaves when nothing follows
        sent.append(bench.send_set(anchor_camera))
        bench.wait(
            "the condition map",
            lambda: sent[-1] in bench.stamps("/wrist/condition/image"),
        )
    bench.wait("all pictures", lambda: set(bench.stamps("/wrist/image_raw")) == set(sent))
    assert bench.stamps("/wrist/image_raw") == sent
    assert {m.mode for m in bench.received["/wrist/status"] if m.state == 2} == {"chunk"}


def test_low_coverage_is_refused_with_a_code_and_no_picture(
    bench: Bench, anchor_camera: CameraModel
) -> None:
    bench.restart(refuse_below_coverage=1.0, wrist_width=64, wrist_height=64, wrist_fov_y=2.6)
    stamp = bench.send_set(anchor_camera)
    status = bench.wait(
        "a refusal",
        lambda: [m for m in bench.received["/wrist/status"] if stamp_of(m) == stamp],
    )[0]
    assert status.state == GenerationStatus.STATE_REFUSED
    assert status.error_code == GenerationStatus.ERROR_LOW_COVERAGE
    assert "refuse_below_coverage is 100.0%" in status.error_message
    bench.wait_for_problem("generation_node: frames", "low_coverage", "lower the limit")
    assert bench.received["/wrist/image_raw"] == []
    assert not bench.set("generation_node", refuse_below_coverage=0.0)
    stamp = bench.send_set(anchor_camera)
    bench.wait("a picture", lambda: bench.stamps("/wrist/image_raw") == [stamp])


def test_images_unlike_training_are_refused_when_that_is_asked_for(
    bench: Bench, anchor_camera: CameraModel
) -> None:
    bench.restart(refuse_beyond_domain=1e-4)
    stamp = bench.send_set(anchor_camera)
    status = bench.wait(
        "a refusal",
        lambda: [m for m in bench.received["/wrist/status"] if stamp_of(m) == stamp],
    )[0]
    assert status.state == GenerationStatus.STATE_REFUSED
    assert status.error_code == GenerationStatus.ERROR_OUT_OF_DOMAIN
    assert "refuse_beyond_domain is 0.0001" in status.error_message
    assert status.domain_distance > 1e-4 and status.score == 0
    assert dict(zip(status.drop_causes, status.drop_counts, strict=True)) == {"out_of_domain": 1}
    assert bench.stamps("/wrist/condition/image") == [stamp]
    assert bench.received["/wrist/image_raw"] == bench.received["/wrist/confidence"] == []
    assert not bench.set("generation_node", refuse_beyond_domain=0.0)
    stamp = bench.send_set(anchor_camera)
    bench.wait("a picture", lambda: bench.stamps("/wrist/image_raw") == [stamp])


def test_a_jump_back_in_time_starts_over(bench: Bench, anchor_camera: CameraModel) -> None:
    bench.restart()
    bench.next_stamp += 60 * 10**9
    late = bench.send_set(anchor_camera)
    bench.wait("a picture", lambda: late in bench.stamps("/wrist/image_raw"))
    bench.next_stamp -= 60 * 10**9
    early = bench.send_set(anchor_camera)
    bench.wait("a picture", lambda: early in bench.stamps("/wrist/image_raw"))


@pytest.mark.parametrize("seed", [0, 1])
def test_any_order_of_transitions_leaves_the_nodes_alive(
    bench: Bench, anchor_camera: CameraModel, seed: int
) -> None:
    allowed = {
        "unconfigured": {"configure": "inactive"},
        "inactive": {"activate": "active", "cleanup": "unconfigured"},
        "active": {"deactivate": "inactive"},
    }
    choose = random.Random(seed)
    for node in NODES:
        state = bench.state(node)
        for _ in range(12):
            label = choose.choice(["configure", "activate", "deactivate", "cleanup"])
            expected = allowed[state].get(label)
            assert bench.transition(node, label) == (expected is not None), (state, label)
            state = expected or state
            assert bench.state(node) == state
    bench.restart()
    stamp = bench.send_set(anchor_camera)
    bench.wait("a picture", lambda: stamp in bench.stamps("/wrist/image_raw"))


def test_parameters_are_refused_with_a_reason(bench: Bench) -> None:
    bench.restart()
    refused = bench.set(
        "generation_node", steps=3, jpeg_quality=80, refuse_below_coverage=1.5, autostart=False
    )
    assert set(refused) == {"steps", "refuse_below_coverage", "autostart"}
    assert "takes effect at configure" in refused["steps"] and "cleanup" in refused["steps"]
    assert "1.5" in refused["refuse_below_coverage"] and "1.0" in refused["refuse_below_coverage"]
    assert "read-only" in refused["autostart"]
    bench.to_unconfigured("generation_node")
    refused = bench.set("generation_node", mode="fast", cameras=[], steps=4)
    assert set(refused) == {"mode", "cameras"}
    assert "stream, chunk" in refused["mode"] and "1 to 8" in refused["cameras"]
