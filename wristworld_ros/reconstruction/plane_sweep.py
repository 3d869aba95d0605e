"""The wrist view by a plane sweep over all anchors: which depth along each wrist ray do the views
agree on, and what do they show there.

Splatting draws every anchor's depth as it was predicted, where the anchors disagree as well. Seen
from the wrist camera the question is another one: along a ray, the first depth that no view sees
through. The network sweeps planes of equal depth in the wrist camera through the features,
colours and depths of the anchors, as multi-view stereo does (Collins 1996; Yao et al. 2018), and
then renders what the views show at finer steps around the depth it found. It is the attention of
wrist pixels to the anchors along the camera geometry, beyond the paper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from wristworld_ros.geometry.depth_fusion import resize_depth
from wristworld_ros.geometry.hole_filling import fill_holes
from wristworld_ros.geometry.transforms import invert
from wristworld_ros.reconstruction.companions import Companion
from wristworld_ros.reconstruction.heads import conv, double_conv, down_and_up
from wristworld_ros.reconstruction.posed_views import PosedViews
from wristworld_ros.types import ConditionMap, FloatArray

#: Depth of the nearest and of the farthest plane [m].
SWEPT = (0.05, 1.6)
#: Finer steps around the depth found by the planes, as differences of log depth.
STEPS = (-0.14, -0.07, -0.035, -0.015, 0.0, 0.015, 0.035, 0.07, 0.14)
#: Edge of the cells of the wrist picture that planes are swept through [px], and the multiple that
#: its sides are padded to.
CELL, MULTIPLE = 4, 32
#: Probability of a right colour from which on a pixel counts as drawn.
DRAWN = 0.5
#: Relative differences of depth that count as one: between planes, and between finer steps.
_WIDE, _FINE = 0.1, 0.02
#: Channels of a point in a view beside features: colours, confidence, and where the surface is.
_PLAIN = 7
#: Points nearer to a camera than this are not in its sight [m], and no depth is less.
_NEAREST = 0.01
#: Keeps a view out of a softmax or maximum.
_NEVER = 1e4
#: Before training: logits that the map's depth and colours are taken rather than the sweep's, and
#: of the step in the middle.
_DEPTH_START, _COLOUR_START, _MIDDLE_START = 4.0, 1.0, 2.0


@dataclass(frozen=True)
class PlaneSweepConfig:
    """Sizes.

    Attributes:
        planes: how many, in even steps of log depth.
        features: channels of the anchors' features, a multiple of 8.
        point: channels of what is known of one point of the sweep.
        widths: channels at 1/4, 1/8, 1/16 and 1/32 of the wrist picture, multiples of 8.
        fine: channels at its full resolution, a multiple of 8.
    """

    planes: int = 24
    features: int = 8
    point: int = 16
    widths: tuple[int, int, int, int] = (96, 128, 160, 192)
    fine: int = 48


@dataclass(frozen=True)
class SweepInputs:
    """Frames as the network sees them.

    Attributes:
        images: B x V x 3 x H x W in [0, 1].
        depth, confidence: B x V x H x W [m], and in [0, 1] or -1 where depth is not used.
        K: B x V x 3 x 3 [px of H x W].
        T_anchor_wrist: B x V x 4 x 4, wrist camera to anchor camera.
        wrist_K: B x 3 x 3 [px of h x w].
        map_image: B x 3 x h x w in [0, 1], holes filled.
        map_mask: B x 2 x h x w, 1 where drawn, and where what was drawn is measured.
        map_depth: B x h x w [m], 0 where nothing is drawn.
    """

    images: Tensor
    depth: Tensor
    confidence: Tensor
    K: Tensor
    T_anchor_wrist: Tensor
    wrist_K: Tensor
    map_image: Tensor
    map_mask: Tensor
    map_depth: Tensor


@dataclass(frozen=True)
class SweepOutput:
    """What the sweep found, for the pixels h x w of the wrist picture or of a window in it.

    Attributes:
        coarse: B x h x w [m], depth by the planes and the map, of the whole picture.
        depth: B x h x w [m].
        image: B x 3 x h x w in [0, 1].
        right: B x 1 x h x w logits that the colours are right.
        of_map: B x 1 x h x w, the share of the map in ``image``.
        filled: B x 1 x h x w, the share of what only fills the map's holes.
        shares: B x V x h x w, the share of each view in the rest.
    """

    coarse: Tensor
    depth: Tensor
    image: Tensor
    right: Tensor
    of_map: Tensor
    filled: Tensor
    shares: Tensor


def sweep_inputs(
    views: PosedViews, T_world_wrist: FloatArray, condition: ConditionMap
) -> SweepInputs:
    """One moment as the network sees it (B = 1), on the CPU.

    Args:
        views: pictures that differ in size are brought to that of the first.
        T_world_wrist: 4 x 4 pose of the wrist camera that ``condition`` was drawn for.
    """
    H, W = views.depths[0].shape
    images, depths, confidences, intrinsics = [], [], [], []
    for image, depth, confidence, camera in zip(
        views.images, views.depths, views.confidences, views.cameras, strict=True
    ):
        if depth.shape != (H, W):
            size = (W, H)
            image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
            depth = resize_depth(depth, size)
            nearest = cv2.resize(confidence, size, interpolation=cv2.INTER_NEAREST)
            confidence = np.asarray(nearest, np.float32)
            camera = camera.resized(W, H)
        images.append(image)
        depths.append(depth)
        confidences.append(confidence)
        intrinsics.append(camera.K)
    relative = np.stack([invert(pose) @ T_world_wrist for pose in views.poses])
    mask = np.stack([condition.mask, condition.measured])
    return SweepInputs(
        images=_pictures(np.stack(images))[None],
        depth=torch.from_numpy(np.stack(depths))[None].float(),
        confidence=torch.from_numpy(np.stack(confidences))[None].float(),
        K=torch.from_numpy(np.stack(intrinsics))[None].float(),
        T_anchor_wrist=torch.from_numpy(relative)[None].float(),
        wrist_K=torch.from_numpy(condition.camera.K.copy())[None].float(),
        map_image=fill_holes(
            _pictures(condition.image[None]), torch.from_numpy(mask[None, :1]).float()
        ),
        map_mask=torch.from_numpy(mask)[None].float(),
        map_depth=torch.from_numpy(condition.depth)[None],
    )


def _pictures(x: NDArray[np.uint8]) -> Tensor:
    """N x H x W x 3 uint8 -> N x 3 x H x W in [0, 1]."""
    return torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255


class Points(nn.Module):
    """What the views say of points of the sweep: one small network for every view and point, then
    mean and largest value over the views."""

    def __init__(self, c_in: int, width: int, c_out: int) -> None:
        super().__init__()
        self.each = nn.Sequential(
            nn.Conv1d(c_in, width, 1), nn.GELU(), nn.Conv1d(width, width + 1, 1)
        )
        self.join = nn.Conv1d(2 * width + 1, c_out, 1)

    def forward(self, x: Tensor, inside: Tensor) -> tuple[Tensor, Tensor]:
        """Join the views.

        Args:
            x: B x V x c_in x N; inside: B x V x 1 x N, 1 where the view has the point in sight.

        Returns:
            B x c_out x N, and B x V x 1 x N shares of the views, of sum 1 or all 0.
        """
        x = self.each(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        x, share = x[:, :, :-1], x[:, :, -1:]
        share = (share + (inside - 1) * _NEVER).softmax(1) * inside
        count = inside.sum(1)
        mean = (x * inside).sum(1) / count.clamp_min(1)
        best = (x + (inside - 1) * _NEVER).amax(1) * (count > 0)
        return self.join(torch.cat([mean, best, count / 3], 1)), share


class PlaneSweep(Companion):
    """Depth and colours of the wrist view; see the module. It belongs to one stage 1, whose depth
    it was trained on.

    Attributes:
        bf16: run the convolutions in bfloat16.
    """

    config: PlaneSweepConfig
    sizes = PlaneSweepConfig

    def __init__(self, config: PlaneSweepConfig | None = None) -> None:
        super().__init__()
        c = self.config = config or PlaneSweepConfig()
        self.bf16 = False
        a, b, d, e = c.widths
        near, far = np.log(SWEPT)
        self.planes: Tensor
        self.register_buffer("planes", torch.linspace(near, far, c.planes), persistent=False)
        self.steps: Tensor
        self.register_buffer("steps", torch.tensor(STEPS), persistent=False)
        self.features = nn.Sequential(
            *conv(5, 16, 2), *conv(16, 32, 2), nn.Conv2d(32, c.features, 3, 1, 1)
        )
        self.wide = Points(_PLAIN + c.features, c.point, 8)
        self.enter = double_conv(8 * c.planes + 6 * CELL**2, a)
        self.down = nn.ModuleList(
            [double_conv(a, b, 2), double_conv(b, d, 2), double_conv(d, e, 2)]
        )
        self.up = nn.ModuleList(
            [double_conv(e + d, d), double_conv(d + b, b), double_conv(b + a, a)]
        )
        self.coarse = nn.Conv2d(a, c.planes + CELL**2, 1)
        self.narrow = nn.Conv2d(a, c.fine, 1)
        self.close = Points(_PLAIN, c.point, 8)
        # No norm over the picture: windows of it have other means than the whole.
        self.finer = nn.Sequential(
            nn.Conv2d(8 * len(STEPS) + c.fine + 6, c.fine, 3, 1, 1),
            nn.GELU(),
            nn.Conv2d(c.fine, c.fine, 3, 1, 1),
            nn.GELU(),
        )
        self.out = nn.Conv2d(c.fine, len(STEPS) + 2, 3, 1, 1)
        for layer in (self.coarse, self.out):
            assert layer.bias is not None
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        assert self.out.bias is not None
        self.out.bias.data[len(STEPS) // 2] = _MIDDLE_START

    def forward(
        self, inputs: SweepInputs, window: tuple[slice, slice] | None = None
    ) -> SweepOutput:
        """Sweep.

        Args:
            window: rows and columns of the wrist picture to render; all when None.
        """
        h, w = inputs.map_depth.shape[-2:]
        drawn = inputs.map_mask[:, :1]
        log_map = fill_holes(inputs.map_depth[:, None].clamp_min(_NEAREST).log(), drawn)
        known = torch.cat([inputs.map_image * 2 - 1, inputs.map_mask, log_map], 1)
        known = F.pad(known, (0, -w % MULTIPLE, 0, -h % MULTIPLE), mode="replicate")
        views = self._views(inputs)
        coarse, hidden = self._sweep(inputs, views, known)
        rows, columns = window or (slice(0, h), slice(0, w))
        cut = (slice(None), slice(None), rows, columns)
        rays = wrist_rays(inputs.wrist_K, h, w, 1)[:, rows, columns]
        fine = self._render(
            inputs, views[:, :, :5], known[cut], coarse.detach()[cut], hidden[cut], rays
        )
        return SweepOutput(coarse[:, 0, :h, :w].exp(), *fine)

    def _autocast(self, x: Tensor) -> torch.autocast:
        return torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16)

    def _views(self, x: SweepInputs) -> Tensor:
        """B x V x C x H x W: colours, confidence, log depth, and features of the anchors."""
        depth = x.depth.clamp_min(_NEAREST).log()[:, :, None]
        plain = torch.cat([x.images * 2 - 1, x.confidence[:, :, None], depth], 2).flatten(0, 1)
        with self._autocast(plain):
            features = self.features(plain).float()
        features = F.interpolate(
            features, size=plain.shape[-2:], mode="bilinear", align_corners=False
        )
        return torch.cat([plain, features], 1).unflatten(0, x.depth.shape[:2])

    def _sweep(self, x: SweepInputs, views: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Log depth by the planes, B x 1 x h x w, and channels of what it comes from, as large."""
        B, _, h, w = known.shape
        rays = wrist_rays(x.wrist_K, h, w, CELL)
        size = (len(self.planes), h // CELL, w // CELL)
        logs = self.planes.view(1, -1, 1, 1).expand(B, *size)
        points, inside = points_in_views(x, views, rays, logs, _WIDE)
        with self._autocast(points):
            said = self.wide(points, inside)[0].float()
            volume = said.unflatten(2, size).flatten(1, 2)
            hidden = self.enter(torch.cat([volume, F.pixel_unshuffle(known, CELL)], 1))
            hidden = down_and_up(hidden, self.down, self.up)
            out = self.coarse(hidden).float()
            narrow = self.narrow(hidden).float()
        # What is said of a plane speaks for it directly, whichever plane it is.
        likely = (out[:, : len(self.planes)] + said[:, 0].unflatten(1, size)).softmax(1)
        swept = (likely * logs).sum(1, keepdim=True)
        larger = torch.cat([swept, narrow], 1)
        larger = F.interpolate(larger, scale_factor=CELL, mode="bilinear", align_corners=False)
        taken = F.pixel_shuffle(out[:, len(self.planes) :], CELL)
        taken = torch.sigmoid(taken + _DEPTH_START) * known[:, 3:4]
        return taken * known[:, 5:] + (1 - taken) * larger[:, :1], larger[:, 1:]

    def _render(
        self,
        x: SweepInputs,
        views: Tensor,
        known: Tensor,
        start: Tensor,
        hidden: Tensor,
        rays: Tensor,
    ) -> tuple[Tensor, ...]:
        """Depth and colours at the steps around log depth ``start``, and the rest of
        ``SweepOutput`` from ``depth`` on."""
        size = (len(self.steps), *known.shape[-2:])
        logs = start + self.steps.view(1, -1, 1, 1)
        points, inside = points_in_views(x, views, rays, logs, _FINE)
        with self._autocast(points):
            said, share = (a.float() for a in self.close(points, inside))
            near = torch.cat([said.unflatten(2, size).flatten(1, 2), hidden, known], 1)
            out = self.out(self.finer(near)).float()
        likely = (out[:, : len(self.steps)] + said[:, 0].unflatten(1, size)).softmax(1)
        depth = (likely * logs).sum(1).exp()
        # B x V x steps x h x w: how much each view adds at each step; less than 1 in all where
        # views do not have the point in sight.
        part = share.unflatten(3, size)[:, :, 0] * likely[:, None]
        seen = part.sum((1, 2))[:, None]
        colours = (points[:, :, :3].unflatten(3, size) * part[:, :, None]).sum((1, 3))
        taken = torch.sigmoid(out[:, -2:-1] + _COLOUR_START)
        of_map = taken + (1 - taken) * (1 - seen)
        image = ((1 - taken) * (colours + seen) + of_map * (known[:, :3] + 1)) / 2
        return depth, image, out[:, -1:], of_map, of_map * (1 - known[:, 3:4]), part.sum(2)

    @torch.inference_mode()
    def refine(
        self, views: PosedViews, T_world_wrist: FloatArray, condition: ConditionMap
    ) -> ConditionMap:
        """As ``MapRefiner.refine``: drawn is what is likely to be right."""
        inputs = sweep_inputs(views, T_world_wrist, condition)
        device = self.planes.device
        out = self(SweepInputs(**{k: v.to(device) for k, v in vars(inputs).items()}))
        drawn = drawn_pixels(out)[0].cpu().numpy()
        taken = condition.mask & (out.of_map[0, 0] > 0.5).cpu().numpy()
        best = out.shares[0].argmax(0).to(torch.int8).cpu().numpy()
        view = np.where(taken, condition.view, best)
        image = (out.image[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
        return replace(
            condition,
            image=image.cpu().numpy() * drawn[..., None],
            mask=drawn,
            depth=np.where(drawn, out.depth[0].cpu().numpy(), np.float32(0)),
            view=np.where(drawn, view, -1).astype(np.int8),
        )


def drawn_pixels(out: SweepOutput) -> Tensor:
    """B x h x w bool: likely to be right, and not only filled in."""
    return (out.right[:, 0].sigmoid() >= DRAWN) & (out.filled[:, 0] < 0.5)


def wrist_rays(K: Tensor, height: int, width: int, step: int) -> Tensor:
    """B x height/step x width/step x 3 rays (z = 1) through the middles of cells of ``step`` px."""
    v, u = torch.meshgrid(
        (torch.arange(height // step, device=K.device) + 0.5) * step,
        (torch.arange(width // step, device=K.device) + 0.5) * step,
        indexing="ij",
    )
    K = K[:, :, :, None, None]
    x, y = (u - K[:, 0, 2]) / K[:, 0, 0], (v - K[:, 1, 2]) / K[:, 1, 1]
    return torch.stack([x, y, torch.ones_like(x)], -1)


def points_in_views(
    x: SweepInputs, views: Tensor, rays: Tensor, logs: Tensor, unit: float
) -> tuple[Tensor, Tensor]:
    """What the views hold at points of the wrist's rays.

    Args:
        views: B x V x C x H x W, log depth in channel 4.
        rays: B x h x w x 3 in the wrist camera, z = 1.
        logs: B x D x h x w log depth of the points.
        unit: relative difference of depth that counts as one.

    Returns:
        B x V x C+2 x D*h*w: the channels, with log depth replaced by how far the view's surface
        lies behind the point, in two units up to 1, and by how well it agrees, at most 1; and
        B x V x 1 x D*h*w, 1 where the view has the point in sight.
    """
    B, V, _, H, W = views.shape
    D, h, w = logs.shape[1:]
    R, t = x.T_anchor_wrist[..., :3, :3], x.T_anchor_wrist[..., :3, 3]
    turned = torch.einsum("bvij,bhwj->bvhwi", R, rays)
    points = logs.exp()[:, None, ..., None] * turned[:, :, None] + t[:, :, None, None, None]
    z = points[..., 2]
    near = z.clamp_min(_NEAREST)
    K = x.K[:, :, :, :, None, None, None]
    u = (K[:, :, 0, 0] * points[..., 0] / near + K[:, :, 0, 2]) * (2 / W) - 1
    v = (K[:, :, 1, 1] * points[..., 1] / near + K[:, :, 1, 2]) * (2 / H) - 1
    inside = (z > _NEAREST) & (u.abs() < 1) & (v.abs() < 1)
    grid = torch.stack([u, v], -1).clamp(-2, 2).reshape(B * V, D * h, w, 2)
    values = F.grid_sample(views.flatten(0, 1), grid, align_corners=False)
    values = values.reshape(B, V, -1, D * h * w)
    behind = (values[:, :, 4] - near.log().reshape(B, V, -1)) / unit
    clues = torch.stack([torch.tanh(behind), torch.tanh(behind / 5), 1 / (1 + behind.square())], 2)
    return (
        torch.cat([values[:, :, :4], clues, values[:, :, 5:]], 2),
        inside.to(values.dtype).reshape(B, V, 1, -1),
    )


class MapRefiner(Protocol):
    """What makes a better condition map of what is known of all views."""

    def refine(
        self, views: PosedViews, T_world_wrist: FloatArray, condition: ConditionMap
    ) -> ConditionMap:
        """The map for the same wrist camera.

        Args:
            views: of the moment.
            T_world_wrist: 4 x 4 pose of the wrist camera.
            condition: the splatted map.
        """
