"""Maps of a wall whose depth and colours are known, seen by a camera that moves along it."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from wristworld_ros.reconstruction import Reconstructor, ReconstructorConfig
from wristworld_ros.reconstruction.map_memory import MapMemory
from wristworld_ros.reconstruction.model import Stage1Model
from wristworld_ros.types import REMEMBERED_VIEW, CameraModel, ConditionMap

sys.path.insert(0, str(Path(__file__).parent))

from test_reconstructor import TINY, frame

SIZE, FOCAL, FAR = 32, 40.0, 0.5
K = np.array([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]])
CAMERA = CameraModel(K, SIZE, SIZE)
PERIOD = 200_000_000
STEP = 2 * FAR / FOCAL  # [m], two pixels


def pose(x):
    T = np.eye(4)
    T[0, 3] = x
    return T


def wall(x, error=0, hole=False):
    """What a camera at ``x`` [m] sees of a wall with a ramp of grey that is off by ``error``."""
    place = x + (np.arange(SIZE) + 0.5 - SIZE / 2) * FAR / FOCAL
    grey = np.broadcast_to(128 + 200 * place + error, (SIZE, SIZE))
    mask = np.ones((SIZE, SIZE), bool)
    if hole:
        mask[8:16, 8:16] = False
    return ConditionMap(
        image=np.repeat(grey[..., None].round().astype(np.uint8), 3, 2) * mask[..., None],
        mask=mask,
        depth=np.where(mask, np.float32(FAR), np.float32(0)),
        view=np.where(mask, 1, -1).astype(np.int8),
        camera=CAMERA,
    )


def follow(memory, maps, step=STEP, period=PERIOD):
    return [
        memory(condition, pose(i * step), (i + 1) * period, "world")
        for i, condition in enumerate(maps)
    ]


def test_errors_that_change_from_frame_to_frame_average_out():
    errors = [12, -12, 12, -12]
    out = follow(MapMemory(4), [wall(i * STEP, error) for i, error in enumerate(errors)])
    for i, means in enumerate(np.cumsum(errors) / np.arange(1, 5)):
        inner = (out[i].image.astype(float) - wall(i * STEP).image)[2:-2, 8:-8]
        np.testing.assert_allclose(inner, means, atol=1.6)
        assert out[i].mask.all() and (out[i].view == 1).all()
        np.testing.assert_allclose(out[i].depth, FAR, rtol=1e-4)
    # The side that has just come into sight was seen once.
    np.testing.assert_allclose(out[3].image[:, -1], wall(3 * STEP, errors[3]).image[:, -1], atol=1)


def test_depth_is_averaged_too():
    maps = [wall(0.0), replace(wall(0.0), depth=np.full((SIZE, SIZE), 0.54, np.float32))]
    out = follow(MapMemory(), maps, step=0.0)
    np.testing.assert_allclose(out[1].depth, np.sqrt(0.5 * 0.54), rtol=1e-3)


def test_the_average_is_over_so_many_frames():
    maps = [wall(0.0, 16), *[wall(0.0)] * 3]
    two, four = follow(MapMemory(2), maps, 0.0), follow(MapMemory(4), maps, 0.0)
    truth = wall(0.0).image.astype(float)
    assert (two[3].image - truth)[10, 10, 0] == pytest.approx(16 / 2**3, abs=0.6)
    assert (four[3].image - truth)[10, 10, 0] == pytest.approx(16 / 4, abs=0.6)
    assert follow(MapMemory(1), maps, 0.0)[3] is maps[3]


def test_what_was_seen_twice_is_remembered_in_holes_but_not_measured():
    memory = MapMemory()
    out = follow(memory, [wall(i * STEP, hole=i >= 2) for i in range(4)])
    for i in (2, 3):
        hole = np.zeros((SIZE, SIZE), bool)
        hole[8:16, 8:16] = True
        assert out[i].mask.all()
        assert (out[i].view[hole] == REMEMBERED_VIEW).all() and (out[i].view[~hole] == 1).all()
        assert not out[i].measured[hole].any() and out[i].measured[~hole].all()
        expected = wall(i * STEP).image[hole].astype(float)
        np.testing.assert_allclose(out[i].image[hole], expected, atol=6)
        np.testing.assert_allclose(out[i].depth[hole], FAR, rtol=1e-3)
    # Two seconds after it was last seen it is forgotten.
    late = [
        memory(wall(4 * STEP, hole=True), pose(4 * STEP), (5 + k) * PERIOD, "world")
        for k in range(10)
    ]
    covered = [m.mask.all() for m in late]
    assert covered[0] and not covered[-1]
    assert covered.index(False) == 8  # last seen at 0.4 s


def test_once_is_not_enough_to_fill_holes():
    out = follow(MapMemory(), [wall(0.0), wall(STEP, hole=True)])
    assert not out[1].mask[8:16, 8:16].any() and (out[1].image[8:16, 8:16] == 0).all()


def test_what_moved_is_left_as_it_is():
    other = wall(0.0)
    image = other.image.copy()
    image[4:12, 4:12] = (255, 0, 0)
    depth = other.depth.copy()
    depth[20:28, 4:12] = 0.4
    changed = replace(other, image=image, depth=depth)
    out = follow(MapMemory(), [wall(0.0, 10), changed], step=0.0)
    np.testing.assert_array_equal(out[1].image[4:12, 4:12], image[4:12, 4:12])
    np.testing.assert_array_equal(out[1].image[20:28, 4:12], image[20:28, 4:12])
    np.testing.assert_array_equal(out[1].depth[20:28, 4:12], depth[20:28, 4:12])
    assert (out[1].image[16, 16] > image[16, 16]).all()


@pytest.mark.parametrize(
    "change",
    [
        {"stamp_ns": 2 * PERIOD + 600_000_000},
        {"stamp_ns": PERIOD},
        {"stamp_ns": 2 * PERIOD},
        {"world": "another"},
        {"camera": CameraModel(CAMERA.K * [[1.1], [1.1], [1]], SIZE, SIZE)},
    ],
    ids=["gap", "back", "again", "world", "camera"],
)
def test_memory_ends(change):
    memory = MapMemory()
    follow(memory, [wall(0.0, 20), wall(0.0, 20)], step=0.0)
    given = replace(wall(0.0), camera=change.pop("camera", CAMERA))
    now = {"stamp_ns": 3 * PERIOD, "world": "world", **change}
    out = memory(given, pose(0.0), **now)
    np.testing.assert_array_equal(out.image, given.image)


def test_the_reconstructor_remembers():
    torch.manual_seed(0)
    model = Stage1Model(TINY)
    first = frame()
    later = replace(first, stamp_ns=first.stamp_ns + PERIOD)
    darker = replace(
        later, views=tuple(replace(v, image=v.image // 2 + v.image // 4) for v in later.views)
    )
    maps = []
    for frames in (1, 4):
        reconstructor = Reconstructor(
            model,
            config=ReconstructorConfig(
                memory_frames=frames, edge_threshold=1.0, min_confidence=0.0
            ),
        )
        reconstructor(first)
        maps.append(reconstructor(darker).condition)
    single, averaged = maps
    drawn = single.mask & averaged.mask
    assert drawn.any()
    assert averaged.image[drawn].mean() > single.image[drawn].mean() + 1
