"""Stage 1 as one call: AnchorFrame in, Reconstruction out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.geometry import cloud as clouds
from wristworld_ros.geometry.splatting import splat
from wristworld_ros.geometry.transforms import invert, orthonormal
from wristworld_ros.reconstruction.bundle import Prior
from wristworld_ros.reconstruction.companions import Companion, load_companion
from wristworld_ros.reconstruction.cross_view import cross_view_error
from wristworld_ros.reconstruction.domain import OUT_OF_DOMAIN, Domain
from wristworld_ros.reconstruction.fine_depth import FineDepth
from wristworld_ros.reconstruction.fused_pose import FusedPose
from wristworld_ros.reconstruction.fusion import MountEstimator
from wristworld_ros.reconstruction.hand_depth import CloseDepth, HandDepth
from wristworld_ros.reconstruction.lap_timer import LapTimer
from wristworld_ros.reconstruction.locator import Locator
from wristworld_ros.reconstruction.map_memory import MapMemory
from wristworld_ros.reconstruction.model import SceneOutput, Stage1Model, Stage1Output
from wristworld_ros.reconstruction.plane_sweep import MapRefiner, PlaneSweep
from wristworld_ros.reconstruction.pose_encoding import decode_pose, intrinsics_from_fov
from wristworld_ros.reconstruction.posed_views import PosedViews, body_in_view, paste, posed_views
from wristworld_ros.reconstruction.pretrained_backbone import BACKBONES, PretrainedBackbone
from wristworld_ros.reconstruction.refinement import refine
from wristworld_ros.reconstruction.robot_model import RobotModel
from wristworld_ros.reconstruction.sights import observe
from wristworld_ros.reconstruction.views import NetworkInputs, network_inputs, rectified
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
from wristworld_ros.weights import STAGE1_PARTS, load_weights, read_config

POSE_SOURCES = ("auto", "kinematic", "learned", "fused")
DEFAULT_WRIST_SIZE = (128, 128)
#: What the covariance of a learned pose is scaled by for weights that come without scores on val.
UNMEASURED_FACTOR = 10.0
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
        memory_frames: frames that the condition map is averaged over at most, see ``MapMemory``.
    """

    network_size: int = 256
    cloud_size: int = 256
    min_confidence: float = 0.45
    occlude: bool = False
    edge_threshold: float = 0.01
    use_measured_depth: bool = True
    mount_sigma: tuple[float, float] = (0.0116, 0.0403)
    memory_frames: int = 4


