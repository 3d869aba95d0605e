"""Stage 1 as one call: AnchorFrame in, Reconstruction out."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.geometry.camera import pixel_rays, rectify
from wristworld_ros.geometry.cloud import cloud_from_depth, depth_edges, join_points, select_points
from wristworld_ros.geometry.depth_fusion import fuse_depth, resize_depth
from wristworld_ros.geometry.splatting import splat
from wristworld_ros.geometry.transforms import apply, invert
from wristworld_ros.reconstruction import robot_fusion
from wristworld_ros.reconstruction.bundle import Prior
from wristworld_ros.reconstruction.fusion import MountEstimator
from wristworld_ros.reconstruction.geometry_prediction import network_size
from wristworld_ros.reconstruction.heads import WRIST_KEYPOINTS
from wristworld_ros.reconstruction.model import SceneOutput, Stage1Model, Stage1Output
from wristworld_ros.reconstruction.pose_encoding import decode_pose, intrinsics_from_fov
from wristworld_ros.reconstruction.robot_model import FINE_REACH, RobotModel
from wristworld_ros.reconstruction.sights import observe
from wristworld_ros.resources import model_dir
from wristworld_ros.runtime.device import select_device
from wristworld_ros.types import (
    AnchorFrame,
    CameraModel,
    FloatArray,
    PointCloud,
    Reconstruction,
    WristEstimate,
)
from wristworld_ros.weights import load_weights, read_config

POSE_SOURCES = ("auto", "kinematic", "learned", "fused")
DEFAULT_WRIST_SIZE = (128, 128)
#: What the covariance of a learned pose is scaled by for weights that come without scores on val.
UNMEASURED_FACTOR = 10.0
#: Parts of the robot nearer to the wrist camera than this [m] are its own housing.
ROBOT_NEAR = 0.03
#: Standard deviations of a kinematic pose when nothing better is known: 2 mm, 0.5 degrees.
KINEMATIC_SIGMA = (0.002, np.deg2rad(0.5))


@dataclass(frozen=True)
class ReconstructorConfig:
    """Settings of the reconstruction.

    Attributes:
        network_size: long side of the network's input [px].
        cloud_size: long side of the pictures that the cloud takes its colours from [px].
        min_confidence: points below it are not drawn, in [0, 1]; 0.45 stands for an expected depth
            error of 2.8 %, and was chosen on val.
        occlude: points that are not drawn hide what lies behind them, so that the mask does not
            call a table measured where an untrusted gripper is before it. The shipped stage 2 was
            not trained on such maps, which have more holes.
        edge_threshold: relative depth jump at which predicted points are left out.
        use_measured_depth: measured depth is fused with predicted depth where there is any.
        mount_sigma: standard deviations per axis [m, rad] of the given mount, for ``fused``; 20 mm
            and 4 degrees in length.
    """

    network_size: int = 256
    cloud_size: int = 256
    min_confidence: float = 0.45
    occlude: bool = False
    edge_threshold: float = 0.05
    use_measured_depth: bool = True
    mount_sigma: tuple[float, float] = (0.0116, 0.0403)


@dataclass(frozen=True)
class _Geometry:
    """Views at cloud resolution, in the world frame."""

    images: list[NDArray[np.uint8]]
    depths: list[NDArray[np.float32]]
    confidences: list[NDArray[np.float32]]
    cameras: list[CameraModel]
    poses: list[FloatArray]
    world_frame: str
    shown: list[NDArray[np.bool_]]


class Reconstructor:
    """Anchor views to wrist pose, coloured cloud and condition map.

    Args:
        model: the stage-1 network.
        pose_source: ``kinematic`` (needs the pose and calibrated anchors), ``learned``, ``fused``
            (as kinematic, but the mount is taken for roughly known and estimated from the
            pictures over a window), or ``auto``: kinematic where the inputs allow it, else learned.
        wrist_camera: the camera to synthesise when a frame does not name one; else its field of
            view is estimated, at 128 x 128 px.
        scores: errors on val by kind of input, for the covariance of learned poses.
        mount: where ``fused`` starts, as a correction of the given wrist pose; none to
            ``ReconstructorConfig.mount_sigma`` when None.
        robot: the robot's body, drawn where joints, calibration and the robot's place are known.

    Attributes:
        mount_estimator: of ``fused``, from its first frame on.
    """

    def __init__(
        self,
        model: Stage1Model,
        *,
        pose_source: str = "auto",
        wrist_camera: CameraModel | None = None,
        config: ReconstructorConfig | None = None,
        scores: dict[str, Any] | None = None,
        sha256: str = "",
        device: str = "cpu",
        mount: Prior | None = None,
        robot: RobotModel | None = None,
    ) -> None:
        if pose_source not in POSE_SOURCES:
            raise InvalidInputError(f"pose source '{pose_source}' is not in {POSE_SOURCES}.")
        self.device = select_device(device)
        self.model = model.to(self.device).eval().requires_grad_(False)
        self.pose_source = pose_source
        self.wrist_camera = wrist_camera
        self.config = config or ReconstructorConfig()
        self.scores = scores or {}
        self.sha256 = sha256
        self.mount = mount or Prior.from_sigma(np.eye(4), self.config.mount_sigma)
        self.mount_estimator: MountEstimator | None = None
        self.robot = robot
        self._anchors: dict[str, FloatArray] = {}

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path | None = None,
        *,
        pose_source: str = "auto",
        wrist_camera: CameraModel | None = None,
        config: ReconstructorConfig | None = None,
        device: str = "cpu",
        mount: Prior | None = None,
        robot: RobotModel | None = None,
    ) -> Reconstructor:
        """Load a model folder (the shipped ``mini`` when None), which has a ``stage1`` folder.

        Raises:
            WeightsError: weights are missing, truncated, altered or do not fit.
        """
        folder = (Path(path) if path else model_dir("mini")) / "stage1"
        document = read_config(folder)
        model = Stage1Model.from_config(document["config"])
        digest = load_weights(folder, model)
        return cls(
            model,
            pose_source=pose_source,
            wrist_camera=wrist_camera,
            config=config,
            scores=document.get("scores"),
            sha256=digest,
            device=device,
            mount=mount,
            robot=robot,
        )

    def __call__(self, frame: AnchorFrame) -> Reconstruction:
        """Reconstruct one moment.

        Raises:
            CalibrationError: a kinematic pose is asked for and the inputs do not give one.
        """
        source = self._source(frame)
        clock = _Clock()
        frame = _rectified(frame)
        given = frame.wrist_camera or self.wrist_camera
        output: Stage1Output | None = None
        if source != "kinematic" or given is None:
            scene: SceneOutput = (output := self.predict(frame))
        else:
            scene = self.predict_scene(frame)
        clock.lap("network")
        geometry = self._geometry(frame, scene)
        points = cloud = self._cloud(geometry, False)
        body = select_points(points, np.zeros(0, np.int64))
        if self._draws_robot(frame):
            body = self._cloud(geometry, True)
            cloud = join_points(points, body)
        if self.config.occlude:
            cloud = select_points(cloud, cloud.confidence >= self.config.min_confidence)
        clock.lap("cloud")
        # The network's base frame is the world of calibrated anchors.
        T_base_first = scene.T_base_anchor[0, 0].double().cpu().numpy()
        T_world_base = geometry.poses[0] @ invert(_orthonormal(T_base_first))
        sigma_t, sigma_r = KINEMATIC_SIGMA
        covariance = np.diag([sigma_t**2] * 3 + [sigma_r**2] * 3)
        if source == "kinematic" or output is None:
            assert frame.T_world_wrist is not None
            T_world_wrist = frame.T_world_wrist
        elif source == "fused":
            T_world_wrist, covariance = self._fuse(frame, output)
        else:
            T_base_wrist = decode_pose(output.wrist_pose)[0][0].double().cpu().numpy()
            T_world_wrist = T_world_base @ _orthonormal(T_base_wrist)
            covariance = self._covariance(frame, output, T_world_base)
        camera = self._wrist_camera(given, output)
        condition = splat(
            join_points(points, self._body(body, frame, geometry, T_world_wrist, camera)),
            T_world_wrist,
            camera,
            min_confidence=self.config.min_confidence,
            device=self.device,
        )
        clock.lap("splat")
        estimate = WristEstimate(
            T_world_wrist=T_world_wrist,
            camera=camera,
            covariance=covariance,
            source=source,
            confidence=self._confidence(cloud, condition.coverage, source),
            coverage=condition.coverage,
            point_count=len(cloud),
            front_facing_fraction=_front_fraction(cloud, T_world_wrist),
            reprojection_error=cross_view_error(geometry.depths, geometry.cameras, geometry.poses),
        )
        clock.lap("estimate")
        return Reconstruction(
            frame.stamp_ns, estimate, cloud, condition, geometry.world_frame, clock.laps
        )

    def _source(self, frame: AnchorFrame) -> str:
        possible = frame.T_world_wrist is not None and frame.calibrated
        if self.pose_source in ("kinematic", "fused") and not possible:
            missing = [v.name for v in frame.views if not v.calibrated]
            raise CalibrationError(
                f"pose source '{self.pose_source}' needs the wrist camera's pose and calibrated "
                "anchors; "
                + ("there is no wrist pose (TF)" if frame.T_world_wrist is None else "")
                + (f" cameras without camera_info or TF: {missing}" if missing else "")
                + ". Publish them, or use pose source 'auto' or 'learned'."
            )
        if self.pose_source == "fused":
            return "fused"
        return "kinematic" if possible and self.pose_source != "learned" else "learned"

    def _fuse(self, frame: AnchorFrame, output: Stage1Output) -> tuple[FloatArray, FloatArray]:
        """Pose by kinematics and the mount that the window's pictures ask for; its covariance."""
        assert frame.T_world_wrist is not None
        anchors = {v.name: v.T_world_camera for v in frame.views if v.T_world_camera is not None}
        if self.mount_estimator is None or not _same_poses(anchors, self._anchors):
            self._anchors = anchors
            self.mount_estimator = MountEstimator(
                self.mount, anchors, keypoints=np.array(WRIST_KEYPOINTS)
            )
        self.mount_estimator.add(
            observe(output, list(anchors), frame.T_world_wrist, frame.stamp_ns)
        )
        return self.mount_estimator.estimate().wrist_pose(frame.T_world_wrist)

    def predict(self, frame: AnchorFrame) -> Stage1Output:
        """What the network says of a frame, in the robot's base frame."""
        images, K, T, known = self._inputs(frame)
        with torch.inference_mode():
            return self.model(images, K, T, known)

    def predict_scene(self, frame: AnchorFrame) -> SceneOutput:
        """The same without the wrist camera, where nothing of it is asked: calibrated anchors, and
        a known wrist camera."""
        images, K, T, _ = self._inputs(frame)
        with torch.inference_mode():
            return self.model.scene(images, K, T)

    def _inputs(self, frame: AnchorFrame) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        frame = _rectified(frame)
        h, w = frame.views[0].image.shape[:2]
        height, width = network_size(h, w, self.config.network_size, self.model.side_step)
        images, Ks, poses = [], [], []
        for view in frame.views:
            camera = view.camera
            images.append(cv2.resize(view.image, (width, height), interpolation=cv2.INTER_AREA))
            Ks.append(np.eye(3) if camera is None else camera.resized(width, height).K)
            poses.append(np.eye(4) if view.T_world_camera is None else view.T_world_camera)
        known = [[all(v.camera is not None for v in frame.views), frame.calibrated]]
        x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)[None].float() / 255
        return (
            x.to(self.device),
            torch.tensor(np.stack(Ks)[None], dtype=torch.float32, device=self.device),
            torch.tensor(np.stack(poses)[None], dtype=torch.float32, device=self.device),
            torch.tensor(known, device=self.device),
        )

    def _geometry(self, frame: AnchorFrame, scene: SceneOutput) -> _Geometry:
        """Views, depths and cameras at cloud resolution, in the world frame."""
        images, depths, confidences, cameras, poses, shown = [], [], [], [], [], []
        surface = None
        if self._draws_robot(frame):
            assert self.robot is not None and frame.joints is not None
            surface = self.robot.surface(frame.joints, frame.T_world_robot)
        T_base_anchor = [_orthonormal(T) for T in scene.T_base_anchor[0].double().cpu().numpy()]
        network = (2 * scene.depth.shape[-1], 2 * scene.depth.shape[-2])
        for i, view in enumerate(frame.views):
            image, camera = view.image, view.camera
            height, width = image.shape[:2]
            scale = min(1.0, self.config.cloud_size / max(width, height))
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            if camera is None:
                K = scene.anchor_K[0, i].double().cpu().numpy()
                camera = CameraModel(K, *network).resized(*size)
            else:
                camera = camera.resized(*size)
            if view.T_world_camera is not None and frame.calibrated:
                pose = view.T_world_camera
            else:
                pose = invert(T_base_anchor[0]) @ T_base_anchor[i]
            predicted = scene.depth[0, i].cpu().numpy()
            # Inverse depth is linear over planes in the image, depth is not.
            depth: NDArray = 1 / cv2.resize(1 / predicted, size, interpolation=cv2.INTER_LINEAR)
            confidence: NDArray = cv2.resize(1 - 1 / scene.confidence[0, i].cpu().numpy(), size)
            confidence[depth_edges(depth, self.config.edge_threshold)] = -1.0
            body = np.zeros(depth.shape, bool)
            if surface is not None:
                robot = robot_fusion.robot_depth(surface, pose, camera)
                depth, confidence, body = robot_fusion.with_robot(depth, confidence, robot)
            if self.config.use_measured_depth and view.depth is not None:
                measured = resize_depth(view.depth, size)
                depth, confidence = fuse_depth(depth, confidence, measured)
            reduced = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            images.append(np.asarray(reduced, np.uint8))
            depths.append(depth.astype(np.float32))
            confidences.append(confidence.astype(np.float32))
            cameras.append(camera)
            poses.append(pose)
            shown.append(body)
        name = frame.world_frame if frame.calibrated else f"{frame.views[0].name}_optical_frame"
        return _Geometry(images, depths, confidences, cameras, poses, name, shown)

    def _draws_robot(self, frame: AnchorFrame) -> bool:
        return self.robot is not None and frame.joints is not None and frame.calibrated

    def _body(
        self,
        seen: PointCloud,
        frame: AnchorFrame,
        geometry: _Geometry,
        T_world_wrist: FloatArray,
        camera: CameraModel,
    ) -> PointCloud:
        """The robot's body for the map: around the wrist camera all of its surface, beyond what
        the pictures show."""
        if not self._draws_robot(frame):
            return seen
        assert self.robot is not None and frame.joints is not None
        surface = self.robot.surface(frame.joints, frame.T_world_robot, T_world_wrist[:3, 3])
        seen_from = robot_fusion.in_picture(surface.points, T_world_wrist, camera, ROBOT_NEAR)
        coloured = robot_fusion.colour_surface(
            select_points(surface, seen_from),
            geometry.images,
            geometry.depths,
            geometry.shown,
            geometry.cameras,
            geometry.poses,
        )
        away = np.linalg.norm(seen.points - T_world_wrist[:3, 3], axis=1) > FINE_REACH
        return join_points(select_points(seen, away), coloured)

    def _cloud(self, geometry: _Geometry, body: bool) -> PointCloud:
        """Points of what the pictures show of the robot's body, or of all else."""
        return cloud_from_depth(
            geometry.images,
            geometry.depths,
            geometry.cameras,
            geometry.poses,
            [
                np.where(shown == body, confidence, np.float32(-1))
                for shown, confidence in zip(geometry.shown, geometry.confidences, strict=True)
            ],
            min_confidence=0.0 if self.config.occlude else self.config.min_confidence,
        )

    @staticmethod
    def _wrist_camera(given: CameraModel | None, output: Stage1Output | None) -> CameraModel:
        if given is None:
            assert output is not None
            width, height = DEFAULT_WRIST_SIZE
            fov = output.wrist_pose[0, 7:9].double().cpu()
            return CameraModel(intrinsics_from_fov(fov, height, width).numpy(), width, height)
        # The virtual camera is a pinhole: lens distortion is not imitated.
        return CameraModel(given.K, given.width, given.height)

    def _covariance(
        self, frame: AnchorFrame, output: Stage1Output, T_world_base: FloatArray
    ) -> FloatArray:
        """6 x 6 of a learned pose in the world frame: the fit's, with the factors of val."""
        kind = "rgb"
        if frame.calibrated:
            kind = "calibrated"
        elif all(v.camera is not None for v in frame.views):
            kind = "intrinsics"
        score = self.scores.get(f"{kind}/{min(len(frame.views), 3)}", {})
        t, r = (score.get(f"sigma_factor_{part}", UNMEASURED_FACTOR) for part in "tr")
        turn = np.kron(np.eye(2), T_world_base[:3, :3])
        scale = np.diag([t] * 3 + [r] * 3)
        fitted = output.wrist_covariance[0].double().cpu().numpy()
        return turn @ scale @ fitted @ scale @ turn.T

    def _confidence(self, cloud: PointCloud, coverage: float, source: str) -> float:
        """Coverage times the mean confidence of the points; half where the pose is estimated."""
        points = float(cloud.confidence.mean()) if len(cloud) else 0.0
        return coverage * points * (1.0 if source == "kinematic" else 0.5)


