from __future__ import annotations

import itertools

import pytest

from wristworld_ros.data.simulation.objects import HELD_OUT_OBJECTS, TRAIN_OBJECTS
from wristworld_ros.data.simulation.robots import get_robot
from wristworld_ros.data.simulation.splits import FRONT_SECTORS, SPLITS, get_split
from wristworld_ros.data.simulation.textures import HELD_OUT_FAMILY, TRAIN_FAMILY
from wristworld_ros.errors import InvalidInputError


def test_the_splits_of_the_data_plan_exist():
    assert list(SPLITS) == [
        "train",
        "val",
        "test-iid",
        "test-objects",
        "test-cameras",
        "test-mount",
        "test-robot",
        "test-all",
    ]
    assert (SPLITS["train"].first_seed, SPLITS["train"].last_seed) == (0, 99_999)


def test_seed_ranges_are_disjoint():
    for a, b in itertools.combinations(SPLITS.values(), 2):
        assert a.last_seed < b.first_seed or b.last_seed < a.first_seed, (a.name, b.name)


@pytest.mark.parametrize("split", SPLITS.values(), ids=lambda s: s.name)
def test_seed_out_of_range_is_refused_and_the_range_named(split):
    split.check_seed(split.first_seed)
    split.check_seed(split.last_seed)
    for seed in (split.first_seed - 1, split.last_seed + 1):
        with pytest.raises(InvalidInputError, match=f"{split.first_seed} to {split.last_seed}"):
            split.check_seed(seed)


def test_training_alternates_between_two_robots():
    train = get_split("train")
    assert [train.robot_of(seed) for seed in range(4)] == ["panda_2f85", "panda"] * 2


def test_each_test_split_changes_one_factor():
    reference = SPLITS["train"]
    changed = {
        name: {
            "robots": split.robots != reference.robots,
            "cameras": split.sectors != FRONT_SECTORS,
            "objects": split.held_out_objects,
            "textures": split.held_out_textures,
            "mount": split.moved_mount,
        }
        for name, split in SPLITS.items()
    }
    names = {name: {k for k, v in factors.items() if v} for name, factors in changed.items()}
    assert names == {
        "train": set(),
        "val": set(),
        "test-iid": set(),
        "test-objects": {"objects", "textures"},
        "test-cameras": {"cameras"},
        "test-mount": {"mount"},
        "test-robot": {"robots"},
        "test-all": {"robots", "cameras", "objects", "textures", "mount"},
    }


def test_objects_and_textures_are_held_out():
    train = {kind.name for kind in TRAIN_OBJECTS}
    held_out = {kind.name for kind in HELD_OUT_OBJECTS}
    assert len(train) == len(TRAIN_OBJECTS) == 42
    assert len(held_out) == len(HELD_OUT_OBJECTS) >= 12
    assert not train & held_out
    assert not set(TRAIN_FAMILY) & set(HELD_OUT_FAMILY)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(InvalidInputError, match="test-cameras"):
        get_split("test-camera")
    with pytest.raises(InvalidInputError, match="ur5e"):
        get_robot("ur10")
