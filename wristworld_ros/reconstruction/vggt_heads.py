"""VGGT's camera and track heads (arXiv 2503.11651), with the published parameter names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wristworld_ros.reconstruction.dpt import DptHead
from wristworld_ros.reconstruction.vit import Mlp, VitBlock


class PoseRefinement(nn.Module):
    """Iterative refinement of a 9-D pose from one token per camera.

    Each iteration embeds the previous pose (detached; a learned one at first), modulates the token
    by AdaLN, runs the trunk and adds an MLP's output to the pose.
    """

    def __init__(self, dim: int, blocks: int, heads: int) -> None:
        super().__init__()
        self.token_norm = nn.LayerNorm(dim)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, 9))
        self.embed_pose = nn.Linear(9, dim)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 3 * dim))
        self.adaln_norm = nn.LayerNorm(dim, elementwise_affine=False, eps=1e-6)
        self.trunk = nn.Sequential(*(VitBlock(dim, heads, 0.01) for _ in range(blocks)))
        self.trunk_norm = nn.LayerNorm(dim)
        self.pose_branch = Mlp(dim, dim // 2, 9)

    def refine(self, tokens: Tensor, iterations: int) -> list[Tensor]:
        """B x N x C tokens -> per iteration B x N x 9 ``absT_quaR_FoV``, FoV at least 0."""
        tokens = self.token_norm(tokens)
        pose: Tensor | None = None
        poses = []
        for _ in range(iterations):
            previous = self.empty_pose_tokens if pose is None else pose.detach()
            modulation = self.poseLN_modulation(self.embed_pose(previous))
            shift, scale, gate = modulation.chunk(3, -1)
            x = gate * (self.adaln_norm(tokens) * (1 + scale) + shift) + tokens
            delta = self.pose_branch(self.trunk_norm(self.trunk(x)))
            pose = delta if pose is None else pose.detach() + delta
            poses.append(torch.cat([pose[..., :7], F.relu(pose[..., 7:])], -1))
        return poses


class CameraHead(PoseRefinement):
    """Poses of all views from their camera tokens in the last layer."""

    def forward(self, tokens: list[Tensor], iterations: int = 4) -> list[Tensor]:
        """Tokens B x V x P x C per layer -> per iteration B x V x 9, world = first view."""
        return self.refine(tokens[-1][:, :, 0], iterations)


@dataclass(frozen=True)
class Tracks:
    """Where query points of the first view are in all views.

    Attributes:
        points: per iteration B x V x N x 2 (x, y) [px], pixel centres at integers.
        visibility, confidence: B x V x N in [0, 1].
    """

    points: list[Tensor]
    visibility: Tensor
    confidence: Tensor


class TrackAttention(nn.Module):
    """Self-attention block whose shortcut starts at the normed input, as published."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x)
        x = x + self.attn(x, x, x, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class TrackCrossAttention(nn.Module):
    """The same, attending to a context."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(dim)
        self.cross_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x, context = self.norm1(x), self.norm_context(context)
        x = x + self.cross_attn(x, context, context, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class TrackUpdater(nn.Module):
    """Transformer over tracks and views: attention over views, then among tracks.

    Tracks talk to one another through 64 learned virtual tracks.
    """

    def __init__(self, dim: int, hidden: int, outputs: int, depth: int, heads: int) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(dim)
        self.input_transform = nn.Linear(dim, hidden)
        self.output_norm = nn.LayerNorm(hidden)
        self.flow_head = nn.Linear(hidden, outputs)
        self.virual_tracks = nn.Parameter(torch.randn(1, 64, 1, hidden))  # spelt so in the weights

        def attention(kind: type[nn.Module]) -> nn.ModuleList:
            return nn.ModuleList(kind(hidden, heads) for _ in range(depth))

        self.time_blocks = attention(TrackAttention)
        self.space_virtual_blocks = attention(TrackAttention)
        self.space_point2virtual_blocks = attention(TrackCrossAttention)
        self.space_virtual2point_blocks = attention(TrackCrossAttention)

    def forward(self, x: Tensor) -> Tensor:
        """B x N x V x dim -> B x N x V x outputs."""
        B, N, V, _ = x.shape
        first = self.input_transform(self.input_norm(x))
        tokens = torch.cat([first, self.virual_tracks.expand(B, -1, V, -1)], 1)
        for time, virtual, to_virtual, from_virtual in zip(
            self.time_blocks,
            self.space_virtual_blocks,
            self.space_virtual2point_blocks,
            self.space_point2virtual_blocks,
            strict=True,
        ):
            tokens = time(tokens.flatten(0, 1)).unflatten(0, (B, -1))
            space = tokens.transpose(1, 2).flatten(0, 1)  # B V, N + 64, hidden
            points, others = space[:, :N], space[:, N:]
            others = virtual(to_virtual(others, points))
            points = from_virtual(points, others)
            tokens = torch.cat([points, others], 1).unflatten(0, (B, V)).transpose(1, 2)
        return self.flow_head(self.output_norm(tokens[:, :N] + first))


class Tracker(nn.Module):
    """Iterative tracker on feature maps (CoTracker and VGGSfM; VGGT, section 3.3)."""

    def __init__(
        self, dim: int, hidden: int, depth: int, heads: int, levels: int, radius: int = 4
    ) -> None:
        super().__init__()
        self.levels, self.radius = levels, radius
        inner = 3 * dim + 4
        self.corr_mlp = Mlp(levels * (2 * radius + 1) ** 2, hidden, dim)
        self.query_ref_token = nn.Parameter(torch.randn(1, 2, inner))
        self.updateformer = TrackUpdater(inner, hidden, dim + 2, depth, heads)
        self.fmap_norm = nn.LayerNorm(dim)
        self.ffeat_norm = nn.GroupNorm(1, dim)
        self.ffeat_updater = nn.Sequential(nn.Linear(dim, dim), nn.GELU())
        self.vis_predictor = nn.Sequential(nn.Linear(dim, 1))
        self.conf_predictor = nn.Sequential(nn.Linear(dim, 1))

    def forward(self, query: Tensor, maps: Tensor, iterations: int) -> tuple[list[Tensor], Tensor]:
        """Follow points.

        Args:
            query: B x N x 2 (x, y) in pixels of the maps of the first view.
            maps: B x V x C x h x w.

        Returns:
            Per iteration B x V x N x 2, and the features B x V x N x C of the tracks.
        """
        _, V, C, h, w = maps.shape
        maps = self.fmap_norm(maps.movedim(2, -1)).movedim(-1, 2)
        pyramid = [maps.flatten(0, 1)]
        for _ in range(self.levels - 1):
            pyramid.append(F.avg_pool2d(pyramid[-1], 2))
        start = query[:, None]
        features = (
            _sample(maps[:, 0], query, "border").transpose(1, 2)[:, None].expand(-1, V, -1, -1)
        )
        points = start.expand(-1, V, -1, -1)
        place = torch.cat(
            [_sincos_at(query[..., i], n, (3 * C + 4) // 2) for i, n in ((0, w), (1, h))], -1
        )[:, None]
        view = self.query_ref_token[:, [0] + [1] * (V - 1), None]  # 1, V, 1, inner
        found = []
        for _ in range(iterations):
            points = points.detach()
            flow = points - points[:, :1]
            motion = torch.cat([_flow_embedding(flow, C // 2), flow / 518, flow / 518], -1)
            seen = self.corr_mlp(self._correlate(pyramid, features, points))
            x = torch.cat([motion, seen, features], -1) + place + view
            delta = self.updateformer(x.transpose(1, 2)).transpose(1, 2)
            step = self.ffeat_norm(delta[..., 2:].reshape(-1, C)).view_as(features)
            features = features + self.ffeat_updater(step)
            points = torch.cat([start, (points + delta[..., :2])[:, 1:]], 1)
            found.append(points)
        return found, features

    def _correlate(self, pyramid: list[Tensor], features: Tensor, points: Tensor) -> Tensor:
        """Dot products with all map features around the points: B x V x N x levels (2 r + 1)^2."""
        B, V, N, C = features.shape
        r = self.radius
        steps = torch.arange(-r, r + 1, device=points.device, dtype=points.dtype)
        window = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
        flat = features.flatten(0, 1)
        out = []
        for i, maps in enumerate(pyramid):
            around = points.flatten(0, 1)[:, :, None] / 2**i + window  # B V, N, (2 r + 1)^2, 2
            sampled = _sample(maps, around.flatten(1, 2), "zeros").unflatten(2, (N, -1))
            out.append(torch.einsum("bnc,bcnk->bnk", flat, sampled) / C**0.5)
        return torch.cat(out, -1).unflatten(0, (B, V))


def _sample(maps: Tensor, points: Tensor, padding: str) -> Tensor:
    """Maps B x C x h x w at points B x N x 2 (x, y; pixel centres at integers) -> B x C x N."""
    size = points.new_tensor([max(maps.shape[3] - 1, 1), max(maps.shape[2] - 1, 1)])
    grid = (points * (2 / size) - 1)[:, None]
    return F.grid_sample(maps, grid, align_corners=True, padding_mode=padding)[:, :, 0]


def _sincos_at(at: Tensor, size: int, dim: int) -> Tensor:
    """Sines and cosines of 0 .. size - 1, linearly interpolated at ``at`` -> ... x dim."""
    omega = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = torch.arange(size, dtype=torch.float64)[:, None] * omega
    table = torch.cat([angles.sin(), angles.cos()], 1).to(at)
    at = at.clamp(0, size - 1)
    low = at.floor().long().clamp(max=max(size - 2, 0))
    return torch.lerp(table[low], table[(low + 1).clamp(max=size - 1)], (at - low)[..., None])


def _flow_embedding(flow: Tensor, dim: int) -> Tensor:
    """Displacements ... x 2 -> ... x 2 dim, sine and cosine of each frequency side by side."""
    frequencies = torch.arange(0, dim, 2, device=flow.device, dtype=flow.dtype) * (1000.0 / dim)
    angles = flow[..., None] * frequencies  # ..., 2, dim / 2
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-3)


class TrackHead(nn.Module):
    """Feature maps of half the image size, and a tracker on features that are strided by two."""

    def __init__(self, feature_extractor: DptHead, tracker: Tracker) -> None:
        super().__init__()
        self.feature_extractor = feature_extractor
        self.tracker = tracker

    def forward(
        self,
        tokens: list[Tensor],
        first_patch: int,
        grid: tuple[int, int],
        query: Tensor,
        iterations: int = 4,
    ) -> Tracks:
        """Follow ``query`` (B x N x 2 [px] of the first view) into all views."""
        maps = self.feature_extractor(tokens, first_patch, grid)
        points, features = self.tracker(query / 2, maps, iterations)
        return Tracks(
            [2 * p for p in points],
            self.tracker.vis_predictor(features)[..., 0].sigmoid(),
            self.tracker.conf_predictor(features)[..., 0].sigmoid(),
        )
