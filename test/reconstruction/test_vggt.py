"""VGGT: published names, agreement with the reference, loading, pictures of any size."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from wristworld_ros.errors import InvalidInputError, WeightsError
from wristworld_ros.reconstruction.geometry_prediction import (
    GeometryPrediction,
    fit_images,
    load_published,
    network_size,
)
from wristworld_ros.reconstruction.pose_encoding import decode_pose
from wristworld_ros.reconstruction.vggt import (
    PRESETS,
    Vggt,
    VggtConfig,
    VggtPredictor,
    load_vggt,
)

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from record_vggt import CASES, outputs, queries  # noqa: E402
from seeded import images, sample, seed_weights, unpack_keys  # noqa: E402

EXPECTED = json.loads((HERE / "vggt_expected.json").read_text())


@pytest.fixture(scope="module")
def model():
    vggt = Vggt(PRESETS["vggt-tiny"]).eval().requires_grad_(False)
    seed_weights(vggt)
    return vggt


def test_names_and_shapes_are_those_of_vggt_1b():
    with torch.device("meta"):
        state = Vggt(PRESETS["vggt-1b"]).state_dict()
    published = unpack_keys((HERE / "vggt_1b_keys.txt").read_text())
    assert len(published) == 1797
    assert {k: tuple(v.shape) for k, v in state.items()} == published
    assert sum(v.numel() for v in state.values()) == 1_256_537_516


@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_the_reference_implementation(model, case):
    # Recorded by record_vggt.py from facebookresearch/vggt.
    got = outputs(model, images(*case), queries(case[0], *case[2:]))
    expected = EXPECTED[str(case)]
    assert set(got) == set(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(sample(got[name]), values, rtol=1e-4, atol=1e-4, err_msg=name)


def test_order_of_the_further_views_does_not_matter(model):
    pictures, query = images(1, 4, 56, 70), queries(1, 56, 70)
    order = [0, 3, 1, 2]
    a, b = outputs(model, pictures, query), outputs(model, pictures[:, order], query)
    for name in a:
        torch.testing.assert_close(a[name][:, order], b[name], atol=1e-4, rtol=1e-4)


def test_heads_stay_in_float32_under_autocast(model):
    pictures = images(1, 2, 42, 56)
    exact = model(pictures)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(pictures, queries(1, 42, 56))
    assert rough.depth.dtype == rough.poses[-1].dtype == torch.float32
    assert rough.tracks.points[-1].dtype == torch.float32
    assert 0 < float((rough.depth - exact.depth).abs().max()) < 0.1


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_load_as_published(model, tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(model.state_dict(), path)
    loaded = load_vggt(path, "vggt-tiny")
    pictures = images(1, 2, 28, 42)
    torch.testing.assert_close(loaded(pictures).depth, model(pictures).depth, atol=0, rtol=0)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def renamed(state):
    state["aggregator.camera_tokens"] = state.pop("aggregator.camera_token")


def reshaped(state):
    state["camera_head.embed_pose.bias"] = torch.zeros(5)


def spoilt(state):
    state["camera_head.embed_pose.bias"] = state["camera_head.embed_pose.bias"] * torch.nan


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (renamed, r"1 keys missing \['aggregator.camera_token'\], 1 unknown .*camera_tokens"),
        (reshaped, r"1 of wrong shape \['camera_head.embed_pose.bias \(5,\) for \(64,\)'\]"),
        (spoilt, r"not finite in \['camera_head.embed_pose.bias'\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(model, tmp_path, change, reason):
    state = dict(model.state_dict())
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=reason):
        load_vggt(tmp_path / "model.safetensors", "vggt-tiny")


def test_files_that_are_no_weights_are_refused(model, tmp_path):
    with pytest.raises(WeightsError, match="is missing. Download"):
        load_vggt(tmp_path / "model.pt")
    for name in ("model.pt", "model.safetensors"):
        (tmp_path / name).write_bytes(b"<html>Access to this model is restricted</html>")
        with pytest.raises(WeightsError, match="not a weight file that can be read"):
            load_vggt(tmp_path / name)
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "model.pt")
    with pytest.raises(WeightsError, match="holds more than weights"):
        load_published(tmp_path / "model.pt", model)
    with pytest.raises(InvalidInputError, match="no VGGT preset 'vggt-2b'"):
        load_vggt(tmp_path / "model.pt", "vggt-2b")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((480, 640), (392, 518)),
        ((720, 1280), (294, 518)),  # the size that the WristWorld release works at
        ((1280, 720), (518, 294)),
        ((256, 256), (518, 518)),
        ((3, 900), (14, 518)),
    ],
)
def test_size_for_the_network(size, expected):
    assert network_size(*size, 518, 14) == expected


def test_pictures_are_resized_as_pillow_does():
    picture = (255 * images(1, 1, 90, 131)[0, 0]).round().byte().permute(1, 2, 0).numpy()
    expected = np.asarray(Image.fromarray(picture).resize((70, 42), Image.Resampling.BICUBIC))
    given = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None, None] / 255
    got = fit_images(given, (42, 70))[0, 0].permute(1, 2, 0).numpy() * 255
    assert np.abs(got - expected).max() < 1.01  # it works in 8 bits


def test_prediction_for_pictures_of_another_size(model):
    pictures = images(2, 3, 90, 131)
    got = VggtPredictor(model, long_side=70)(pictures, points=True)
    inner = model(fit_images(pictures, (42, 70)))  # 70 * 90 / 131 is 48: to 42, not 56
    assert got.depth.shape == (2, 3, 90, 131) and not got.metric
    # Nearest pixels: pixel (i, j) of 90 x 131 lies in pixel ((i + .5) 42 / 90, ..) of 42 x 70.
    i, j = 61, 100
    row, column = int((i + 0.5) * 42 / 90), int((j + 0.5) * 70 / 131)
    torch.testing.assert_close(got.depth[:, :, i, j], inner.depth[:, :, row, column])
    torch.testing.assert_close(
        got.confidence[:, :, i, j], inner.depth_confidence[:, :, row, column]
    )
    assert float(got.confidence.min()) >= 1
    # Cameras and points relative to the first camera; both say the same as before.
    T, fov = decode_pose(inner.poses[-1])
    torch.testing.assert_close(got.T_camera_first[:, 0], torch.eye(4).expand(2, 4, 4))
    torch.testing.assert_close(got.T_camera_first @ T[:, :1], T, atol=1e-5, rtol=1e-5)
    world = torch.cat([inner.points[:, 1, row, column], torch.ones(2, 1)], -1)
    first = torch.cat([got.points[:, 1, i, j], torch.ones(2, 1)], -1)
    torch.testing.assert_close(
        torch.einsum("bvij,bj->bvi", got.T_camera_first, first),
        torch.einsum("bvij,bj->bvi", T, world),
        atol=1e-5,
        rtol=1e-5,
    )
    # The field of view spans the given picture.
    seen = fov.clamp(0.05, 3.0)
    torch.testing.assert_close(2 * torch.atan(45 / got.K[..., 1, 1]), seen[..., 0])
    torch.testing.assert_close(2 * torch.atan(65.5 / got.K[..., 0, 0]), seen[..., 1])
    torch.testing.assert_close(got.K[..., :2, 2], torch.tensor([65.5, 45.0]).expand(2, 3, 2))


def test_prediction_in_bfloat16(model):
    pictures = images(1, 2, 42, 70)
    exact = VggtPredictor(model, 70)(pictures)
    rough = VggtPredictor(model, 70, torch.bfloat16)(pictures)
    assert rough.points is None and rough.depth.dtype == torch.float32
    assert 0 < float((rough.depth - exact.depth).abs().max()) < 0.1


@pytest.mark.parametrize(
    ("pictures", "reason"),
    [
        (torch.zeros(2, 3, 42, 70), "need B x V x 3 x H x W with 1 to 8 views"),
        (torch.zeros(1, 9, 3, 42, 70), "1 to 8 views"),
        (torch.full((1, 1, 3, 42, 70), 255.0), r"values from 255 to 255; need \[0, 1\]"),
        (torch.full((1, 1, 3, 42, 70), torch.nan), r"need \[0, 1\]"),
    ],
)
def test_bad_pictures_are_refused(model, pictures, reason):
    with pytest.raises(InvalidInputError, match=reason):
        VggtPredictor(model, 70)(pictures)


def test_bad_arguments_are_refused(model):
    with pytest.raises(InvalidInputError, match="long side 500 px must be a positive multiple"):
        VggtPredictor(model, 500)
    with pytest.raises(InvalidInputError, match="multiples of 14 px. VggtPredictor resizes"):
        model(torch.zeros(1, 1, 3, 42, 71))
    with pytest.raises(InvalidInputError, match="3 pyramid levels need sides of at least 8 px"):
        tiny = Vggt(replace(PRESETS["vggt-tiny"], patch_size=7, image_size=35))
        tiny(torch.zeros(1, 1, 3, 7, 14), torch.zeros(1, 2, 2))
    with pytest.raises(InvalidInputError, match="need 2 x N x 2 finite"):
        model(torch.zeros(2, 1, 3, 42, 70), torch.zeros(1, 5, 2))
    with pytest.raises(InvalidInputError, match="must ascend and end with the last, 23"):
        VggtConfig(kept=(2, 4, 6, 8))
    with pytest.raises(InvalidInputError, match="multiple of 4 x 16 heads"):
        VggtConfig(dim=1000)


def test_predictions_are_checked():
    one, T = torch.ones(1, 2, 4, 5), torch.eye(4).expand(1, 2, 4, 4)
    K = torch.eye(3).expand(1, 2, 3, 3)
    GeometryPrediction(one, one, None, T, K)
    with pytest.raises(InvalidInputError, match=r"points has shape \(1, 2, 4, 5\)"):
        GeometryPrediction(one, one, one, T, K)
    with pytest.raises(InvalidInputError, match="40 values of depth are not finite"):
        GeometryPrediction(one * torch.inf, one, None, T, K)
