"""Depth Anything 3: published names, agreement with the reference, loading, the predictor."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from wristworld_ros.errors import InvalidInputError, WeightsError
from wristworld_ros.reconstruction.depth_anything3 import (
    PRESETS,
    DepthAnything3,
    DepthAnything3Predictor,
    encode_known,
    load_depth_anything3,
    reference_first,
)
from wristworld_ros.reconstruction.geometry_prediction import fit_images, invert
from wristworld_ros.reconstruction.pose_encoding import decode_pose

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from record_depth_anything3 import CASES, cameras, outputs  # noqa: E402
from seeded import images, sample, seed_weights, unpack_keys  # noqa: E402

EXPECTED = json.loads((HERE / "da3_expected.json").read_text())


@pytest.fixture(scope="module")
def model():
    network = DepthAnything3(PRESETS["da3-tiny"]).eval().requires_grad_(False)
    seed_weights(network)
    return network


@pytest.mark.parametrize(
    ("preset", "count"), [("da3-small", 34_299_463), ("da3-base", 135_366_599)]
)
def test_names_and_shapes_are_the_published_ones(preset, count):
    with torch.device("meta"):
        network = DepthAnything3(PRESETS[preset])
    sections = (HERE / "da3_keys.txt").read_text().split("# ")[1:]
    texts = dict(section.split("\n", 1) for section in sections)
    state = {"model." + k: tuple(v.shape) for k, v in network.state_dict().items()}
    assert state == unpack_keys(texts[preset])
    assert sum(p.numel() for p in network.parameters()) == count


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_reference_implementation(model, case):
    # Recorded by record_depth_anything3.py from ByteDance-Seed/Depth-Anything-3.
    got, expected = outputs(model, case), EXPECTED[str(case)]
    assert set(got) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(sample(got[name]), values, rtol=1e-4, atol=1e-4, err_msg=name)


def test_reference_view_comes_first():
    # Views 1 and 2 are extreme in norm; view 3 lies between them in everything.
    base = torch.tensor([1.0, 0.2, -0.1, 0.3])
    tokens = torch.stack([base * 0.2, base * 3, base * 1.6 + 0.05, base * 2.9 - 0.3])[None]
    order = reference_first(tokens)
    assert sorted(order[0].tolist()) == [0, 1, 2, 3]
    assert order[0].tolist() == [2, 0, 1, 3]


def test_published_file_has_tied_weights_once(model, tmp_path):
    # One norm serves four output layers; safetensors keeps only its first name.
    wrapper = nn.Module()
    wrapper.model = model
    path = tmp_path / "model.safetensors"
    save_model(wrapper, str(path))
    loaded = load_depth_anything3(path, "da3-tiny")
    pictures = images(1, 2, 42, 56)
    torch.testing.assert_close(
        loaded(pictures, rays=True).rays, model(pictures, rays=True).rays, atol=0, rtol=0
    )
    layers = loaded.head.scratch.output_conv2_aux
    assert layers[0][2].weight is layers[3][2].weight


def test_weights_that_do_not_fit_are_refused(model, tmp_path):
    path = tmp_path / "model.safetensors"
    state = {k: v.clone() for k, v in model.state_dict().items()}
    save_file(state, path)
    with pytest.raises(WeightsError, match=r"keys missing \['model.backbone.*unknown \['backbone"):
        load_depth_anything3(path, "da3-tiny")
    save_file({"model." + k: v for k, v in state.items() if k != "cam_dec.fc_t.bias"}, path)
    with pytest.raises(WeightsError, match=r"1 keys missing \['model.cam_dec.fc_t.bias'\], 0 unkn"):
        load_depth_anything3(path, "da3-tiny")
    with pytest.raises(InvalidInputError, match="no Depth Anything 3 preset 'da3-large'"):
        load_depth_anything3(path, "da3-large")


def test_prediction_for_pictures_of_another_size(model):
    pictures = images(1, 4, 90, 131)
    got = DepthAnything3Predictor(model, long_side=70)(pictures)
    inner = model(fit_images(pictures, (42, 70)))
    assert got.points is None and not got.metric
    i, j = 61, 100
    row, column = int((i + 0.5) * 42 / 90), int((j + 0.5) * 70 / 131)
    torch.testing.assert_close(got.depth[:, :, i, j], inner.depth[:, :, row, column])
    assert float(got.confidence.min()) >= 1
    T_world_camera, fov = decode_pose(inner.poses)
    torch.testing.assert_close(
        got.T_camera_first[0, 2] @ invert(T_world_camera)[0, 0],
        invert(T_world_camera)[0, 2],
        atol=1e-5,
        rtol=1e-5,
    )
    torch.testing.assert_close(
        2 * torch.atan(65.5 / got.K[..., 0, 0]), fov[..., 1].clamp(0.05, 3.0)
    )


def test_known_cameras_guide_it_whatever_their_frame_and_unit(model):
    pictures = images(1, 3, 56, 70)
    T, K = cameras(1, 3, 56, 70)
    predict = DepthAnything3Predictor(model, long_side=70)
    free, guided = predict(pictures), predict(pictures, T, K)
    assert float((free.depth - guided.depth).abs().max()) > 0.01
    moved = T @ T[:, 1:2]  # another world
    moved[..., :3, 3] *= 7  # another unit
    torch.testing.assert_close(
        predict(pictures, moved, K).depth, guided.depth, atol=1e-4, rtol=1e-4
    )
    wider = K * torch.tensor([0.5, 0.5, 1.0])[:, None]
    assert float((predict(pictures, T, wider).depth - guided.depth).abs().max()) > 1e-3


def test_known_cameras_are_scaled_by_the_median_distance():
    T, K = cameras(1, 3, 56, 70)
    encoding = encode_known(T, K, 56, 70)
    pose, fov = decode_pose(encoding)
    torch.testing.assert_close(pose[0, 0], torch.eye(4))
    assert float(pose[0, :, :3, 3].norm(dim=-1).median()) == pytest.approx(1)
    torch.testing.assert_close(2 * torch.atan(28 / K[..., 1, 1]), fov[..., 0])


def test_bad_input_is_refused(model):
    predict = DepthAnything3Predictor(model, long_side=70)
    with pytest.raises(InvalidInputError, match="need both T_camera_world and K"):
        predict(images(1, 1, 42, 70), torch.eye(4)[None, None])
    with pytest.raises(InvalidInputError, match="1 to 8 views"):
        predict(torch.zeros(1, 9, 3, 42, 70))
    with pytest.raises(InvalidInputError, match="DepthAnything3Predictor resizes"):
        model(torch.zeros(1, 1, 3, 42, 71))