def _same_poses(a: dict[str, FloatArray], b: dict[str, FloatArray]) -> bool:
    return a.keys() == b.keys() and all(np.allclose(a[n], b[n], atol=1e-6) for n in a)


def _rectified(frame: AnchorFrame) -> AnchorFrame:
    """The frame with views that have no lens distortion."""
    views = []
    for view in frame.views:
        if view.camera is not None and view.camera.distortion_model != "none":
            image, camera = rectify(view.image, view.camera)
            depth = None if view.depth is None else rectify(view.depth, view.camera)[0]
            view = replace(view, image=image, camera=camera, depth=depth)
        views.append(view)
    return replace(frame, views=tuple(views))


def _orthonormal(T: FloatArray) -> FloatArray:
    """Remove the float32 rounding of a network's rotation."""
    U, _, Vt = np.linalg.svd(T[:3, :3])
    out = np.eye(4)
    out[:3, :3] = U @ Vt
    out[:3, 3] = T[:3, 3]
    return out


def _front_fraction(cloud: PointCloud, T_world_wrist: FloatArray) -> float:
    if not len(cloud):
        return 0.0
    axis, origin = T_world_wrist[:3, 2], T_world_wrist[:3, 3]
    return float(((cloud.points - origin) @ axis > 0).mean())


