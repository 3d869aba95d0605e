"""The sweep's geometry on a plane whose colours are known, and what becomes of condition maps."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wristworld_ros.errors import WeightsError
from wristworld_ros.reconstruction import Reconstructor
from wristworld_ros.reconstruction.domain import Domain, DomainConfig
from wristworld_ros.reconstruction.plane_sweep import (
    PlaneSweep,
    PlaneSweepConfig,
    SweepInputs,
    SweepOutput,
    drawn_pixels,
    points_in_views,
    sweep_inputs,
    wrist_rays,
)
from wristworld_ros.reconstruction.posed_views import PosedViews
from wristworld_ros.types import CameraModel, ConditionMap
from wristworld_ros.weights import save_weights

sys.path.insert(0, str(Path(__file__).parent))

from test_reconstructor import TINY, frame

from wristworld_ros.reconstruction.model import Stage1Model

CONFIG = PlaneSweepConfig(planes=8, widths=(16, 16, 16, 16), fine=16)
SIZE, VIEW = 32, 48
HEIGHTS = (0.8, 1.0)
WRIST_HEIGHT = 0.3


def look_down(x, height):
    T = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    T[:3, 3] = torch.tensor([x, 0.0, height])
    return T


def camera(size, focal):
    return torch.tensor([[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]])


def colours(xy):
    """Of the plane z = 0 at places ... x 2 [m], ... x 3."""
    x, y = xy[..., 0], xy[..., 1]
    return torch.stack([0.5 + 0.9 * x, 0.5 - 0.9 * y, 0.5 + 0.5 * (x + y)], -1)


def plane(K, T, size):
    """What a camera sees of the plane, 3 x size x size."""
    rays = wrist_rays(K[None], size, size, 1)[0]
    points = T[:3, 3] + T[2, 3] * rays @ T[:3, :3].T
    return colours(points[..., :2]).permute(2, 0, 1).clamp(0, 1)


WRIST_T, WRIST_K = look_down(0.02, WRIST_HEIGHT), camera(SIZE, 30.0)
ANCHOR_T = torch.stack([look_down(0.0, HEIGHTS[0]), look_down(0.1, HEIGHTS[1])])
ANCHOR_K = camera(VIEW, 40.0)


@pytest.fixture
def inputs():
    """Two anchors and the wrist camera over the plane, whose depth all of them know."""
    depth = torch.tensor(HEIGHTS)[None, :, None, None].expand(1, 2, VIEW, VIEW)
    return SweepInputs(
        images=torch.stack([plane(ANCHOR_K, T, VIEW) for T in ANCHOR_T])[None],
        depth=depth.clone(),
        confidence=torch.full_like(depth, 0.8),
        K=ANCHOR_K.expand(1, 2, 3, 3),
        T_anchor_wrist=(torch.linalg.inv(ANCHOR_T) @ WRIST_T)[None],
        wrist_K=WRIST_K[None],
        map_image=plane(WRIST_K, WRIST_T, SIZE)[None],
        map_mask=torch.ones(1, 2, SIZE, SIZE),
        map_depth=torch.full((1, SIZE, SIZE), WRIST_HEIGHT),
    )


@pytest.fixture
def network():
    torch.manual_seed(0)
    return PlaneSweep(CONFIG).eval()


@pytest.fixture
def moved(network):
    """The same with weights that training might have given it."""
    torch.manual_seed(1)
    for layer in (network.coarse, network.out):
        torch.nn.init.normal_(layer.weight, std=0.2)
    return network


def test_points_of_the_surface_have_its_colours_in_every_view(inputs):
    rays = wrist_rays(inputs.wrist_K, SIZE, SIZE, 1)
    scales = torch.tensor([0.8, 1.0, 1.25]).log()
    logs = np.log(WRIST_HEIGHT) + scales.view(1, 3, 1, 1).expand(1, 3, SIZE, SIZE)
    views = torch.cat(
        [inputs.images, inputs.confidence[:, :, None], inputs.depth.log()[:, :, None]], 2
    )
    values, inside = points_in_views(inputs, views, rays, logs, 0.1)
    assert inside.all()
    assert values.shape == (1, 2, 7, 3 * SIZE * SIZE)
    values = values.unflatten(3, (3, SIZE * SIZE))
    truth = inputs.map_image.flatten(2)
    for v in range(2):
        torch.testing.assert_close(values[:, v, :3, 1], truth, atol=2e-3, rtol=0)
        assert (values[:, v, :3, 0] - truth).abs().mean() > 0.002
    torch.testing.assert_close(
        values[:, :, 4:6, 1], torch.zeros(1, 2, 2, SIZE * SIZE), atol=1e-4, rtol=0
    )
    assert (values[:, :, 6, 1] > 0.999).all() and (values[:, :, 6, ::2] < 0.75).all()
    # 0.06 m above the plane its surface lies behind the point; 0.075 m below, before it.
    for v, height in enumerate(HEIGHTS):
        for step, above in ((0, 0.2 * WRIST_HEIGHT), (2, -0.25 * WRIST_HEIGHT)):
            behind = np.log(height / (height - above))
            for channel, unit in ((4, 0.1), (5, 0.5)):
                expected = torch.full((SIZE * SIZE,), np.tanh(behind / unit))
                torch.testing.assert_close(values[0, v, channel, step], expected, atol=1e-3, rtol=0)


def test_points_behind_a_view_or_beside_its_picture_are_not_in_sight(inputs):
    turned = inputs.T_anchor_wrist.clone()
    turned[0, 0] = torch.diag(torch.tensor([1.0, -1, -1, 1])) @ turned[0, 0]
    turned[0, 1, 0, 3] += 2.0
    x = replace(inputs, T_anchor_wrist=turned)
    rays = wrist_rays(x.wrist_K, SIZE, SIZE, 4)
    views = torch.cat([x.images, x.confidence[:, :, None], x.depth.log()[:, :, None]], 2)
    _, inside = points_in_views(x, views, rays, torch.full((1, 1, 8, 8), -1.2), 0.1)
    assert not inside.any()


def test_before_training_the_map_stays_nearly_what_it_is(network, inputs):
    with torch.no_grad():
        out = network(inputs)
    assert out.image.shape == (1, 3, SIZE, SIZE)
    assert out.depth.shape == out.coarse.shape == (1, SIZE, SIZE)
    torch.testing.assert_close(out.depth, inputs.map_depth, rtol=0.05, atol=0)
    torch.testing.assert_close(out.image, inputs.map_image, atol=0.02, rtol=0)
    torch.testing.assert_close(out.shares.sum(1, keepdim=True), torch.ones(1, 1, SIZE, SIZE))
    assert not out.filled.any()


def test_the_order_of_the_views_does_not_matter(moved, inputs):
    def turned(x):
        return x.flip(1)

    other = replace(
        inputs,
        **{
            n: turned(getattr(inputs, n))
            for n in ("images", "depth", "confidence", "K", "T_anchor_wrist")
        },
    )
    with torch.no_grad():
        a, b = moved(inputs), moved(other)
    torch.testing.assert_close(a.image, b.image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.depth, b.depth)
    torch.testing.assert_close(a.shares, b.shares.flip(1), atol=1e-5, rtol=1e-4)


def test_a_view_that_sees_nothing_of_it_changes_nothing(moved, inputs):
    away = torch.eye(4)[None, None] @ torch.diag(torch.tensor([1.0, 1, -1, 1]))
    away[..., 2, 3] = -5.0

    def with_another(x, extra):
        return torch.cat([x, extra], 1)

    other = replace(
        inputs,
        images=with_another(inputs.images, torch.rand(1, 1, 3, VIEW, VIEW)),
        depth=with_another(inputs.depth, torch.ones(1, 1, VIEW, VIEW)),
        confidence=with_another(inputs.confidence, torch.ones(1, 1, VIEW, VIEW)),
        K=with_another(inputs.K, inputs.K[:, :1]),
        T_anchor_wrist=with_another(inputs.T_anchor_wrist, away),
    )
    with torch.no_grad():
        a, b = moved(inputs), moved(other)
    torch.testing.assert_close(a.image, b.image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a.depth, b.depth)
    assert not b.shares[:, 2].any()


def test_a_window_shows_what_the_whole_picture_shows_there(moved, inputs):
    window = (slice(8, 24), slice(4, 28))
    with torch.no_grad():
        whole, part = moved(inputs), moved(inputs, window)
    inner = (..., slice(3, -3), slice(3, -3))  # beyond the reach of the window's border
    for name in ("image", "depth", "right", "of_map", "filled", "shares"):
        there = getattr(whole, name)[..., window[0], window[1]]
        torch.testing.assert_close(getattr(part, name)[inner], there[inner], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(part.coarse, whole.coarse)


def test_sides_need_not_be_multiples_of_anything(moved, inputs):
    x = replace(
        inputs,
        map_image=inputs.map_image[..., :27, :30],
        map_mask=inputs.map_mask[..., :27, :30],
        map_depth=inputs.map_depth[..., :27, :30],
    )
    with torch.no_grad():
        out = moved(x)
    assert out.image.shape == (1, 3, 27, 30) and out.depth.shape == out.coarse.shape == (1, 27, 30)


def test_depth_that_all_views_agree_on_is_found_where_the_map_is_empty(inputs):
    """The planes have to say how far the table is: the wrist camera is at another height each time,
    and nothing but the views tells which."""
    torch.manual_seed(0)
    net = PlaneSweep(PlaneSweepConfig(planes=16, widths=(16, 16, 16, 16), fine=16))

    def seen_from(*heights):
        T = torch.stack([look_down(0.02, height) for height in heights])
        B = len(T)
        empty = SweepInputs(**{n: v.expand(B, *v.shape[1:]) for n, v in vars(inputs).items()})
        empty = replace(
            empty,
            T_anchor_wrist=torch.linalg.inv(ANCHOR_T) @ T[:, None],
            map_image=torch.full_like(empty.map_image, 0.5),
            map_mask=torch.zeros_like(empty.map_mask),
            map_depth=torch.zeros_like(empty.map_depth),
        )
        return empty, torch.stack([plane(WRIST_K, pose, SIZE) for pose in T])

    optimizer = torch.optim.AdamW(net.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    window = (slice(0, 8), slice(8, 16))  # all of it takes longer
    for _ in range(90):
        heights = 0.2 + 0.2 * torch.rand(4, generator=generator)
        x, truth = seen_from(*heights.tolist())
        out = net(x, window)
        true_log = heights.log()[:, None, None]
        errors = [(d.log() - true_log).abs().mean() for d in (out.coarse, out.depth)]
        loss = sum(errors) + (out.image - truth[..., :8, 8:16]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, truth = seen_from(0.24, 0.36)
    with torch.no_grad():
        out = net(x)
    torch.testing.assert_close(
        out.coarse.mean((1, 2)), torch.tensor([0.24, 0.36]), rtol=0.06, atol=0
    )
    assert (out.image - truth).abs().mean() < 0.02
    assert (x.map_image - truth).abs().mean() > 0.05


def fixed(right, filled, of_map):
    def grid(values):
        return torch.tensor(values)[None, None]

    return SweepOutput(
        coarse=torch.ones(1, 2, 2),
        depth=torch.ones(1, 2, 2),
        image=torch.full((1, 3, 2, 2), 0.5),
        right=grid(right),
        of_map=grid(of_map),
        filled=grid(filled),
        shares=torch.stack([torch.zeros(2, 2), torch.ones(2, 2)])[None],
    )


def test_drawn_is_what_is_likely_right_and_not_filled_in():
    out = fixed([[1.0, -1.0], [1.0, 1.0]], [[0.0, 0.0], [0.9, 0.2]], [[0.0, 0.0], [0.9, 0.2]])
    assert drawn_pixels(out)[0].tolist() == [[True, False], [False, True]]


def posed(images, sizes):
    cameras = [CameraModel(camera(s, 40.0 * s / VIEW).double().numpy(), s, s) for s in sizes]
    return PosedViews(
        images=images,
        depths=[np.full((s, s), h, np.float32) for s, h in zip(sizes, HEIGHTS, strict=True)],
        confidences=[np.full((s, s), 0.8, np.float32) for s in sizes],
        cameras=cameras,
        poses=[T.double().numpy() for T in ANCHOR_T],
        shown=[np.zeros((s, s), bool) for s in sizes],
    )


def picture(x):
    return (x * 255).round().byte().permute(1, 2, 0).numpy()


def splatted(view=0):
    image = picture(plane(WRIST_K, WRIST_T, SIZE))
    mask = np.ones((SIZE, SIZE), bool)
    mask[:8] = False
    return ConditionMap(
        image=image * mask[..., None],
        mask=mask,
        depth=np.where(mask, np.float32(WRIST_HEIGHT), np.float32(0)),
        view=np.where(mask, view, -1).astype(np.int8),
        camera=CameraModel(WRIST_K.double().numpy(), SIZE, SIZE),
    )


def test_views_of_other_sizes_see_the_same_place():
    views = [
        picture(plane(ANCHOR_K, ANCHOR_T[0], VIEW)),
        picture(plane(camera(96, 80.0), ANCHOR_T[1], 96)),
    ]
    x = sweep_inputs(posed(views, (VIEW, 96)), WRIST_T.double().numpy(), splatted())
    assert x.images.shape == (1, 2, 3, VIEW, VIEW)
    torch.testing.assert_close(x.K[0, 1], ANCHOR_K)
    torch.testing.assert_close(
        x.images[0, 1], plane(ANCHOR_K, ANCHOR_T[1], VIEW), atol=0.01, rtol=0
    )
    assert x.map_mask[0, :, :8].sum() == 0 and x.map_mask[0, :, 8:].all()
    assert (x.map_image[0, :, :8] > 0.2).all()  # holes are filled


def test_a_refined_map_is_a_condition_map(network):
    network.out.bias.data[-1] = 3.0  # all is likely to be right
    views = posed([picture(plane(ANCHOR_K, T, VIEW)) for T in ANCHOR_T], (VIEW, VIEW))
    before = splatted(view=-2)
    after = network.refine(views, WRIST_T.double().numpy(), before)
    assert after.camera is before.camera
    assert after.mask[8:].all() and (after.view[8:] == -2).all()  # its colours are the map's
    hole = ~after.mask
    assert (after.image[hole] == 0).all() and (after.depth[hole] == 0).all()
    assert (after.view[hole] == -1).all()
    np.testing.assert_allclose(after.depth[8:], WRIST_HEIGHT, rtol=0.05)
    network.out.bias.data[-2] = -9.0  # nothing is taken of the map
    swept = network.refine(views, WRIST_T.double().numpy(), before)
    assert swept.mask.all() and set(np.unique(swept.view)) <= {0, 1}
    network.out.bias.data[-1] = -3.0
    assert not network.refine(views, WRIST_T.double().numpy(), before).mask.any()


def test_weights_belong_to_a_stage_1(tmp_path, network):
    torch.manual_seed(0)
    stage1 = Stage1Model(TINY)
    digest = save_weights(tmp_path / "stage1", stage1, stage1.config_dict())
    network.out.bias.data[-1] = 3.0
    save_weights(tmp_path / "plane_sweep", network, network.config_dict(), {"stage1": digest})
    loaded = Reconstructor.from_pretrained(tmp_path)
    plain = Reconstructor.from_pretrained(tmp_path)
    plain.plane_sweep = None
    assert loaded.sha256s["plane_sweep"] == loaded.plane_sweep.sha256
    assert "plane_sweep" not in plain.sha256s
    a, b = loaded(frame()).condition, plain(frame()).condition
    assert a.mask.shape == b.mask.shape and (a.image != b.image).any()
    save_weights(tmp_path / "plane_sweep", network, network.config_dict(), {"stage1": "0" * 64})
    with pytest.raises(WeightsError, match="plane-sweep"):
        Reconstructor.from_pretrained(tmp_path)


class Everything:
    """Draws all of every map."""

    def refine(self, views, T_world_wrist, condition):
        return replace(condition, mask=np.ones_like(condition.mask))


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("calibrated", [False, True])
def test_nothing_is_swept_where_all_is_estimated_from_unlike_pictures(calibrated, far):
    torch.manual_seed(0)
    stage1 = Stage1Model(TINY).eval()
    views = frame()
    if not calibrated:
        known = {"camera": None, "T_world_camera": None}
        views = replace(views, views=tuple(replace(v, **known) for v in views.views))
    domain = Domain(DomainConfig(features=4 * TINY.dim, directions=2))
    domain.limit.fill_(1e-6 if far else 1e6)
    reconstruction = Reconstructor(stage1, domain=domain, plane_sweep=Everything())(views)
    assert (reconstruction.estimate.domain_distance > 1) == far
    assert reconstruction.condition.mask.all() == (calibrated or not far)
