"""FrameSynchronizer: which frames come together, and why the others do not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wristworld_ros.data.sync import DROP_CAUSES, FrameSynchronizer
from wristworld_ros.errors import InvalidInputError

MS = 1_000_000


def causes(**counts: int) -> dict[str, int]:
    return {cause: counts.get(cause, 0) for cause in DROP_CAUSES}


def test_one_camera_passes_straight_through():
    sync = FrameSynchronizer(["a"], slop_s=0.0)
    [synced] = sync.push("a", 7 * MS, "x")
    assert (synced.stamp_ns, dict(synced.payloads), synced.spread_s) == (7 * MS, {"a": "x"}, 0.0)


def test_a_set_leaves_when_its_last_camera_arrives_with_the_first_cameras_stamp():
    sync = FrameSynchronizer(["a", "b", "c"], slop_s=0.02)
    assert sync.push("c", 105 * MS, "c0") == []
    assert sync.push("a", 100 * MS, "a0") == []
    assert sync.missing() == ["b"]
    [synced] = sync.push("b", 110 * MS, "b0")
    assert synced.stamp_ns == 100 * MS
    assert list(synced.payloads.items()) == [("a", "a0"), ("b", "b0"), ("c", "c0")]
    assert synced.spread_s == pytest.approx(0.01)
    assert sync.missing() == []
    assert sync.drops == causes()


def test_a_lost_frame_of_one_camera_makes_its_partner_unmatched():
    sync = FrameSynchronizer(["a", "b"], slop_s=0.02)
    stamps = []
    for stamp in (0, 100, 200):
        stamps += [s.stamp_ns for s in sync.push("a", stamp * MS, None)]
        if stamp != 100:
            stamps += [s.stamp_ns for s in sync.push("b", (stamp + 5) * MS, None)]
    assert stamps == [0, 200 * MS]
    assert sync.drops == causes(unmatched=1)
    assert sync.drops_by_camera["a"]["unmatched"] == 1


def test_the_closest_frame_is_taken_when_it_is_already_there():
    sync = FrameSynchronizer(["a", "b"], slop_s=0.05)
    sync.push("a", 0, "far")
    sync.push("a", 33 * MS, "near")
    [synced] = sync.push("b", 40 * MS, "b")
    assert synced.payloads["a"] == "near"
    assert sync.drops == causes(superseded=1)


def test_superseding_never_loses_a_set_that_was_possible():
    sync = FrameSynchronizer(["a", "b", "c"], slop_s=0.05)
    sync.push("a", 0, "a0")
    sync.push("a", 70 * MS, "a1")
    sync.push("b", 40 * MS, "b0")
    [synced] = sync.push("c", 5 * MS, "c0")
    assert dict(synced.payloads) == {"a": "a0", "b": "b0", "c": "c0"}


def test_slop_is_inclusive_and_offsets_are_added():
    sync = FrameSynchronizer(["a", "b"], slop_s=0.01, offsets_s={"b": -0.03})
    sync.push("a", 100 * MS, None)
    [synced] = sync.push("b", 140 * MS, None)
    assert dict(synced.stamps_ns) == {"a": 100 * MS, "b": 140 * MS}
    assert synced.spread_s == pytest.approx(0.01)
    sync.push("a", 200 * MS, None)
    assert sync.push("b", 241 * MS, None) == []


def test_repeated_and_older_stamps_are_not_monotonic():
    sync = FrameSynchronizer(["a", "b"], slop_s=0.01)
    sync.push("a", 100 * MS, None)
    sync.push("a", 100 * MS, None)
    sync.push("a", 50 * MS, None)
    assert sync.drops == causes(non_monotonic=2)


def test_a_jump_back_in_time_starts_over():
    sync = FrameSynchronizer(["a", "b"], slop_s=0.01)
    sync.push("a", 5000 * MS, "old")
    sync.push("a", 100 * MS, "new")
    assert sync.drops == causes(time_jump=1)
    [synced] = sync.push("b", 100 * MS, "b")
    assert synced.payloads["a"] == "new"


def test_memory_is_bounded_and_a_late_partner_is_told_apart():
    sync = FrameSynchronizer(["a", "b"], slop_s=0.01, buffer_size=2)
    for i in range(4):
        sync.push("a", i * 100 * MS, i)
    assert sync.waiting == {"a": 2, "b": 0}
    assert sync.drops == causes(unmatched=2)
    assert sync.push("b", 100 * MS, "its partner is gone") == []
    assert sync.drops == causes(unmatched=2, late=1)
    [synced] = sync.push("b", 200 * MS, "in time")
    assert synced.payloads["a"] == 2


def test_finish_counts_what_waits():
    sync = FrameSynchronizer(["a", "b"])
    sync.push("a", 0, None)
    sync.finish()
    assert sync.drops == causes(unmatched=1)
    assert sync.waiting == {"a": 0, "b": 0}


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"cameras": []}, "at least one"),
        ({"cameras": ["a", "a"]}, "names unique"),
        ({"cameras": ["a"], "offsets_s": {"b": 1.0}}, r"\['b'\]"),
        ({"cameras": ["a"], "slop_s": -0.1}, "slop of -0.1"),
        ({"cameras": ["a"], "slop_s": float("nan")}, "slop of nan"),
        ({"cameras": ["a"], "buffer_size": 0}, "buffer of 0"),
    ],
)
def test_impossible_settings_are_named(arguments, text):
    with pytest.raises(InvalidInputError, match=text):
        FrameSynchronizer(**arguments)


def test_an_unknown_camera_is_an_error():
    with pytest.raises(InvalidInputError, match="camera 'z' is not one of"):
        FrameSynchronizer(["a"]).push("z", 0, None)


arrivals = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 3000)), min_size=1, max_size=60
)


@settings(deadline=None, max_examples=60)
@given(arrivals, st.integers(0, 50), st.integers(1, 5))
def test_every_frame_is_in_one_set_or_counted_once(frames, slop_ms, buffer_size):
    sync = FrameSynchronizer("abc", slop_s=slop_ms / 1e3, buffer_size=buffer_size)
    sets = []
    for camera, stamp in frames:
        sets += sync.push(camera, stamp * MS, (camera, stamp))
        assert max(sync.waiting.values()) <= buffer_size
    sync.finish()
    assert 3 * len(sets) + sum(sync.drops.values()) == len(frames)
    assert sync.emitted == len(sets)
    for synced in sets:
        stamps = list(synced.stamps_ns.values())
        assert max(stamps) - min(stamps) <= slop_ms * MS
        assert all(synced.payloads[c] == (c, s // MS) for c, s in synced.stamps_ns.items())
