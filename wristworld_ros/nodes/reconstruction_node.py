"""Stage 1 as a node: anchor images and calibration in, wrist pose, cloud and condition map out.

Subscribed: ``<camera>/image_raw[/compressed]``, ``<camera>/camera_info``, optional
``<camera>/depth/image_raw``, ``/tf``, ``/tf_static``, ``joint_states``, ``robot_description``,
``instruction``.
Published: ``wrist/estimate``, ``wrist/points`` (only while someone listens),
``wrist/condition/image``, ``wrist/condition/mask``, ``wrist/condition/camera_info``, ``/tf``,
``/diagnostics``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from wristworld_ros.data.augment import estimate_fields
from wristworld_ros.data.messages import (
    camera_info_fields,
    header_fields,
    image_fields,
    point_cloud_fields,
    stamp_to_ns,
    tf_fields,
    transform_fields,
)
from wristworld_ros.errors import CalibrationError, TransformLookupError
from wristworld_ros.geometry.cloud import limit_points, move_points
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.msg import WristEstimate as WristEstimateMessage
from wristworld_ros.nodes import qos
from wristworld_ros.nodes.base import Refusal, WristNode
from wristworld_ros.nodes.cameras import CameraInfoInput, CameraInputs, CameraSet
from wristworld_ros.nodes.conversions import fill
from wristworld_ros.nodes.instruction import InstructionInput
from wristworld_ros.nodes.monitoring import ERROR, OK, WARN, InputMonitor
from wristworld_ros.nodes.parameters import ReconstructionParameters
from wristworld_ros.nodes.process import run_node
from wristworld_ros.nodes.robot import RobotInput
from wristworld_ros.nodes.transforms import TransformListener
from wristworld_ros.nodes.wrist_camera import at_model_size, from_parameters
from wristworld_ros.reconstruction.calibration_file import (
    StationCalibration,
    load_calibration,
    save_calibration,
)
from wristworld_ros.reconstruction.fusion import MountEstimator, camera_priors, mount_prior
from wristworld_ros.types import (
    AnchorFrame,
    AnchorView,
    CameraModel,
    FloatArray,
    Reconstruction,
)

M = WristEstimateMessage
#: Pose sources that cannot do without kinematics and the cameras' intrinsics.
STRICT = ("kinematic", "fused")


class ReconstructionNode(WristNode[CameraSet]):
    """Lifecycle node around ``Reconstructor``."""

    def __init__(self, **node_arguments: object) -> None:
        super().__init__(ReconstructionParameters, **node_arguments)

    # --- lifecycle --------------------------------------------------------------------------------

    def load(self) -> None:
        """Weights, virtual camera, publishers."""
        p = self.parameters
        self.limit_threads()
        self._given_wrist_camera = from_parameters(p)
        saved = self._saved_calibration()
        self._fixed_mount = saved.mount if saved and p.pose_source != "fused" else None
        if saved and saved.mount is None:
            raise CalibrationError(
                f"calibration {p.calibration_file} holds no mount. Leave calibration_file empty, "
                "or make one (wristworld calibrate, or pose_source fused)."
            )
        from wristworld_ros.reconstruction import Reconstructor

        self._reconstructor = Reconstructor.from_pretrained(
            p.model_path or None,
            pose_source=p.pose_source,
            wrist_camera=self._given_wrist_camera,
            device=p.device,
            backbone=p.backbone,
            backbone_weights=p.backbone_weights or None,
            mount=mount_prior(saved) if saved and p.pose_source == "fused" else None,
            cameras=camera_priors(saved) if saved else None,
        )
        images = qos.image(p.output_reliability)
        self.advertise("wrist/estimate", M, qos.state())
        self.advertise("wrist/points", PointCloud2, images)
        self.advertise("wrist/condition/image", Image, images)
        self.advertise("wrist/condition/mask", Image, images)
        self.advertise("wrist/condition/camera_info", CameraInfo, images)
        if p.publish_tf:
            self.advertise("/tf", TFMessage, qos.tf())

    def unmatched(self) -> int:
        """Sets that lack an image of another camera."""
        return self._cameras.waiting

    def unload(self) -> None:
        """Keep the estimated mount, release the weights."""
        estimator = self._reconstructor.mount_estimator if self._reconstructor else None
        self._reconstructor = None
        p = self.parameters
        if estimator is None or not p.calibration_file or estimator.estimate().reason:
            return
        calibration = estimator.calibration(
            base_frame=p.world_frame, hand_frame=p.wrist_frame, made="reconstruction_node"
        )
        try:
            save_calibration(p.calibration_file, calibration)
        except OSError as error:
            self.get_logger().error(
                f"the estimated mount could not be kept: {error}. Set calibration_file to a file "
                "in a folder that can be written."
            )

    def _saved_calibration(self) -> StationCalibration | None:
        """What ``calibration_file`` holds; None without such a file.

        Raises:
            CalibrationError: the file cannot be read, or is of another frame; or there is none,
                and the pose source does not make it.
        """
        p = self.parameters
        path = Path(p.calibration_file)
        if not p.calibration_file or p.pose_source == "learned":
            return None
        if not path.exists():
            if p.pose_source == "fused":
                return None
            raise CalibrationError(
                f"there is no calibration_file {path}; pose_source {p.pose_source} takes the mount "
                "from it. Correct the path, leave it empty, or let pose_source fused make it."
            )
        calibration = load_calibration(path)
        if calibration.hand_frame != p.wrist_frame:
            raise CalibrationError(
                f"calibration {path} is of a camera on frame '{calibration.hand_frame}', and "
                f"wrist_frame is '{p.wrist_frame}'. Set wrist_frame to it, or take another file."
            )
        return calibration

    def listen(self) -> None:
        """Cameras, their calibration, TF, joints, instruction."""
        p = self.parameters
        self._transform_error = ""
        self._mount: tuple[bytes, str, dict[str, int]] | None = None
        self._connected: set[str] = set()
        self._first_set_time: float | None = None
        self._estimated_wrist_camera: CameraModel | None = None
        self._tf = TransformListener(p.virtual_frame, self._note_transform_error)
        strict = p.pose_source in STRICT
        for topic, profile, static in (
            ("/tf_static", qos.tf_static(), True),
            ("/tf", qos.tf(), False),
        ):
            monitor = InputMonitor(
                topic, "tf2_msgs/msg/TFMessage", profile, "transforms", required=False, once=static
            )
            self.subscribe(monitor, TFMessage, self._tf_receiver(static))
        self._infos = {
            camera: CameraInfoInput(
                self,
                f"{camera}/camera_info",
                f"calibration of camera '{camera}'",
                required=strict,
            )
            for camera in p.cameras
        }
        self._wrist_info = None
        if p.wrist_camera_info_topic:
            self._wrist_info = CameraInfoInput(
                self,
                p.wrist_camera_info_topic,
                "calibration of the virtual wrist camera",
                required=True,
            )
        self._robot = RobotInput(self)
        self._instruction = InstructionInput(self)
        self._cameras = CameraInputs(self, self.submit, lambda: None, depth=p.use_depth)

    # --- inputs -----------------------------------------------------------------------------------

    def _tf_receiver(self, static: bool) -> Callable[[TFMessage], int]:
        def receive(message: TFMessage) -> int:
            self._tf.add(message, static)
            stamps = [stamp_to_ns(t.header.stamp, "/tf") for t in message.transforms]
            return max(stamps, default=0)

        return receive

    def _note_transform_error(self, text: str) -> None:
        self._transform_error = text
        self.events.add("transforms_refused")

    # --- work -------------------------------------------------------------------------------------

    def process(self, item: CameraSet) -> None:
        """One synchronised set of images -> estimate, condition map, TF."""
        started = time.monotonic()
        if self._first_set_time is None:
            self._first_set_time = item.arrival
        frame = self._anchor_frame(item)
        waited = time.monotonic() - started
        assert self._reconstructor is not None
        result = self._reconstructor(frame)
        if self._reconstructor.mount_estimator is not None:
            self._mount = _mount_state(self._reconstructor.mount_estimator)
        _check_finite(result)
        if frame.wrist_camera is None:  # a camera does not change from frame to frame
            self._estimated_wrist_camera = result.estimate.camera
        stages = {"wait_for_transforms": waited, **result.latency}
        begun = time.monotonic()
        self._publish_result(result, item, frame.views[0], stages)
        latency = time.monotonic() - item.arrival
        stages["publish"] = time.monotonic() - begun
        self.frames.published(stages, latency)

    def _anchor_frame(self, item: CameraSet) -> AnchorFrame:
        p, robot = self.parameters, self._robot
        joints, T_world_robot = None, None
        if p.draw_robot or p.wrist_frame not in self._tf:
            robot.update()
            joints = robot.joints(item.stamp_ns, p.tf_timeout)
        if robot.model is not None and joints is not None and robot.model.root != p.world_frame:
            T_world_robot = self._pose(
                robot.model.root, item.stamp_ns, "the robot's root link", needed=False, wanted=True
            )
            if T_world_robot is None:
                robot.not_placed()
                joints = None
        assert self._reconstructor is not None
        self._reconstructor.robot = robot.model if p.draw_robot else None
        T_world_wrist = self._wrist_pose(item.stamp_ns, joints, T_world_robot)
        views = []
        for name in p.cameras:
            image = item.frames[name]
            camera = self._calibration(name)
            T_world_camera = self._pose(
                image.frame_id,
                image.stamp_ns,
                f"camera '{name}'",
                needed=p.pose_source == "kinematic",
                wanted=True,
            )
            depth = item.depth[name].image if name in item.depth else None
            views.append(
                AnchorView(name, image.image, image.stamp_ns, camera, T_world_camera, depth)
            )
        return AnchorFrame(
            stamp_ns=item.stamp_ns,
            views=tuple(views),
            T_world_wrist=T_world_wrist,
            wrist_camera=self._wrist_camera(),
            instruction=self._instruction.text,
            world_frame=p.world_frame,
            joints=joints,
            T_world_robot=T_world_robot,
        )

    def _wrist_pose(
        self, stamp_ns: int, joints: dict[str, float] | None, T_world_robot: FloatArray | None
    ) -> FloatArray | None:
        """Kinematic pose of the wrist camera: by TF, or by the joints where TF lacks its frame but
        the robot's description has it; and from there on by a calibrated mount."""
        p, model = self.parameters, self._robot.model
        if p.pose_source == "learned":
            return None
        by_joints = model is not None and joints is not None and p.wrist_frame not in self._tf
        if by_joints and p.wrist_frame in model.links:
            T = model.link_pose(p.wrist_frame, joints)
            T = T if T_world_robot is None else T_world_robot @ T
        else:
            T = self._pose(p.wrist_frame, stamp_ns, "the wrist camera's mount",
                           needed=p.pose_source in STRICT, wanted=True)  # fmt: skip
        return T if T is None or self._fixed_mount is None else T @ self._fixed_mount

    def _waiting(self) -> bool:
        """Whether calibration that has not come yet may still come."""
        if self._first_set_time is None:
            return True
        return time.monotonic() < self._first_set_time + self.parameters.calibration_timeout

    def _calibration(self, name: str) -> CameraModel | None:
        info = self._infos[name]
        if info.error:
            raise Refusal("invalid_camera_info", M.ERROR_CALIBRATION, info.error)
        strict = self.parameters.pose_source in STRICT
        if info.camera is None and (strict or (not info.known and self._waiting())):
            state = "says that it is not calibrated (K is zero)" if info.known else "has not come"
            raise Refusal(
                "no_camera_info",
                M.ERROR_CALIBRATION,
                f"camera_info of camera '{name}' {state}. Publish it on {name}/camera_info, or set "
                "pose_source to learned to go without.",
            )
        return info.camera

    def _wrist_camera(self) -> CameraModel | None:
        info = self._wrist_info
        if info is None:
            return self._given_wrist_camera or self._estimated_wrist_camera
        if info.camera is None:
            raise Refusal(
                "no_wrist_camera_info",
                M.ERROR_CALIBRATION,
                info.error
                or f"no calibrated camera_info has come on {info.topic}. Publish it, or "
                "set wrist_width, wrist_height and wrist_fov_y and leave wrist_camera_info_topic "
                "empty.",
            )
        return at_model_size(info.camera, self.parameters)

    def _pose(
        self, frame: str, stamp_ns: int, role: str, *, needed: bool, wanted: bool
    ) -> FloatArray | None:
        """``T_world_<frame>`` at a stamp, or None when it may be done without.

        A frame that was connected once has to stay so: a late transform is waited for and then
        refused, so that the world frame does not change from one picture to the next.
        """
        if not wanted:
            return None
        p = self.parameters
        must = needed or self._waiting() or frame in self._connected
        worker = self.worker
        try:
            if not frame:
                raise TransformLookupError(
                    f"the image of {role} has an empty frame_id, so its pose cannot be looked up. "
                    "Set frame_id in the driver."
                )
            T = self._tf.wait_for(
                p.world_frame,
                frame,
                stamp_ns,
                p.tf_timeout if must else 0.0,
                worker.stopping if worker else None,
            )
        except TransformLookupError as error:
            text = f"pose of {role}: {error}"
            self._note_transform_error(text)
            if must:
                raise Refusal("no_transform", M.ERROR_TRANSFORM, text) from error
            return None
        self._connected.add(frame)
        return T

    # --- outputs ----------------------------------------------------------------------------------

    def _publish_result(
        self,
        result: Reconstruction,
        item: CameraSet,
        first: AnchorView,
        stages: dict[str, float],
    ) -> None:
        p, stamp, estimate = self.parameters, result.stamp_ns, result.estimate
        virtual = p.virtual_frame
        condition = result.condition
        if p.publish_tf:
            transform = transform_fields(estimate.T_world_wrist, stamp, result.world_frame, virtual)
            self.publish("/tf", fill(TFMessage(), tf_fields([transform])))
        mask = condition.mask_image
        self.publish(
            "wrist/condition/camera_info",
            fill(CameraInfo(), camera_info_fields(condition.camera, stamp, virtual)),
        )
        self.publish(
            "wrist/condition/mask", fill(Image(), image_fields(mask, "mono8", stamp, virtual))
        )
        self.publish(
            "wrist/condition/image",
            fill(Image(), image_fields(condition.image, "rgb8", stamp, virtual)),
        )
        if self.wanted("wrist/points"):
            cloud, name = limit_points(result.cloud, p.max_points), result.world_frame
            if p.points_frame == "anchor" and name == p.world_frame:
                assert first.T_world_camera is not None
                cloud = move_points(cloud, invert(first.T_world_camera))
                name = item.frames[first.name].frame_id
            self.publish(
                "wrist/points", fill(PointCloud2(), point_cloud_fields(cloud, stamp, name))
            )
        fields = {
            **estimate_fields(result, virtual),
            "latency": time.monotonic() - item.arrival,
            "latency_stages": list(stages),
            "latency_seconds": np.array(list(stages.values()), np.float32),
        }
        self.publish("wrist/estimate", fill(M(), fields))

    def refused(self, item: CameraSet, refusal: Refusal) -> None:
        """Say on wrist/estimate that there is none for this stamp, and why."""
        fields = {
            "header": header_fields(item.stamp_ns, self.parameters.world_frame),
            "child_frame_id": self.parameters.virtual_frame,
            "source": M.SOURCE_NONE,
            "reprojection_error": float("nan"),
            "domain_distance": float("nan"),
            "latency": time.monotonic() - item.arrival,
            "error_code": refusal.code,
            "error_message": str(refusal),
        }
        self.publish("wrist/estimate", fill(M(), fields))

    # --- diagnostics ------------------------------------------------------------------------------

    def components(self) -> list[DiagnosticStatus]:
        """Transforms, and dropped images per camera."""
        p = self.parameters
        missing = [
            name
            for name in (p.wrist_frame, *(self._infos[c].frame_id for c in p.cameras))
            if name and name not in self._connected
        ]
        values = {
            "received": self._tf.received,
            "time_jumps": self._tf.time_jumps,
            "connected": ", ".join(sorted(self._connected)) or "none",
        }
        level, text = OK, f"{len(self._connected)} frames connected to {p.world_frame}"
        if missing and self._transform_error:
            level = WARN if p.pose_source in ("auto", "learned") else ERROR
            text = f"{self._transform_error} Not connected: {', '.join(missing)}."
            if level == WARN and not self._waiting():
                text += f" Going on without this calibration (pose_source is {p.pose_source})."
        mount = [self._status("mount", *self._mount)] if self._mount else []
        drops = self._cameras.drops_by_camera()
        held_up_by = self._cameras.sync.missing()
        return [
            *mount,
            self._status("robot", *self._robot.status(), {}),
            self._status("transforms", level, text, values),
            self._status(
                "synchronisation",
                OK,
                f"{self._cameras.sync.emitted} sets"
                + (f", waiting for {', '.join(held_up_by)}" if held_up_by else ""),
                drops,
            ),
        ]


