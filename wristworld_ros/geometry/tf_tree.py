"""Tree of time-stamped transforms between named frames, one implementation for live and bags."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field

import numpy as np

from wristworld_ros.errors import CalibrationError, InvalidInputError, TransformLookupError
from wristworld_ros.geometry.transforms import interpolate, invert
from wristworld_ros.types import FloatArray, check_transform

NANOSECONDS = 1_000_000_000


@dataclass
class _Edge:
    """History of one child frame in its parent; a static edge has one sample, valid always."""

    parent: str
    static: bool
    stamps: list[int] = field(default_factory=list)
    transforms: list[FloatArray] = field(default_factory=list)


class TransformTree:
    """Static and time-stamped transforms, looked up between any two frames at any moment.

    Between two samples the translation is interpolated linearly and the rotation by slerp.
    The order in which transforms arrive does not matter.

    Args:
        cache_s: how much history each moving frame keeps, counted back from its newest sample
            [s]; None keeps everything (bags).

    Attributes:
        too_old: samples that arrived older than the cache reaches, and were dropped.
    """

    def __init__(self, cache_s: float | None = None) -> None:
        if cache_s is not None and not cache_s > 0:
            raise InvalidInputError(f"cache of {cache_s} s; need a positive duration or None.")
        self._cache_ns = None if cache_s is None else round(cache_s * NANOSECONDS)
        self._edges: dict[str, _Edge] = {}
        self.too_old = 0

    # --- filling ----------------------------------------------------------------------------------

    def set_transform(
        self,
        parent: str,
        child: str,
        stamp_ns: int,
        T_parent_child: FloatArray,
        static: bool = False,
    ) -> None:
        """Add one sample; one with the same stamp, or any earlier static one, is replaced.

        Raises:
            CalibrationError: the transform is not finite or not rigid.
            InvalidInputError: empty names, a loop, a second parent, or static and moving at once.
        """
        T = np.array(T_parent_child, np.float64)
        check_transform(T, f"transform '{parent}' -> '{child}'")
        # Exactly orthonormal, so that chains and interpolation do not amplify rounding.
        u, _, vt = np.linalg.svd(T[:3, :3])
        T[:3, :3] = u @ vt
        T.setflags(write=False)
        edge = self._edge(parent, child, static)
        if static:
            edge.stamps[:], edge.transforms[:] = [0], [T]
            return
        cache_ns = self._cache_ns
        if cache_ns is not None and edge.stamps and stamp_ns < edge.stamps[-1] - cache_ns:
            self.too_old += 1
            return
        i = bisect_left(edge.stamps, stamp_ns)
        if i < len(edge.stamps) and edge.stamps[i] == stamp_ns:
            edge.transforms[i] = T
            return
        edge.stamps.insert(i, stamp_ns)
        edge.transforms.insert(i, T)
        if cache_ns is not None:
            expired = bisect_left(edge.stamps, edge.stamps[-1] - cache_ns)
            del edge.stamps[:expired], edge.transforms[:expired]

    def _edge(self, parent: str, child: str, static: bool) -> _Edge:
        """The edge to ``child``, new or existing, after checking that it keeps this a tree."""
        if not parent or not child:
            raise InvalidInputError(
                f"transform '{parent}' -> '{child}': a frame name is empty. Set frame_id and "
                "child_frame_id where it is published."
            )
        known = self._edges.get(child)
        if known is not None:
            if known.parent != parent:
                raise InvalidInputError(
                    f"frame '{child}' has the parent '{known.parent}' and is now published with "
                    f"the parent '{parent}'. Stop one of the two publishers."
                )
            if known.static != static:
                raise InvalidInputError(
                    f"transform '{parent}' -> '{child}' is published as static and as moving. "
                    "Publish it on one of /tf and /tf_static."
                )
            return known
        chain = [parent, *self._ancestors(parent)]
        if child in chain:
            loop = " -> ".join([child, *chain[: chain.index(child) + 1]])
            raise InvalidInputError(
                f"transform '{parent}' -> '{child}' closes a loop ({loop}, child to parent). "
                "Swap or remove one of these transforms."
            )
        edge = self._edges[child] = _Edge(parent, static)
        return edge

    def clear(self) -> None:
        """Forget the moving transforms (after a jump back in time); static ones stay."""
        self._edges = {c: e for c, e in self._edges.items() if e.static}

    # --- asking -----------------------------------------------------------------------------------

    @property
    def frames(self) -> list[str]:
        """Names of all frames, sorted."""
        return sorted(set(self._edges) | {e.parent for e in self._edges.values()})

    def __contains__(self, frame: str) -> bool:
        return frame in self._edges or any(e.parent == frame for e in self._edges.values())

    def parent(self, frame: str) -> str | None:
        """Parent of a frame, None at a root or for an unknown frame."""
        edge = self._edges.get(frame)
        return None if edge is None else edge.parent

    def time_range(self, target: str, source: str) -> tuple[int, int] | None:
        """First and last stamp [ns] at which the two can be connected; None when always.

        Raises:
            TransformLookupError: unknown frame, or no connection.
        """
        up, down = self._path(target, source)
        moving = [self._edges[f] for f in (*up, *down) if not self._edges[f].static]
        if not moving:
            return None
        return max(e.stamps[0] for e in moving), min(e.stamps[-1] for e in moving)

    def lookup(
        self, target: str, source: str, stamp_ns: int | None, tolerance_s: float = 0.0
    ) -> FloatArray:
        """``T_target_source`` (4 x 4, maps points in ``source`` to ``target``) at a moment.

        Args:
            stamp_ns: moment [ns]; None takes the newest one that all links of the chain have.
            tolerance_s: how far outside its samples a moving transform is held constant [s].

        Raises:
            TransformLookupError: a frame is unknown, the two are not connected, or the moment is
                outside the recorded time; the message names frames, times and the cure.
        """
        up, down = self._path(target, source)
        if stamp_ns is None:
            span = self.time_range(target, source)
            if span is not None and span[0] > span[1]:
                raise TransformLookupError(
                    f"transform '{target}' <- '{source}': its links have no time in common "
                    f"({span[0] / 1e9:.3f} s is after {span[1] / 1e9:.3f} s). "
                    "Check that all publishers use one clock."
                )
            stamp_ns = 0 if span is None else span[1]
        tolerance_ns = round(tolerance_s * NANOSECONDS)
        T_common_source, T_common_target = np.eye(4), np.eye(4)
        for frame in down:
            T_common_source = self._sample(frame, stamp_ns, tolerance_ns) @ T_common_source
        for frame in up:
            T_common_target = self._sample(frame, stamp_ns, tolerance_ns) @ T_common_target
        return invert(T_common_target) @ T_common_source

    def _ancestors(self, frame: str) -> list[str]:
        chain = []
        while (edge := self._edges.get(frame)) is not None:
            frame = edge.parent
            chain.append(frame)
        return chain

    def _path(self, target: str, source: str) -> tuple[list[str], list[str]]:
        """Frames whose edges lead from ``target``, and from ``source``, up to the first common."""
        for name in (target, source):
            if name not in self:
                known = ", ".join(self.frames) or "none"
                raise TransformLookupError(
                    f"frame '{name}' is not in the transform tree; known frames: {known}. "
                    "Publish it on /tf or /tf_static, or correct the name."
                )
        above_target = [target, *self._ancestors(target)]
        above_source = [source, *self._ancestors(source)]
        common = next((f for f in above_source if f in above_target), None)
        if common is None:
            raise TransformLookupError(
                f"frames '{target}' and '{source}' are not connected: their trees end at "
                f"'{above_target[-1]}' and '{above_source[-1]}'. Publish the transform between "
                "these two (for a camera: its extrinsic calibration, as a static transform)."
            )
        return (
            above_target[: above_target.index(common)],
            above_source[: above_source.index(common)],
        )

    def _sample(self, frame: str, stamp_ns: int, tolerance_ns: int) -> FloatArray:
        """``T_parent_frame`` at a moment."""
        edge = self._edges[frame]
        if edge.static:
            return edge.transforms[0]
        first, last = edge.stamps[0], edge.stamps[-1]
        if not first - tolerance_ns <= stamp_ns <= last + tolerance_ns:
            side, gap = (
                ("before", first - stamp_ns) if stamp_ns < first else ("after", stamp_ns - last)
            )
            raise TransformLookupError(
                f"transform '{edge.parent}' -> '{frame}' is known from {first / 1e9:.3f} s to "
                f"{last / 1e9:.3f} s; asked for {stamp_ns / 1e9:.3f} s, {gap / 1e9:.3f} s {side} "
                f"that (tolerance {tolerance_ns / 1e9:.3f} s). Check that its publisher is alive "
                "and uses the clock of the cameras."
            )
        stamp_ns = min(max(stamp_ns, first), last)
        i = bisect_right(edge.stamps, stamp_ns) - 1
        if edge.stamps[i] == stamp_ns:
            return edge.transforms[i]
        fraction = (stamp_ns - edge.stamps[i]) / (edge.stamps[i + 1] - edge.stamps[i])
        try:
            return interpolate(edge.transforms[i], edge.transforms[i + 1], fraction)
        except CalibrationError as error:  # not reachable with rigid samples; keeps its kind
            raise TransformLookupError(
                f"transform '{edge.parent}' -> '{frame}': {error}"
            ) from error
