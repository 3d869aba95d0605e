"""What stage 1 may be told, from everything to nothing: the kinds of users there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.types import AnchorFrame

#: ``true``: measured depth, calibration, kinematics. ``robot``: calibration, kinematics, and joint
#: states with a robot description. ``kinematic``: calibration and kinematics. ``calibrated``:
#: calibration only. ``estimated``: pictures only.
GEOMETRY = ("true", "robot", "kinematic", "calibrated", "estimated")


def restrict(frame: AnchorFrame, geometry: str, views: Sequence[int] | None = None) -> AnchorFrame:
    """The same moment with only as much geometry as ``geometry`` allows.

    Args:
        frame: with everything known.
        views: which views, in order (the first one is the world of a learned pose); all when None.

    Raises:
        InvalidInputError: the geometry is unknown, or a view does not exist.
    """
    if geometry not in GEOMETRY:
        raise InvalidInputError(f"geometry '{geometry}' is not one of {', '.join(GEOMETRY)}.")
    chosen = range(len(frame.views)) if views is None else views
    if not chosen or not set(chosen) <= set(range(len(frame.views))):
        raise InvalidInputError(f"views {list(chosen)} of a frame with {len(frame.views)} views.")
    kept = tuple(frame.views[v] for v in chosen)
    if geometry != "true":
        kept = tuple(replace(v, depth=None) for v in kept)
    if geometry == "estimated":
        kept = tuple(replace(v, camera=None, T_world_camera=None) for v in kept)
    if geometry not in ("true", "robot", "kinematic"):
        frame = replace(frame, T_world_wrist=None)
    if geometry != "robot":
        frame = replace(frame, joints=None)
    return replace(frame, views=kept)
