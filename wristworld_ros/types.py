"""Frozen records that cross the boundaries between layers, with shapes, units and frames.

Conventions (docs/conventions.md): OpenCV optical frames (x right, y down, z forward), metres,
radians; ``T_a_b`` is 4 x 4 and maps points in ``b`` to ``a``; images are H x W x 3 uint8 RGB;
``K`` is in pixels of the image it comes with, with pixel centres at integer + 0.5.

*World* is the robot's base frame when the extrinsics of the anchors are known, else the optical
frame of the first anchor camera.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wristworld_ros.errors import CalibrationError, InvalidInputError

#: In ``PointCloud.view``: a point of the robot's own body (URDF and joints) that no view shows.
ROBOT_VIEW = 254
#: In ``ConditionMap.view``: seen by anchors in earlier frames, not in this one.
REMEMBERED_VIEW = -3
#: The same in a published mask, where 255 is measured and 0 is nothing.
ROBOT_MASK = 128
FloatArray = NDArray[np.float64]
Image = NDArray[np.uint8]

#: Distortion models and the number of coefficients that each takes (as in sensor_msgs/CameraInfo).
DISTORTION_COEFFICIENTS = {
    "none": (0,),
    "plumb_bob": (4, 5),
    "rational_polynomial": (8,),
    "equidistant": (4,),
}


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidInputError(message)


def check_image(image: NDArray, name: str = "image") -> None:
    """Raise InvalidInputError unless ``image`` is a non-empty H x W x 3 uint8 array."""
    _require(
        isinstance(image, np.ndarray)
        and image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and image.size > 0,
        f"{name}: got {getattr(image, 'dtype', type(image).__name__)} of shape "
        f"{getattr(image, 'shape', None)}; need a non-empty H x W x 3 uint8 RGB array. "
        "Convert it before it enters the pipeline.",
    )


def check_transform(T: NDArray, name: str = "transform") -> None:
    """Raise CalibrationError unless ``T`` (4 x 4) is finite and rigid to 1e-4."""
    T = np.asarray(T)
    if T.shape != (4, 4) or not np.isfinite(T).all():
        raise CalibrationError(
            f"{name}: got shape {T.shape} with {int((~np.isfinite(T)).sum())} non-finite values; "
            "need a finite 4 x 4 rigid transform. Check the calibration or TF that it comes from."
        )
    residual = float(np.abs(T[:3, :3].T @ T[:3, :3] - np.eye(3)).max())
    if residual > 1e-4 or np.linalg.det(T[:3, :3]) < 0 or np.abs(T[3] - [0, 0, 0, 1]).max() > 1e-9:
        raise CalibrationError(
            f"{name}: its 3 x 3 part is not a rotation (residual {residual:.2g}, limit 1e-4, "
            f"determinant {np.linalg.det(T[:3, :3]):.3f}). Normalise the quaternion it comes from."
        )


@dataclass(frozen=True)
class CameraModel:
    """Pinhole camera with optional lens distortion.

    Attributes:
        K: 3 x 3 float64 [px], zero skew, pixel centres at integer + 0.5.
        width, height: size of the image that K belongs to [px].
        distortion_model: one of ``DISTORTION_COEFFICIENTS``.
        D: distortion coefficients in the order of sensor_msgs/CameraInfo.

    Raises:
        CalibrationError: K is not finite, focal lengths are not positive, size is not positive,
            or D does not fit the model.
    """

    K: FloatArray
    width: int
    height: int
    distortion_model: str = "none"
    D: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        K = np.array(self.K, np.float64)
        if K.shape != (3, 3) or not np.isfinite(K).all():
            raise CalibrationError(
                f"camera matrix K is {K.tolist()}; need 3 x 3 finite values. "
                "Calibrate the camera or correct its camera_info."
            )
        if K[0, 0] <= 0 or K[1, 1] <= 0:
            raise CalibrationError(
                f"focal lengths fx={K[0, 0]:g}, fy={K[1, 1]:g} px must be positive: this camera is "
                "not calibrated. Calibrate it or leave its camera_info out."
            )
        expected = np.array([[K[0, 0], 0, K[0, 2]], [0, K[1, 1], K[1, 2]], [0, 0, 1]])
        if np.abs(K - expected).max() > 1e-6 * K[0, 0]:
            raise CalibrationError(
                f"camera matrix K is {K.tolist()}; only zero skew and a last row 0 0 1 are known."
            )
        if self.width <= 0 or self.height <= 0:
            raise CalibrationError(
                f"image size {self.width} x {self.height} px: both must be positive. "
                "Fill width and height in camera_info."
            )
        if self.distortion_model not in DISTORTION_COEFFICIENTS:
            raise CalibrationError(
                f"distortion model '{self.distortion_model}' is not known; use one of "
                f"{', '.join(DISTORTION_COEFFICIENTS)}, or rectify the image."
            )
        counts = DISTORTION_COEFFICIENTS[self.distortion_model]
        D = tuple(float(d) for d in self.D)
        if len(D) not in counts or not np.isfinite(D).all():
            raise CalibrationError(
                f"distortion '{self.distortion_model}' takes {counts} finite coefficients, "
                f"got {list(D)}."
            )
        K.setflags(write=False)
        object.__setattr__(self, "K", K)
        object.__setattr__(self, "D", D)

    @property
    def fov(self) -> tuple[float, float]:
        """Horizontal and vertical field of view of the undistorted pinhole [rad]."""
        fx, fy, cx, cy = self.K[0, 0], self.K[1, 1], self.K[0, 2], self.K[1, 2]
        return (
            float(np.arctan(cx / fx) + np.arctan((self.width - cx) / fx)),
            float(np.arctan(cy / fy) + np.arctan((self.height - cy) / fy)),
        )

    @classmethod
    def from_fov(cls, fov_y: float, width: int, height: int) -> CameraModel:
        """Symmetric pinhole with square pixels from its vertical field of view [rad]."""
        if not 0 < fov_y < np.pi:
            raise CalibrationError(f"vertical field of view {fov_y:g} rad must lie in (0, pi).")
        f = 0.5 * height / np.tan(fov_y / 2)
        return cls(np.array([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1.0]]), width, height)

    def resized(self, width: int, height: int) -> CameraModel:
        """The same camera for its image scaled to ``width`` x ``height``."""
        scale = np.diag([width / self.width, height / self.height, 1.0])
        return CameraModel(scale @ self.K, width, height, self.distortion_model, self.D)


@dataclass(frozen=True)
class AnchorView:
    """One third-person picture at one moment.

    Attributes:
        name: camera name.
        image: H x W x 3 uint8 RGB.
        stamp_ns: time of exposure [ns].
        camera: intrinsics of ``image``, or None when uncalibrated.
        T_world_camera: 4 x 4 pose of the camera's optical frame in the world, or None.
        depth: H x W float32 measured depth along z [m], 0 where unknown; or None.
    """

    name: str
    image: Image
    stamp_ns: int
    camera: CameraModel | None = None
    T_world_camera: FloatArray | None = None
    depth: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        check_image(self.image, f"image of camera '{self.name}'")
        size = (self.image.shape[1], self.image.shape[0])
        if self.camera is not None and (self.camera.width, self.camera.height) != size:
            raise CalibrationError(
                f"camera '{self.name}': camera_info is for {self.camera.width} x "
                f"{self.camera.height} px but the image has {size[0]} x {size[1]} px. "
                "Publish the camera_info of the same stream."
            )
        if self.T_world_camera is not None:
            check_transform(self.T_world_camera, f"pose of camera '{self.name}'")
        if self.depth is not None:
            _require(
                self.depth.shape == self.image.shape[:2],
                f"camera '{self.name}': depth has shape {self.depth.shape}, the image "
                f"{self.image.shape[:2]}. Publish depth registered to the colour image.",
            )

    @property
    def calibrated(self) -> bool:
        """Whether intrinsics and extrinsics are both known."""
        return self.camera is not None and self.T_world_camera is not None


@dataclass(frozen=True)
class AnchorFrame:
    """Everything that is known at one moment, before reconstruction.

    Attributes:
        stamp_ns: stamp that the output carries [ns].
        views: 1 to 8 third-person views.
        T_world_wrist: 4 x 4 kinematic pose of the wrist camera in the world, or None.
        wrist_camera: the wrist camera to synthesise, or None to estimate its field of view.
        instruction: task in words, may be empty.
        world_frame: name of the world frame.
        joints: joint name -> position [rad or m], or None.
        T_world_robot: 4 x 4 pose of the robot's root link in the world; None: it is the world.
    """

    stamp_ns: int
    views: tuple[AnchorView, ...]
    T_world_wrist: FloatArray | None = None
    wrist_camera: CameraModel | None = None
    instruction: str = ""
    world_frame: str = "base_link"
    joints: Mapping[str, float] | None = None
    T_world_robot: FloatArray | None = None

    def __post_init__(self) -> None:
        _require(
            1 <= len(self.views) <= 8,
            f"{len(self.views)} anchor views given; need 1 to 8. Check the list of cameras.",
        )
        names = [v.name for v in self.views]
        _require(len(set(names)) == len(names), f"camera names {names} are not unique.")
        if self.T_world_wrist is not None:
            check_transform(self.T_world_wrist, "kinematic wrist pose")
        if self.T_world_robot is not None:
            check_transform(self.T_world_robot, "pose of the robot's root link")

    @property
    def calibrated(self) -> bool:
        """Whether every view has intrinsics and extrinsics."""
        return all(v.calibrated for v in self.views)


@dataclass(frozen=True)
class PointCloud:
    """Coloured points in the world frame.

    Attributes:
        points: N x 3 float32 [m].
        colors: N x 3 uint8 RGB.
        confidence: N float32 in [0, 1].
        footprint: N float32, edge length of the source pixel at the point [m].
        view: N uint8, index of the view that each point comes from, or ``ROBOT_VIEW``.
    """

    points: NDArray[np.float32]
    colors: Image
    confidence: NDArray[np.float32]
    footprint: NDArray[np.float32]
    view: Image

    def __post_init__(self) -> None:
        n = len(self.points)
        shapes = [
            a.shape for a in (self.points, self.colors, self.confidence, self.footprint, self.view)
        ]
        _require(
            shapes == [(n, 3), (n, 3), (n,), (n,), (n,)],
            f"point cloud with arrays of shapes {shapes}; need (N,3), (N,3), (N,), (N,), (N,).",
        )

    def __len__(self) -> int:
        return len(self.points)


@dataclass(frozen=True)
class WristEstimate:
    """Where the wrist camera is, and how far to trust it.

    Attributes:
        T_world_wrist: 4 x 4 pose of the wrist camera's optical frame in the world.
        camera: intrinsics of the virtual wrist camera.
        covariance: 6 x 6, (x, y, z [m], rotation about x, y, z [rad]), in the world frame.
        source: ``kinematic``, ``learned`` or ``fused``.
        confidence: in [0, 1].
        coverage: share of wrist pixels that anchor points reach, in [0, 1].
        point_count: points in the cloud.
        front_facing_fraction: share of the points with z > 0 in the wrist camera, in [0, 1].
        reprojection_error: RMS of cross-view reprojection [px of the anchor], NaN if unknown.
        domain_distance: of the anchor pictures from those of training, 1 being what 1 % of the
            validation frames exceed; NaN if unknown.
    """

    T_world_wrist: FloatArray
    camera: CameraModel
    covariance: FloatArray
    source: str
    confidence: float
    coverage: float
    point_count: int
    front_facing_fraction: float
    reprojection_error: float = float("nan")
    domain_distance: float = float("nan")

    def __post_init__(self) -> None:
        check_transform(self.T_world_wrist, "wrist estimate")
        _require(
            self.source in ("kinematic", "learned", "fused"),
            f"pose source '{self.source}' is not one of kinematic, learned, fused.",
        )


@dataclass(frozen=True)
class ConditionMap:
    """The point cloud seen from the wrist camera.

    Attributes:
        image: H x W x 3 uint8 RGB, black where ``mask`` is False.
        mask: H x W bool, True where a point was drawn.
        depth: H x W float32 [m], 0 where ``mask`` is False.
        view: H x W int8, index of the anchor that the pixel comes from, -1 where none, -2 where
            the robot's own body was drawn by its joints and no anchor shows it: its place is
            known, its colour is not; ``REMEMBERED_VIEW`` where only earlier frames showed it.
        camera: the wrist camera.
    """

    image: Image
    mask: NDArray[np.bool_]
    depth: NDArray[np.float32]
    view: NDArray[np.int8]
    camera: CameraModel

    def __post_init__(self) -> None:
        check_image(self.image, "condition map")
        size = self.image.shape[:2]
        _require(
            self.mask.shape == size and self.depth.shape == size and self.view.shape == size,
            f"condition map: image {size}, mask {self.mask.shape}, depth {self.depth.shape}, "
            f"view {self.view.shape} must agree.",
        )

    @property
    def measured(self) -> NDArray[np.bool_]:
        """H x W, True where an anchor shows what was drawn."""
        return self.mask & (self.view >= 0)

    @classmethod
    def from_published(
        cls, image: Image, mask_image: NDArray[np.uint8], camera: CameraModel
    ) -> ConditionMap:
        """The map as its messages have it: depth and the anchors' numbers are not sent.

        Args:
            mask_image: H x W as of ``mask_image``.
        """
        drawn = mask_image > 0
        view = np.where(mask_image > ROBOT_MASK, 0, np.where(drawn, -2, -1)).astype(np.int8)
        return cls(image, drawn, np.zeros(drawn.shape, np.float32), view, camera)

    @property
    def mask_image(self) -> NDArray[np.uint8]:
        """H x W uint8 as published: 255 measured, 128 drawn but not seen now, 0 nothing."""
        drawn = self.mask.astype(np.uint8) * np.uint8(ROBOT_MASK)
        return np.where(self.measured, np.uint8(255), drawn)

    @property
    def coverage(self) -> float:
        """Share of measured pixels, in [0, 1]."""
        return float(self.measured.mean())


@dataclass(frozen=True)
class Reconstruction:
    """Result of stage 1 at one moment; ``latency`` maps stage name -> seconds."""

    stamp_ns: int
    estimate: WristEstimate
    cloud: PointCloud
    condition: ConditionMap
    world_frame: str
    latency: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class WristFrame:
    """Result of stage 2 at one moment.

    Attributes:
        stamp_ns: the anchors' stamp [ns].
        image: H x W x 3 uint8 RGB.
        confidence: H x W float32 in [0, 1]: how likely a measured pixel is right; 0 imagined.
        camera: the virtual wrist camera.
        coverage: share of wrist pixels that the condition map covers.
        imagined_fraction: share of pixels with confidence below 0.5.
        score: how far the picture is to be trusted as a whole: expected share of right pixels
            (``generation.confidence.view_score``), in [0, 1].
        steps: denoising steps; seed: of the noise; mode: ``stream`` or ``chunk``.
        model_id, model_sha256: which weights; backend: what ran them.
        latency: stage name -> seconds.
    """

    stamp_ns: int
    image: Image
    confidence: NDArray[np.float32]
    camera: CameraModel
    coverage: float
    imagined_fraction: float
    score: float
    steps: int
    seed: int
    mode: str
    model_id: str
    model_sha256: str
    backend: str
    latency: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Doubt:
    """What is wrong with a view.

    Attributes:
        cause: ``low_coverage`` or ``out_of_domain``.
        text: value, limit and cure.
        refused: no view is to be given; else the view is given, and this said of it.
    """

    cause: str
    text: str
    refused: bool
