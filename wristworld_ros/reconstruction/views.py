"""What every stage-1 network wants of the anchor views before it sees them."""

from __future__ import annotations

from dataclasses import replace

from wristworld_ros.geometry.camera import rectify
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
