"""Joint states over time."""

from __future__ import annotations

from wristworld_ros.data.joints import JOINT_TOLERANCE_NS, JointHistory

MS = 1_000_000


def test_arm_and_gripper_come_in_messages_of_their_own():
    history = JointHistory()
    for i in range(5):
        history.add(i * 40 * MS, {"arm": float(i)})
    history.add(70 * MS, {"finger": 0.5})
    assert history.at(78 * MS) == {"arm": 2.0, "finger": 0.5}
    assert history.at(161 * MS + JOINT_TOLERANCE_NS) is None
    assert history.at(-JOINT_TOLERANCE_NS) == {"arm": 0.0}


def test_messages_out_of_order_and_of_one_stamp():
    history = JointHistory()
    history.add(50 * MS, {"arm": 2.0})
    history.add(10 * MS, {"arm": 1.0})
    history.add(50 * MS, {"finger": 0.1})
    assert history.at(40 * MS) == {"arm": 2.0, "finger": 0.1}
    assert history.at(20 * MS) == {"arm": 1.0, "finger": 0.1}


def test_old_messages_are_forgotten():
    history = JointHistory(limit=3)
    for i in range(10):
        history.add(i * MS, {"arm": float(i)})
    assert len(history) == 3 and history.at(0, 5 * MS) is None
    assert history.at(0, 20 * MS) == {"arm": 7.0}
