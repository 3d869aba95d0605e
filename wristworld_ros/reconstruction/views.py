"""What every stage-1 network wants of the anchor views before it sees them."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from wristworld_ros.geometry.camera import rectify
from wristworld_ros.reconstruction.geometry_prediction import network_size
from wristworld_ros.types import AnchorFrame


def rectified(frame: AnchorFrame) -> AnchorFrame:
    """The frame with views that have no lens distortion."""
    views = []
    for view in frame.views:
        if view.camera is not None and view.camera.distortion_model != "none":
            image, camera = rectify(view.image, view.camera)
            depth = None if view.depth is None else rectify(view.depth, view.camera)[0]
            view = replace(view, image=image, camera=camera, depth=depth)
        views.append(view)
    return replace(frame, views=tuple(views))


class NetworkInputs(NamedTuple):
    """Arguments of ``Stage1Model``: a batch of one, see its ``forward``."""

    images: Tensor
    K: Tensor
    T_world_camera: Tensor
    known: Tensor


def network_inputs(
    frame: AnchorFrame, long_side: int, step: int, device: torch.device
) -> NetworkInputs:
    """A frame without lens distortion at the network's size.

    Args:
        long_side: of the pictures, and ``step``, which both sides are multiples of [px].
    """
    h, w = frame.views[0].image.shape[:2]
    height, width = network_size(h, w, long_side, step)
    images, Ks, poses = [], [], []
    for view in frame.views:
        camera = view.camera
        images.append(cv2.resize(view.image, (width, height), interpolation=cv2.INTER_AREA))
        Ks.append(np.eye(3) if camera is None else camera.resized(width, height).K)
        poses.append(np.eye(4) if view.T_world_camera is None else view.T_world_camera)
    known = [[all(v.camera is not None for v in frame.views), frame.calibrated]]
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)[None].float() / 255
    return NetworkInputs(
        x.to(device),
        torch.tensor(np.stack(Ks)[None], dtype=torch.float32, device=device),
        torch.tensor(np.stack(poses)[None], dtype=torch.float32, device=device),
        torch.tensor(known, device=device),
    )
