"""The calibration file: what goes in comes out, and what cannot be is refused by name."""

import numpy as np
import pytest
import yaml

from wristworld_ros.errors import CalibrationError
from wristworld_ros.geometry.transforms import from_quaternion
from wristworld_ros.reconstruction.calibration_file import (
    PlacedCamera,
    StationCalibration,
    load_calibration,
    save_calibration,
)
from wristworld_ros.types import CameraModel

K = np.array([[210.5, 0, 128.25], [0, 211.5, 127.5], [0, 0, 1]])
MOUNT = from_quaternion([0.071, -1e-5, 0.03], [0.5, -0.5, 0.5, 0.5])
COVARIANCE = np.diag([1e-6, 2e-6, 3e-6, 1e-5, 1e-5, 1e-7])
COVARIANCE[0, 4] = COVARIANCE[4, 0] = 1.234567e-6
STATION = StationCalibration(
    mount=MOUNT,
    wrist_camera=CameraModel.from_fov(1.1, 128, 128),
    cameras={
        "front": PlacedCamera(
            CameraModel(K, 256, 256, "plumb_bob", (0.1, -0.2, 1e-4, 0, 0.05)),
            from_quaternion([1, 0.2, 0.6], [0.6, 0, 0, 0.8]),
        ),
        "left": PlacedCamera(None, np.eye(4)),
    },
    covariances={"mount": COVARIANCE, "front": 4 * COVARIANCE},
    residuals={"front_rms_px": 0.75},
    base_frame="panda_link0",
    hand_frame="panda_hand",
    made="by hand, 2026-11-25",
)


def test_a_station_survives_saving_and_loading(tmp_path):
    path = tmp_path / "new" / "station.yaml"
    save_calibration(path, STATION)
    loaded = load_calibration(path)
    np.testing.assert_allclose(loaded.mount, MOUNT, atol=1e-11)
    assert loaded.wrist_camera is not None
    np.testing.assert_allclose(loaded.wrist_camera.K, STATION.wrist_camera.K, rtol=1e-11)
    assert list(loaded.cameras) == ["front", "left"]
    front = loaded.cameras["front"]
    np.testing.assert_allclose(front.T_base_camera, STATION.cameras["front"].T_base_camera)
    np.testing.assert_allclose(front.camera.K, K)
    assert front.camera.D == (0.1, -0.2, 1e-4, 0, 0.05)
    assert loaded.cameras["left"].camera is None
    np.testing.assert_allclose(loaded.covariances["mount"], COVARIANCE, rtol=1e-11)
    np.testing.assert_allclose(loaded.covariances["front"], 4 * COVARIANCE, rtol=1e-11)
    assert loaded.residuals == {"front_rms_px": 0.75}
    assert (loaded.base_frame, loaded.hand_frame) == ("panda_link0", "panda_hand")
    assert loaded.made == "by hand, 2026-11-25"
    assert [p.name for p in path.parent.iterdir()] == ["station.yaml"]


def test_what_is_not_known_stays_so(tmp_path):
    save_calibration(tmp_path / "c.yaml", StationCalibration())
    loaded = load_calibration(tmp_path / "c.yaml")
    assert loaded.mount is None
    assert loaded.wrist_camera is None
    assert loaded.cameras == {}


def test_the_file_can_be_read_by_a_person(tmp_path):
    save_calibration(tmp_path / "c.yaml", STATION)
    text = (tmp_path / "c.yaml").read_text()
    assert "translation: [0.071, -1.0e-05, 0.03]" in text
    assert "quaternion_xyzw: [0.5, -0.5, 0.5, 0.5]" in text
    assert "pixel centres at integer + 0.5" in text


def _set(document, keys, value):
    for key in keys[:-1]:
        document = document[key]
    document[keys[-1]] = value


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["format"], 2, "format is 2"),
        (["mount"], {}, "unknown keys \\['mount'\\]"),
        (["T_hand_wrist"], {"translation": [0, 0, 0]}, "'T_hand_wrist' lacks .'quaternion_xyzw'"),
        (["T_hand_wrist", "quaternion_xyzw"], [0, 0, 0, 2], "T_hand_wrist.*norm 2"),
        (["T_hand_wrist", "translation"], ["a", 0, 0], "T_hand_wrist.translation.*need numbers"),
        (["T_hand_wrist", "translation"], [float("nan"), 0, 0], "T_hand_wrist.*finite"),
        (["cameras", "front", "intrinsics", "K"], [1, 2], "cameras.front.intrinsics.K.*shape"),
        (["cameras", "front", "intrinsics", "width"], 0, "cameras.front.intrinsics.*0 x 256"),
        (["cameras", "front", "intrinsics", "D"], [1, 2], "takes \\(4, 5\\)"),
        (["covariances", "mount"], np.diag([1.0] * 5 + [-1]).tolist(), "eigenvalue -1"),
        (["covariances", "rear"], np.eye(6).tolist(), "'rear': there is no pose"),
        (["residuals", "front_rms_px"], float("inf"), "front_rms_px.*inf"),
        (["cameras"], [1], "'cameras' is \\[1\\]"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, keys, value, message):
    path = tmp_path / "c.yaml"
    save_calibration(path, STATION)
    document = yaml.safe_load(path.read_text())
    _set(document, keys, value)
    path.write_text(yaml.safe_dump(document))
    with pytest.raises(CalibrationError, match=message) as error:
        load_calibration(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [", "just words"])
def test_other_files_are_refused(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(CalibrationError, match=r"c\.yaml"):
        load_calibration(tmp_path / "c.yaml")
    with pytest.raises(CalibrationError, match="absent"):
        load_calibration(tmp_path / "absent.yaml")