def _mount_state(estimator: MountEstimator) -> tuple[bytes, str, dict[str, int]]:
    """Level, text and values of the diagnostics of an estimated mount."""
    estimate = estimator.estimate()
    text = f"estimated from {estimate.frames} frames"
    if estimate.reason:
        text = f"not estimated yet, the given mount is used: {estimate.reason}"
    if estimator.bumps:
        text = f"{estimator.bumps[-1]} Since then {text}"
    level = WARN if estimator.bumps or estimate.reason else OK
    return level, text, {"frames": estimate.frames, "bumps": len(estimator.bumps)}


def _check_finite(result: Reconstruction) -> None:
    """Refuse a result with NaN or infinity in what is published."""
    estimate = result.estimate
    values = (
        estimate.T_world_wrist,
        estimate.covariance,
        [estimate.confidence, estimate.coverage, estimate.front_facing_fraction],
        result.cloud.points,
        result.condition.depth,
    )
    if not all(np.isfinite(v).all() for v in values):
        raise Refusal(
            "not_finite",
            M.ERROR_NOT_FINITE,
            "the reconstruction holds NaN or infinite values and was withheld. Check exposure and "
            "calibration of the anchor cameras.",
        )


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Entry point of the executable ``reconstruction_node``."""
    run_node(ReconstructionNode, args)


if __name__ == "__main__":
    main()