def cross_view_error(
    depths: list[NDArray[np.float32]],
    cameras: list[CameraModel],
    poses: list[FloatArray],
    *,
    grid: int = 16,
    consistency: float = 0.1,
) -> float:
    """Forward-backward reprojection error between neighbouring views, RMS [px]; NaN for one view.

    A pixel of one view is lifted, projected into the next, lifted there by that view's depth and
    projected back. Points whose two depths differ by more than ``consistency`` (relative) are taken
    for occluded.
    """
    squared: list[NDArray] = []
    for i in range(len(depths)):
        j = (i + 1) % len(depths)
        if i == j:
            break
        a, b = cameras[i], cameras[j]
        u, v = np.meshgrid(
            (np.arange(grid) + 0.5) * a.width / grid, (np.arange(grid) + 0.5) * a.height / grid
        )
        pixels = np.stack([u, v], -1).reshape(-1, 2)
        z = depths[i][pixels[:, 1].astype(int), pixels[:, 0].astype(int)]
        in_b = apply(invert(poses[j]) @ poses[i], pixel_rays(a, pixels) * z[:, None])
        zb = np.maximum(in_b[:, 2], 1e-6)
        q = in_b[:, :2] / zb[:, None] * b.K[[0, 1], [0, 1]] + b.K[:2, 2]
        ok = (in_b[:, 2] > 0) & (q >= 0).all(1) & (q < [b.width, b.height]).all(1)
        if not ok.any():
            continue
        q, zb, pixels = q[ok], zb[ok], pixels[ok]
        seen = depths[j][q[:, 1].astype(int), q[:, 0].astype(int)]
        same = np.abs(seen - zb) < consistency * zb
        back = apply(invert(poses[i]) @ poses[j], pixel_rays(b, q) * seen[:, None])
        p = back[:, :2] / np.maximum(back[:, 2:], 1e-6) * a.K[[0, 1], [0, 1]] + a.K[:2, 2]
        squared.append(((p - pixels) ** 2).sum(1)[same])
    values = np.concatenate(squared) if squared else np.zeros(0)
    return float(np.sqrt(values.mean())) if len(values) else float("nan")


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = now - self._last
        self._last = now
