"""Tiny VGGT and Depth Anything 3 in the place of stage 1's own network."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from wristworld_ros.errors import CalibrationError, InvalidInputError, WeightsError
from wristworld_ros.geometry.camera import rectify
from wristworld_ros.geometry.transforms import from_quaternion, invert
from wristworld_ros.reconstruction.depth_anything3 import (
    PRESETS,
    DepthAnything3,
    DepthAnything3Predictor,
)
from wristworld_ros.reconstruction.model import SceneOutput
from wristworld_ros.reconstruction.pretrained_backbone import PretrainedBackbone
from wristworld_ros.reconstruction.vggt import PRESETS as VGGT_PRESETS
from wristworld_ros.reconstruction.vggt import Vggt, VggtPredictor
from wristworld_ros.types import AnchorFrame, AnchorView, CameraModel

sys.path.insert(0, str(Path(__file__).parent))

from seeded import images, seed_weights

SCALE = 1.7
WORLD = from_quaternion([0.5, -0.2, 0.9], [1, 0, 0, 0])  # pose of the first anchor
WRIST = CameraModel.from_fov(1.2, 64, 48)


def seeded(network):
    network = network.eval().requires_grad_(False)
    seed_weights(network)
    return network


@pytest.fixture(scope="module")
def vggt():
    return VggtPredictor(seeded(Vggt(VGGT_PRESETS["vggt-tiny"])), 70)


@pytest.fixture(scope="module")
def da3():
    return DepthAnything3Predictor(seeded(DepthAnything3(PRESETS["da3-tiny"])), 70)


def pictures(views=2, height=42, width=70):
    x = (images(1, views, height, width)[0] * 255).round().byte()
    return [np.ascontiguousarray(p.permute(1, 2, 0).numpy()) for p in x]


def bare(shown, **changes):
    views = tuple(AnchorView(f"camera_{i}", p, 7) for i, p in enumerate(shown))
    return AnchorFrame(7, views, **changes)


def told(frame, prediction, *, depth=False, cameras=False):
    """The frame with truth that is the prediction times ``SCALE``, in a base frame."""
    views = []
    for i, view in enumerate(frame.views):
        values = {}
        if depth:
            values["depth"] = (prediction.depth[0, i] * SCALE).numpy().astype(np.float32)
        if cameras:
            T = invert(prediction.T_camera_first[0, i].double().numpy())
            U, _, Vt = np.linalg.svd(T[:3, :3])
            T[:3, :3], T[:3, 3] = U @ Vt, T[:3, 3] * SCALE
            K = prediction.K[0, i].double().numpy()
            values["camera"] = CameraModel(K, view.image.shape[1], view.image.shape[0])
            values["T_world_camera"] = WORLD @ T
        views.append(dataclasses.replace(view, **values))
    return dataclasses.replace(frame, views=tuple(views))


def as_tensor(shown):
    return torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)[None].float() / 255


def test_calibrated_anchors_make_vggt_metric(vggt):
    shown = pictures()
    prediction = vggt(as_tensor(shown))
    backbone = PretrainedBackbone(vggt, name="vggt-tiny")
    frame = told(bare(shown), prediction, cameras=True)
    result = backbone(frame)
    assert result.scale == pytest.approx(SCALE, rel=1e-4) and result.source == "extrinsics"
    torch.testing.assert_close(result.scene.depth, prediction.depth * SCALE, rtol=1e-4, atol=0)
    torch.testing.assert_close(result.scene.confidence, prediction.confidence)
    for i, view in enumerate(frame.views):
        np.testing.assert_allclose(result.scene.T_base_anchor[0, i], view.T_world_camera, atol=1e-6)
        expected = view.camera.resized(140, 84).K  # of twice the depth's 70 x 42
        np.testing.assert_allclose(result.scene.anchor_K[0, i], expected, rtol=1e-6)
    again = backbone.predict_scene(frame)
    assert isinstance(again, SceneOutput)
    torch.testing.assert_close(again.depth, result.scene.depth)


def test_measured_depth_makes_uncalibrated_vggt_metric(vggt):
    shown = pictures(3)
    prediction = vggt(as_tensor(shown))
    result = PretrainedBackbone(vggt, name="vggt-tiny")(told(bare(shown), prediction, depth=True))
    assert result.scale == pytest.approx(SCALE, rel=1e-4) and result.source == "depth"
    expected = prediction.T_camera_first[0].double().inverse()
    expected[:, :3, 3] *= SCALE
    np.testing.assert_allclose(result.scene.T_base_anchor[0], expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(
        result.scene.anchor_K[0, :, :2], 2 * prediction.K[0, :, :2], rtol=1e-5
    )


def test_known_cameras_guide_depth_anything(da3):
    shown = pictures()
    free = da3(as_tensor(shown))
    frame = told(bare(shown), free, depth=True, cameras=True)
    T = torch.from_numpy(np.stack([invert(v.T_world_camera) for v in frame.views]))[None].float()
    guided = da3(as_tensor(shown), T, free.K)
    backbone = PretrainedBackbone(da3, name="da3-tiny")
    result = backbone(frame)
    # The shape of the depth is that of the guided prediction.
    ratio = result.scene.depth / guided.depth
    torch.testing.assert_close(ratio, torch.full_like(ratio, result.scale), rtol=1e-4, atol=0)
    assert float((free.depth / guided.depth).std()) > 1e-3
    # Without calibration nothing guides it.
    alone = PretrainedBackbone(da3, name="da3-tiny")(told(bare(shown), free, depth=True))
    assert alone.scale == pytest.approx(SCALE, rel=1e-4)
    torch.testing.assert_close(alone.scene.depth, SCALE * free.depth, rtol=1e-4, atol=0)


def test_large_pictures_are_seen_at_the_network_s_size(vggt):
    shown = pictures(2, 90, 131)
    wall = np.ones((90, 131), np.float32)
    first, second = bare(shown).views
    camera = CameraModel.from_fov(0.8, 131, 90)
    frame = AnchorFrame(7, (dataclasses.replace(first, depth=wall, camera=camera), second))
    scene = PretrainedBackbone(vggt, name="vggt-tiny")(frame).scene
    assert scene.depth.shape == scene.confidence.shape == (1, 2, 42, 70)
    assert float(scene.depth[0, 0].median()) == pytest.approx(1, rel=0.05)
    np.testing.assert_allclose(scene.anchor_K[0, 0], camera.resized(140, 84).K, rtol=1e-6)
    np.testing.assert_allclose(scene.anchor_K[0, 1, :2, 2], [70, 42])


def test_lens_distortion_is_removed_first(vggt):
    shown = pictures()
    first, second = told(bare(shown), vggt(as_tensor(shown)), depth=True, cameras=True).views
    bent = CameraModel(first.camera.K, 70, 42, "plumb_bob", (-0.3, 0.1, 0.0, 0.0))
    frame = AnchorFrame(7, (dataclasses.replace(first, camera=bent, depth=None), second))
    straight = vggt(as_tensor([rectify(shown[0], bent)[0], shown[1]]))
    assert float((straight.depth / vggt(as_tensor(shown)).depth - 1).abs().max()) > 1e-3
    result = PretrainedBackbone(vggt, name="vggt-tiny")(frame)
    torch.testing.assert_close(result.scene.depth, straight.depth * result.scale)
    np.testing.assert_allclose(result.scene.anchor_K[0, 0], bent.resized(140, 84).K, rtol=1e-6)


def test_uncalibrated_anchors_without_a_source_are_refused(vggt):
    backbone = PretrainedBackbone(vggt, name="vggt-tiny")
    with pytest.raises(CalibrationError, match=r"no metric scale, and none is guessed.*use_depth"):
        backbone(bare(pictures()))
    # With a scale but without a place in the base frame, there is no wrist view either.
    shown = pictures()
    metric = told(bare(shown), vggt(as_tensor(shown)), depth=True)
    with pytest.raises(CalibrationError, match=r"where they are in the robot's base.*'camera_1'"):
        backbone.predict_scene(metric)


def test_pictures_of_the_wrist_are_one_more_view(vggt):
    shown = pictures(3)
    backbone = PretrainedBackbone(vggt, name="vggt-tiny")
    state = backbone.observe_wrist(bare(shown[:2]), shown[2], np.eye(4))
    assert state == "1 of 12 pictures of the wrist camera so far."
    with pytest.raises(InvalidInputError, match="picture of the wrist camera: got float"):
        backbone.observe_wrist(bare(shown[:2]), shown[2] / 255, np.eye(4))
    with pytest.raises(InvalidInputError, match="1 to 8 views"):
        backbone.observe_wrist(bare(pictures(8)), shown[2], np.eye(4))


def test_sources_that_need_a_wrist_head_are_refused(vggt):
    backbone = PretrainedBackbone(vggt, name="vggt-1b")
    for source in ("learned", "fused"):
        with pytest.raises(InvalidInputError, match=f"'{source}' needs a wrist head.*'vggt-1b'"):
            backbone.check_source(source)
    backbone.check_source("auto")
    backbone.check_source("kinematic")


def test_frames_that_lack_the_wrist_are_refused_before_the_network_runs(vggt):
    shown = pictures()
    backbone = PretrainedBackbone(vggt, name="vggt-1b")
    calibrated = told(bare(shown), vggt(as_tensor(shown)), cameras=True)
    with pytest.raises(CalibrationError, match=r"estimate the wrist camera's pose by kin.*TF of"):
        backbone.check_frame(calibrated, WRIST)
    known = dataclasses.replace(calibrated, T_world_wrist=WORLD)
    with pytest.raises(CalibrationError, match=r"estimate its field of view .*wrist_fov_y"):
        backbone.check_frame(known, None)
    backbone.check_frame(known, WRIST)
    with pytest.raises(CalibrationError, match=r"\['camera_0', 'camera_1'\] have no camera_info"):
        backbone.check_frame(bare(shown, T_world_wrist=WORLD), WRIST)
    assert backbone.geometry.restarts == 0


@pytest.mark.parametrize(
    ("name", "prefix", "build"),
    [
        ("vggt-tiny", "", lambda: Vggt(VGGT_PRESETS["vggt-tiny"])),
        ("da3-tiny", "model.", lambda: DepthAnything3(PRESETS["da3-tiny"])),
    ],
)
def test_published_files_are_loaded(tmp_path, name, prefix, build):
    network = seeded(build())
    path = tmp_path / "model.safetensors"
    save_file({prefix + k: v.clone() for k, v in network.state_dict().items()}, path)
    backbone = PretrainedBackbone.from_file(name, path, long_side=70)
    shown = pictures()
    predictor = VggtPredictor if name == "vggt-tiny" else DepthAnything3Predictor
    expected = predictor(network, 70)(as_tensor(shown))
    result = backbone(told(bare(shown), expected, depth=True))
    assert result.scale == pytest.approx(SCALE, rel=1e-4)
    assert len(backbone.sha256) == 64 and backbone.name == name


def test_files_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(InvalidInputError, match="no backbone 'vggt-2b'; there are mini, vggt-1b"):
        PretrainedBackbone.from_file("vggt-2b", tmp_path / "model.pt")
    with pytest.raises(InvalidInputError, match="'da3-base' needs its published weights"):
        PretrainedBackbone.from_file("da3-base", "")
    with pytest.raises(WeightsError, match="no weights at"):
        PretrainedBackbone.from_file("vggt-1b", tmp_path / "model.pt")
