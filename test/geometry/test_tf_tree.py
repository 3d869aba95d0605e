"""TransformTree: lookups, interpolation, and refusal of what is not a tree of rigid transforms."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation, Slerp

from wristworld_ros.errors import CalibrationError, InvalidInputError, TransformLookupError
from wristworld_ros.geometry.tf_tree import TransformTree

SECOND = 1_000_000_000


def rigid(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    T = np.eye(4)
    T[:3, :3] = Rotation.from_quat(rng.normal(size=4)).as_matrix()
    T[:3, 3] = rng.uniform(-2, 2, 3)
    return T


seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None, max_examples=60)
@given(seeds, seeds, seeds)
def test_lookup_composes_along_the_chain_and_across_branches(a, b, c):
    tree = TransformTree()
    T_base_arm, T_arm_hand, T_base_camera = rigid(a), rigid(b), rigid(c)
    tree.set_transform("base", "arm", 0, T_base_arm, static=True)
    tree.set_transform("arm", "hand", 0, T_arm_hand, static=True)
    tree.set_transform("base", "camera", 0, T_base_camera, static=True)

    assert np.allclose(tree.lookup("base", "hand", 5), T_base_arm @ T_arm_hand, atol=1e-12)
    expected = np.linalg.inv(T_base_camera) @ T_base_arm @ T_arm_hand
    assert np.allclose(tree.lookup("camera", "hand", 5), expected, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(seeds, seeds)
def test_lookup_of_the_reverse_is_the_inverse(a, b):
    tree = TransformTree()
    tree.set_transform("base", "x", 0, rigid(a), static=True)
    tree.set_transform("base", "y", 0, rigid(b), static=True)
    product = tree.lookup("x", "y", 0) @ tree.lookup("y", "x", 0)
    assert np.allclose(product, np.eye(4), atol=1e-12)
    assert np.allclose(tree.lookup("x", "x", 0), np.eye(4))


@settings(deadline=None, max_examples=60)
@given(seeds, seeds, st.floats(0, 1))
def test_interpolation_is_linear_and_slerp(a, b, fraction):
    T0, T1 = rigid(a), rigid(b)
    tree = TransformTree()
    tree.set_transform("base", "hand", 0, T0)
    tree.set_transform("base", "hand", SECOND, T1)
    stamp = round(fraction * SECOND)
    got = tree.lookup("base", "hand", stamp)

    between = Slerp([0, SECOND], Rotation.from_matrix([T0[:3, :3], T1[:3, :3]]))(stamp)
    angle = (Rotation.from_matrix(got[:3, :3]).inv() * between).magnitude()
    # Half turns have two shortest ways.
    turn = (Rotation.from_matrix(T0[:3, :3]).inv() * Rotation.from_matrix(T1[:3, :3])).magnitude()
    assert angle < 1e-5 or turn > np.pi - 1e-3
    expected = T0[:3, 3] + (T1[:3, 3] - T0[:3, 3]) * stamp / SECOND
    assert np.allclose(got[:3, 3], expected, atol=1e-9)
    assert np.allclose(got[:3, :3] @ got[:3, :3].T, np.eye(3), atol=1e-9)


@settings(deadline=None, max_examples=60)
@given(seeds, seeds)
def test_samples_are_returned_as_they_came(a, b):
    tree = TransformTree()
    tree.set_transform("base", "hand", 10, rigid(a))
    tree.set_transform("base", "hand", 20, rigid(b))
    assert np.allclose(tree.lookup("base", "hand", 10), rigid(a), atol=1e-14)
    assert np.allclose(tree.lookup("base", "hand", 20), rigid(b), atol=1e-14)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=12, unique=True), seeds)
def test_order_of_arrival_does_not_matter(stamps, seed):
    shuffled = stamps.copy()
    random.Random(seed).shuffle(shuffled)
    trees = []
    for order in (sorted(stamps), shuffled):
        tree = TransformTree()
        for stamp in order:
            tree.set_transform("base", "hand", stamp, rigid(stamp))
        trees.append(tree)
    for stamp in np.linspace(min(stamps), max(stamps), 7).astype(int).tolist():
        first, second = (tree.lookup("base", "hand", stamp) for tree in trees)
        assert np.array_equal(first, second)


def test_the_cache_forgets_what_is_too_old_and_counts_what_comes_too_late():
    tree = TransformTree(cache_s=1.0)
    for stamp in (0, SECOND // 2, SECOND, 2 * SECOND):
        tree.set_transform("base", "hand", stamp, rigid(stamp))
    assert tree.time_range("base", "hand") == (SECOND, 2 * SECOND)
    tree.set_transform("base", "hand", SECOND // 4, rigid(1))
    assert tree.too_old == 1
    assert tree.time_range("base", "hand") == (SECOND, 2 * SECOND)


def test_time_range_is_what_all_links_share_and_none_for_static_chains():
    tree = TransformTree()
    tree.set_transform("base", "arm", 10, np.eye(4))
    tree.set_transform("base", "arm", 30, np.eye(4))
    tree.set_transform("arm", "hand", 20, np.eye(4))
    tree.set_transform("arm", "hand", 40, np.eye(4))
    tree.set_transform("hand", "camera", 0, np.eye(4), static=True)
    assert tree.time_range("base", "camera") == (20, 30)
    assert tree.time_range("hand", "camera") is None
    assert np.allclose(tree.lookup("base", "camera", None), np.eye(4))


def test_tolerance_holds_the_last_sample_and_no_longer():
    tree = TransformTree()
    tree.set_transform("base", "hand", SECOND, rigid(1))
    tree.set_transform("base", "hand", 2 * SECOND, rigid(2))
    assert np.allclose(
        tree.lookup("base", "hand", 2 * SECOND + 5 * 10**7, tolerance_s=0.1), rigid(2)
    )
    with pytest.raises(TransformLookupError, match=r"known from 1\.000 s to 2\.000 s; asked for 2"):
        tree.lookup("base", "hand", 2 * SECOND + 2 * 10**8, tolerance_s=0.1)
    with pytest.raises(TransformLookupError, match=r"0\.500 s before that"):
        tree.lookup("base", "hand", SECOND // 2)


def test_unknown_frames_and_separate_trees_are_named():
    tree = TransformTree()
    tree.set_transform("base", "hand", 0, np.eye(4), static=True)
    tree.set_transform("map", "camera", 0, np.eye(4), static=True)
    with pytest.raises(TransformLookupError, match="frame 'wrist' is not in the transform tree"):
        tree.lookup("base", "wrist", 0)
    with pytest.raises(TransformLookupError, match="end at 'base' and 'map'"):
        tree.lookup("hand", "camera", 0)


def test_no_common_time_is_an_error_for_the_newest_lookup():
    tree = TransformTree()
    tree.set_transform("base", "arm", 10, np.eye(4))
    tree.set_transform("arm", "hand", 20, np.eye(4))
    with pytest.raises(TransformLookupError, match="no time in common"):
        tree.lookup("base", "hand", None)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value):
    T = np.eye(4)
    T[0, 3] = value
    with pytest.raises(CalibrationError, match="'base' -> 'hand'"):
        TransformTree().set_transform("base", "hand", 0, T)


def test_what_is_not_a_rotation_is_refused():
    with pytest.raises(CalibrationError, match="not a rotation"):
        TransformTree().set_transform("base", "hand", 0, np.diag([1.1, 1, 1, 1]))
    with pytest.raises(CalibrationError, match="not a rotation"):
        TransformTree().set_transform("base", "hand", 0, np.diag([1.0, 1, -1, 1]))


def test_loops_second_parents_and_mixed_kinds_are_refused():
    tree = TransformTree()
    tree.set_transform("a", "b", 0, np.eye(4), static=True)
    tree.set_transform("b", "c", 0, np.eye(4), static=True)
    with pytest.raises(InvalidInputError, match="closes a loop"):
        tree.set_transform("c", "a", 0, np.eye(4), static=True)
    with pytest.raises(InvalidInputError, match="closes a loop"):
        tree.set_transform("d", "d", 0, np.eye(4), static=True)
    with pytest.raises(InvalidInputError, match="has the parent 'b' and is now published"):
        tree.set_transform("a", "c", 0, np.eye(4), static=True)
    with pytest.raises(InvalidInputError, match="as static and as moving"):
        tree.set_transform("a", "b", 0, np.eye(4))
    with pytest.raises(InvalidInputError, match="name is empty"):
        tree.set_transform("", "b", 0, np.eye(4))
    assert tree.frames == ["a", "b", "c"]


def test_clear_keeps_static_transforms():
    tree = TransformTree()
    tree.set_transform("base", "hand", 0, np.eye(4))
    tree.set_transform("hand", "camera", 0, rigid(3), static=True)
    tree.clear()
    assert tree.frames == ["camera", "hand"]
    assert np.allclose(tree.lookup("hand", "camera", 7), rigid(3))


def test_a_new_static_transform_replaces_the_old_one():
    tree = TransformTree()
    tree.set_transform("base", "camera", 0, rigid(1), static=True)
    tree.set_transform("base", "camera", 5, rigid(2), static=True)
    assert np.allclose(tree.lookup("base", "camera", 0), rigid(2))