class Reconstructor:
    """Anchor views to wrist pose, coloured cloud and condition map.

    Args:
        model: the stage-1 network, or a large backbone in its place: then the wrist camera has to
            be known, and its pose comes from kinematics.
        pose_source: ``kinematic`` (needs the pose and calibrated anchors), ``learned``, ``fused``
            (as kinematic, but the mount is taken for roughly known and estimated from the
            pictures over a window, and so are anchors without a pose), or ``auto``: kinematic where
            the inputs allow it, else learned.
        wrist_camera: the camera to synthesise when a frame does not name one; else its field of
            view is estimated, at 128 x 128 px.
        scores: errors on val by kind of input, for the covariance of learned poses.
        mount: where ``fused`` starts, as a correction of the given wrist pose; none to
            ``ReconstructorConfig.mount_sigma`` when None.
        cameras: where ``fused`` starts with anchors that frames give no pose of.
        robot: the robot's body, drawn where joints, calibration and the robot's place are known.
        hand_depth: the network for depth around the hand of calibrated anchors; without it depth is
            the whole pictures'.
        fine_depth: the network for depth at full resolution; without it depth has half of it.
        locator: the network that finds base and hand at full resolution, for estimated poses.
        plane_sweep: what refines the condition map by all views; without it, and of uncalibrated
            views out of domain, the splatted map stays.
        domain: what says how far pictures are from the training's; nothing does without.

    Attributes:
        fused: the state of pose source ``fused``.
        backbone: the large backbone, or None.
    """

    def __init__(
        self,
        model: Stage1Model | PretrainedBackbone,
        *,
        pose_source: str = "auto",
        wrist_camera: CameraModel | None = None,
        config: ReconstructorConfig | None = None,
        scores: dict[str, Any] | None = None,
        sha256: str = "",
        device: str = "cpu",
        mount: Prior | None = None,
        cameras: Mapping[str, Prior] | None = None,
        robot: RobotModel | None = None,
        hand_depth: HandDepth | None = None,
        fine_depth: FineDepth | None = None,
        locator: Locator | None = None,
        plane_sweep: MapRefiner | None = None,
        domain: Domain | None = None,
    ) -> None:
        if pose_source not in POSE_SOURCES:
            raise InvalidInputError(f"pose source '{pose_source}' is not in {POSE_SOURCES}.")
        self.device = select_device(device)
        self.backbone = model if isinstance(model, PretrainedBackbone) else None
        self._model: Stage1Model | None = None
        if isinstance(model, PretrainedBackbone):
            model.check_source(pose_source)
        else:
            self._model = model.to(self.device).eval().requires_grad_(False)
        self.pose_source = pose_source
        self.wrist_camera = wrist_camera
        self.config = config or ReconstructorConfig()
        self.scores = scores or {}
        self.sha256 = sha256
        start = mount or Prior.from_sigma(np.eye(4), self.config.mount_sigma)
        self.fused = FusedPose(start, cameras)
        self.robot = robot
        for network in (hand_depth, fine_depth, locator, plane_sweep, domain):
            if isinstance(network, Companion):
                network.to(self.device).eval().requires_grad_(False)
        self.hand_depth, self.fine_depth, self.locator = hand_depth, fine_depth, locator
        self.plane_sweep, self.domain = plane_sweep, domain
        self._memory = MapMemory(self.config.memory_frames)

    @property
    def mount_estimator(self) -> MountEstimator | None:
        """Of ``fused``, from its first frame on."""
        return self.fused.estimator

    @property
    def sha256s(self) -> dict[str, str]:
        """Part of the model -> sha256 of its weights."""
        parts = {name: getattr(self, name) for name in (*STAGE1_PARTS[1:], "domain")}
        known = {n: part.sha256 for n, part in parts.items() if isinstance(part, Companion)}
        return {"stage1": self.sha256, **known}

    @property
    def model(self) -> Stage1Model:
        """Stage 1's own network.

        Raises:
            InvalidInputError: a large backbone is in its place.
        """
        if self._model is None:
            raise InvalidInputError("a large backbone predicts no wrist camera; use 'mini'.")
        return self._model

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
        cameras: Mapping[str, Prior] | None = None,
        robot: RobotModel | None = None,
        backbone: str = "mini",
        backbone_weights: str | Path | None = None,
    ) -> Reconstructor:
        """Load a model folder (the shipped ``mini`` when None).

        It has a folder ``stage1``, and may have the other ``weights.STAGE1_PARTS``.

        Args:
            backbone: ``mini`` (the model folder's own network), ``vggt-1b``, ``da3-small`` or
                ``da3-base``, which take its place.
            backbone_weights: the published weights' file of a backbone other than ``mini``.

        Raises:
            InvalidInputError: no such backbone, or weights that it does not take.
            WeightsError: weights are missing, truncated, altered or do not fit.
        """
        if backbone not in BACKBONES:
            raise InvalidInputError(f"no backbone '{backbone}'; use one of {', '.join(BACKBONES)}.")
        if backbone != "mini":
            large = PretrainedBackbone.from_file(backbone, backbone_weights, device=device)
            return cls(
                large,
                pose_source=pose_source,
                wrist_camera=wrist_camera,
                config=config,
                sha256=large.sha256,
                device=device,
                robot=robot,
            )
        if backbone_weights:
            raise InvalidInputError(
                f"backbone_weights {backbone_weights} are given, but backbone 'mini' takes its "
                "weights from the model folder. Name the backbone that they belong to."
            )
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
            cameras=cameras,
            robot=robot,
            hand_depth=load_companion(folder.parent / "hand_depth", HandDepth, sha256=digest),
            fine_depth=load_companion(folder.parent / "fine_depth", FineDepth, sha256=digest),
            locator=load_companion(folder.parent / "locator", Locator),
            plane_sweep=load_companion(folder.parent / "plane_sweep", PlaneSweep, sha256=digest),
            domain=load_companion(folder.parent / "domain", Domain, sha256=digest),
        )

    def __call__(self, frame: AnchorFrame) -> Reconstruction:
        """Reconstruct one moment.

        Raises:
            CalibrationError: a kinematic pose is asked for and the inputs do not give one.
        """
        source = self._source(frame)
        clock = LapTimer()
        frame = rectified(frame)
        if source == "fused":
            frame = self.fused.place(frame)
        given = frame.wrist_camera or self.wrist_camera
        output: Stage1Output | None = None
        inputs = None if self.backbone is not None else self._inputs(frame)
        if inputs is None or (source == "kinematic" and given is not None):
            scene = self._scene(frame, inputs)
        else:
            scene = output = self._whole(inputs)
        fine = self._fine(inputs, scene)
        clock.lap("network")
        # The network's base frame is the world of calibrated anchors.
        T_base_anchor = orthonormal(scene.T_base_anchor[0].cpu().numpy())
        first = frame.views[0].T_world_camera if frame.calibrated else None
        T_world_base = (np.eye(4) if first is None else first) @ invert(T_base_anchor[0])
        T_world_wrist, covariance, source = self._wrist_pose(source, frame, output, T_world_base)
        close = self._close(frame, inputs, scene, T_world_wrist, source)
        clock.lap("hand")
        geometry = posed_views(
            frame,
            fine,
            [
                T_world_base @ T if first is None or v.T_world_camera is None else v.T_world_camera
                for v, T in zip(frame.views, T_base_anchor, strict=True)
            ],
            size=self.config.cloud_size,
            edge_threshold=self.config.edge_threshold,
            use_measured_depth=self.config.use_measured_depth,
            close=close,
            surface=self._surface(frame),
        )
        points = cloud = self._cloud(geometry, False)
        body = clouds.select_points(points, np.zeros(0, np.int64))
        if self._draws_robot(frame):
            body = self._cloud(geometry, True)
            cloud = clouds.join_points(points, body)
        if self.config.occlude:
            cloud = clouds.select_points(cloud, cloud.confidence >= self.config.min_confidence)
        clock.lap("cloud")
        camera = self._wrist_camera(given, output)
        if self._draws_robot(frame):
            assert self.robot is not None
            body = body_in_view(self.robot, frame, geometry, body, T_world_wrist, camera)
        drawn, least = clouds.join_points(points, body), self.config.min_confidence
        condition = splat(drawn, T_world_wrist, camera, min_confidence=least, device=self.device)
        distance = self.domain_distance(frame, inputs)
        # Where cameras are estimated and pictures are unlike training, nothing of it is right.
        lost = distance > OUT_OF_DOMAIN and not frame.calibrated
        if self.plane_sweep is not None and not lost:
            condition = self.plane_sweep.refine(geometry, T_world_wrist, condition)
        name = frame.world_frame if frame.calibrated else f"{frame.views[0].name}_optical_frame"
        condition = self._memory(condition, T_world_wrist, frame.stamp_ns, name)
        clock.lap("splat")
        trusted = condition.coverage * (1.0 if source == "kinematic" else 0.5)
        estimate = WristEstimate(
            T_world_wrist=T_world_wrist,
            camera=camera,
            covariance=covariance,
            source=source,
            confidence=clouds.mean_confidence(cloud) * trusted,
            coverage=condition.coverage,
            point_count=len(cloud),
            front_facing_fraction=clouds.front_fraction(cloud, T_world_wrist),
            reprojection_error=cross_view_error(geometry.depths, geometry.cameras, geometry.poses),
            domain_distance=distance,
        )
        clock.lap("estimate")
        return Reconstruction(frame.stamp_ns, estimate, cloud, condition, name, clock.laps)

    def _source(self, frame: AnchorFrame) -> str:
        if self.backbone is not None:
            self.backbone.check_frame(frame, frame.wrist_camera or self.wrist_camera)
            return "kinematic"
        possible = frame.T_world_wrist is not None and frame.calibrated
        if self.pose_source == "kinematic" and not possible:
            self._refuse(frame, [v.name for v in frame.views if not v.calibrated], "or TF")
        if self.pose_source == "fused":
            missing = [v.name for v in frame.views if v.camera is None]
            if missing or frame.T_world_wrist is None:
                self._refuse(frame, missing, "")
            return "fused"
        return "kinematic" if possible and self.pose_source != "learned" else "learned"

    def _refuse(self, frame: AnchorFrame, missing: list[str], also: str) -> NoReturn:
        needed = "calibrated anchors" if also else "the anchors' intrinsics"
        raise CalibrationError(
            f"pose source '{self.pose_source}' needs the wrist camera's pose and {needed}; "
            + ("there is no wrist pose (TF)" if frame.T_world_wrist is None else "")
            + (f" cameras without camera_info {also}".rstrip() + f": {missing}" if missing else "")
            + ". Publish them, or use pose source 'auto' or 'learned'."
        )

    def _wrist_pose(
        self,
        source: str,
        frame: AnchorFrame,
        output: Stage1Output | None,
        T_world_base: FloatArray,
    ) -> tuple[FloatArray, FloatArray, str]:
        """Pose of the wrist camera in the world, its covariance (6 x 6), and where it is from."""
        if source == "fused" and output is not None:
            assert frame.T_world_wrist is not None
            names = [v.name for v in frame.views]
            seen = observe(output, names, frame.T_world_wrist, frame.stamp_ns)
            fused = self.fused.wrist_pose(frame, seen)
            if fused is not None:
                return *fused, source
        if source != "kinematic" and output is not None:
            T_base_wrist = decode_pose(output.wrist_pose)[0][0].double().cpu().numpy()
            covariance = self._covariance(frame, output, T_world_base)
            return T_world_base @ orthonormal(T_base_wrist), covariance, "learned"
        assert frame.T_world_wrist is not None
        T_world_wrist = frame.T_world_wrist
        if not frame.calibrated:  # a large backbone placed the anchors in the base frame
            T_world_wrist = T_world_base @ T_world_wrist
        sigma_t, sigma_r = KINEMATIC_SIGMA
        return T_world_wrist, np.diag([sigma_t**2] * 3 + [sigma_r**2] * 3), source

    def _close(
        self,
        frame: AnchorFrame,
        inputs: NetworkInputs | None,
        scene: SceneOutput,
        T_world_wrist: FloatArray,
        source: str,
    ) -> CloseDepth | None:
        """Depth around the hand, where there is a network for it and the anchors are calibrated:
        the hand is not where estimated cameras see it."""
        if self.hand_depth is None or inputs is None or not frame.calibrated:
            return None
        pose = torch.tensor(T_world_wrist[None], dtype=torch.float32, device=self.device)
        given = torch.tensor([source != "learned"], device=self.device)
        with torch.inference_mode():
            return self.hand_depth(inputs.images, scene, pose, given)

    def domain_distance(self, frame: AnchorFrame, inputs: NetworkInputs | None = None) -> float:
        """Of undistorted views (``WristEstimate``); NaN where nothing tells."""
        if self.domain is None or self.backbone is not None:
            return float("nan")
        return self.domain.distance(self.model, (inputs or self._inputs(frame)).images)

    def _fine(self, inputs: NetworkInputs | None, scene: SceneOutput) -> SceneOutput:
        if self.fine_depth is None or inputs is None:
            return scene
        with torch.inference_mode():
            return self.fine_depth.refine(inputs.images, scene)

    def _surface(self, frame: AnchorFrame) -> PointCloud | None:
        if not self._draws_robot(frame):
            return None
        assert self.robot is not None and frame.joints is not None
        return self.robot.surface(frame.joints, frame.T_world_robot)

    def predict(self, frame: AnchorFrame) -> Stage1Output:
        """What the network says of a frame, in the robot's base frame."""
        return self._whole(self._inputs(rectified(frame)))

    def _whole(self, inputs: NetworkInputs) -> Stage1Output:
        with torch.inference_mode():
            return refine(self.model, self.locator, inputs, self.model(*inputs))

    def predict_depth(
        self, frame: AnchorFrame, estimate: WristEstimate
    ) -> tuple[list[NDArray], list[NDArray]]:
        """Depth [m] and confidence in [0, 1] per view, as the networks predict them.

        Args:
            frame: at least one view.
            estimate: where the wrist camera is in this frame, for the depth around the hand.

        Returns:
            Maps of the network's input size, or of half of it without ``fine_depth``.
        """
        frame = rectified(frame)
        inputs = None if self.backbone is not None else self._inputs(frame)
        if inputs is None or frame.calibrated:
            scene = self._scene(frame, inputs)
        else:
            scene = self._whole(inputs)
        close = self._close(frame, inputs, scene, estimate.T_world_wrist, estimate.source)
        scene = self._fine(inputs, scene)
        depths = list(scene.depth[0].cpu().numpy().copy())
        confidences = list(1 - 1 / scene.confidence[0].cpu().numpy())
        if close is not None:
            for i in range(len(depths)):
                paste(depths[i], confidences[i], close, scene, i)
        return depths, confidences

    def _scene(self, frame: AnchorFrame, inputs: NetworkInputs | None) -> SceneOutput:
        """The same without the wrist camera, where nothing of it is asked: calibrated anchors, and
        a known wrist camera. Of the large backbone when there is one."""
        if inputs is None:
            assert self.backbone is not None
            return self.backbone.predict_scene(frame)
        with torch.inference_mode():
            return self.model.scene(inputs.images, inputs.K, inputs.T_world_camera)

    def _inputs(self, frame: AnchorFrame) -> NetworkInputs:
        return network_inputs(frame, self.config.network_size, self.model.side_step, self.device)

    def _draws_robot(self, frame: AnchorFrame) -> bool:
        return self.robot is not None and frame.joints is not None and frame.calibrated

    def _cloud(self, geometry: PosedViews, body: bool) -> PointCloud:
        """Points of what the pictures show of the robot's body, or of all else."""
        return clouds.cloud_from_depth(
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
        t = r = 1.0  # ``refine`` knows its own
        if frame.calibrated and self.locator is None:
            score = self.scores.get(f"calibrated/{min(len(frame.views), 3)}", {})
            t, r = (score.get(f"sigma_factor_{part}", UNMEASURED_FACTOR) for part in "tr")
        turn = np.kron(np.eye(2), T_world_base[:3, :3])
        scale = np.diag([t] * 3 + [r] * 3)
        fitted = output.wrist_covariance[0].double().cpu().numpy()
        return turn @ scale @ fitted @ scale @ turn.T
