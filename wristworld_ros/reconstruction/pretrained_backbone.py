"""VGGT or Depth Anything 3 in the place of stage 1's own network, for users who have weights.

They give depth and cameras of the anchors, and ``MetricGeometry`` brings these to metres. There
are no wrist heads for them, so that the wrist camera's pose comes from kinematics.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wristworld_ros.errors import CalibrationError, InvalidInputError
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.reconstruction import depth_anything3, vggt
from wristworld_ros.reconstruction.depth_anything3 import (
    DepthAnything3Predictor,
    load_depth_anything3,
)
from wristworld_ros.reconstruction.geometry_prediction import (
    GeometryPrediction,
    fit_images,
    network_size,
)
from wristworld_ros.reconstruction.metric_geometry import MetricGeometry, MetricScene
from wristworld_ros.reconstruction.model import SceneOutput
from wristworld_ros.reconstruction.vggt import VggtPredictor, load_vggt
from wristworld_ros.reconstruction.views import rectified
from wristworld_ros.runtime.device import select_device
from wristworld_ros.types import AnchorFrame, CameraModel, FloatArray, Image, check_image
from wristworld_ros.weights import sha256_of

#: What ``Reconstructor`` can take its geometry from; ``mini`` is its own network.
BACKBONES = ("mini", "vggt-1b", "da3-small", "da3-base")


class PretrainedBackbone:
    """Anchor views to a scene in metres, by a large network.

    Args:
        predictor: the network.
        name: of the backbone, for messages.
        sha256: of its weights.
        device: for torch.

    Attributes:
        geometry: the scale, and what it rests on.
    """

    def __init__(
        self,
        predictor: VggtPredictor | DepthAnything3Predictor,
        *,
        name: str,
        sha256: str = "",
        device: str = "cpu",
    ) -> None:
        predictor.model.to(select_device(device)).requires_grad_(False)
        self.name, self.sha256 = name, sha256
        self.geometry = MetricGeometry()
        self._predictor = predictor
        self._patch = depth_anything3.PATCH
        if isinstance(predictor, VggtPredictor):
            self._patch = predictor.model.config.patch_size

    @classmethod
    def from_file(
        cls,
        name: str,
        weights: str | Path | None,
        *,
        long_side: int | None = None,
        device: str = "cpu",
    ) -> PretrainedBackbone:
        """Load published weights.

        Args:
            name: a preset of ``vggt`` or ``depth_anything3``, as ``vggt-1b`` or ``da3-base``.
            weights: the published file, see ``load_vggt`` and ``load_depth_anything3``.
            long_side: of the pictures that the network sees [px]; its authors' default when None.
            device: for torch; a GPU computes the tokens in bfloat16.

        Raises:
            InvalidInputError: no such backbone, no file given, or no such device.
            WeightsError: the file is missing, truncated, altered or of another network.
        """
        if name not in (*vggt.PRESETS, *depth_anything3.PRESETS):
            raise InvalidInputError(f"no backbone '{name}'; there are {', '.join(BACKBONES)}.")
        if not weights:
            raise InvalidInputError(
                f"backbone '{name}' needs its published weights, which are not part of this "
                "package: give the path of the file (backbone_weights)."
            )
        autocast = torch.bfloat16 if select_device(device).type == "cuda" else None
        predictor: VggtPredictor | DepthAnything3Predictor
        if name in vggt.PRESETS:
            predictor = VggtPredictor(load_vggt(weights, name), long_side or 518, autocast)
        else:
            model = load_depth_anything3(weights, name)
            predictor = DepthAnything3Predictor(model, long_side or 504, autocast)
        return cls(predictor, name=name, sha256=sha256_of(Path(weights)), device=device)

    def __call__(self, frame: AnchorFrame) -> MetricScene:
        """The scene of one moment; see ``MetricGeometry`` for its frame and scale.

        Raises:
            CalibrationError: nothing gives a metric scale.
        """
        frame = rectified(frame)
        return self.geometry(self._predict(frame), frame)

    def predict_scene(self, frame: AnchorFrame) -> SceneOutput:
        """The same for ``Reconstructor``, whose wrist pose is in the robot's base frame.

        Raises:
            CalibrationError: nothing gives a metric scale, or nothing places the anchors there.
        """
        scene = self(frame).scene
        self._check_placed(frame)
        return scene

    def observe_wrist(self, frame: AnchorFrame, image: Image, T_base_wrist: FloatArray) -> str:
        """Take one picture of a real wrist camera; see ``MetricGeometry.observe_wrist``.

        Args:
            frame: at most 7 views.
            image: H x W x 3 uint8 of the wrist camera, at the same moment.
            T_base_wrist: 4 x 4 pose of the wrist camera by kinematics and its mount.
        """
        check_image(image, "picture of the wrist camera")
        frame = rectified(frame)
        return self.geometry.observe_wrist(self._predict(frame, image), frame, T_base_wrist)

    def check_source(self, pose_source: str) -> None:
        """Raise InvalidInputError for a pose source that needs a wrist head."""
        if pose_source in ("learned", "fused"):
            raise InvalidInputError(
                f"pose source '{pose_source}' needs a wrist head, and there are no weights of one "
                f"for backbone '{self.name}'. Use pose source 'kinematic' or 'auto' with the wrist "
                "camera's pose (TF), or backbone 'mini'."
            )

    def check_frame(self, frame: AnchorFrame, wrist_camera: CameraModel | None) -> None:
        """Raise CalibrationError unless the wrist camera and its place are known.

        Args:
            wrist_camera: the camera to synthesise, or None.
        """
        missing = []
        if frame.T_world_wrist is None:
            missing.append("the wrist camera's pose by kinematics (TF of wrist_frame)")
        if wrist_camera is None:
            missing.append("its field of view (wrist_camera_info_topic or wrist_fov_y)")
        if missing:
            raise CalibrationError(
                f"backbone '{self.name}' has no wrist head and cannot estimate "
                f"{' and '.join(missing)}. Give it, or use backbone 'mini'."
            )
        self._check_placed(frame)

    def _check_placed(self, frame: AnchorFrame) -> None:
        if frame.calibrated or self.geometry.T_base_first is not None:
            return
        names = [v.name for v in frame.views if not v.calibrated]
        raise CalibrationError(
            f"backbone '{self.name}' predicts the cameras against one another, and nothing says "
            f"where they are in the robot's base frame: {names} have no camera_info or no TF. "
            "Publish both for all cameras, or give pictures of a real wrist camera with its "
            "kinematic pose (observe_wrist)."
        )

    def _predict(self, frame: AnchorFrame, wrist: Image | None = None) -> GeometryPrediction:
        """Prediction of the views, and of the wrist's picture as the last one."""
        pictures = [v.image for v in frame.views] + ([] if wrist is None else [wrist])
        height, width = pictures[0].shape[:2]
        size = network_size(height, width, self._predictor.long_side, self._patch)
        images = torch.cat([fit_images(_tensor(p), size) for p in pictures], 1)
        if isinstance(self._predictor, VggtPredictor):
            return self._predictor(images)
        if wrist is not None or not frame.calibrated:
            return self._predictor(images)
        T = [invert(v.T_world_camera) for v in frame.views if v.T_world_camera is not None]
        K = [v.camera.resized(size[1], size[0]).K for v in frame.views if v.camera is not None]
        return self._predictor(images, _stack(T), _stack(K))


def _tensor(image: Image) -> Tensor:
    """H x W x 3 uint8 -> 1 x 1 x 3 x H x W in [0, 1]."""
    return torch.from_numpy(image.copy()).permute(2, 0, 1)[None, None].float() / 255


def _stack(matrices: list[FloatArray]) -> Tensor:
    return torch.from_numpy(np.stack(matrices))[None].float()
