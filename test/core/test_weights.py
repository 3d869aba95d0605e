"""Weight files load strictly or fail with a reason."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from wristworld_ros.errors import WeightsError
from wristworld_ros.weights import load_weights, read_config, save_weights, sha256_of


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_weights(tmp_path, nn.Linear(5, 3), {"sizes": [5, 3]}, {"training": {"seed": 0}})
    return tmp_path


def test_round_trip_in_bf16(folder):
    torch.manual_seed(0)
    original, loaded = nn.Linear(5, 3), nn.Linear(5, 3)
    digest = load_weights(folder, loaded)
    assert digest == read_config(folder)["sha256"] == sha256_of(folder / "model.safetensors")
    torch.testing.assert_close(loaded.weight, original.weight.bfloat16().float())
    assert read_config(folder)["training"] == {"seed": 0}


def test_every_truncation_is_noticed(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    for size in (0, 1, 8, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(WeightsError, match="truncated or altered.*Restore"):
            load_weights(folder, nn.Linear(5, 3))


def test_one_altered_byte_is_noticed(folder):
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="altered"):
        load_weights(folder, nn.Linear(5, 3))


def rewrite(folder, state):
    save_file(state, folder / "model.safetensors")
    document = read_config(folder)
    document["sha256"] = sha256_of(folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(document))


def test_wrong_shape_missing_and_unknown_keys_are_named(folder):
    with pytest.raises(WeightsError, match=r"weight \(3, 5\) for \(4, 5\)"):
        load_weights(folder, nn.Linear(5, 4))
    state = load_file(folder / "model.safetensors")
    rewrite(folder, {"weight": state["weight"], "other": state["bias"]})
    with pytest.raises(WeightsError, match=r"missing \['bias'\], 1 unknown \['other'\]"):
        load_weights(folder, nn.Linear(5, 3))


def test_nan_weights_are_refused(folder):
    state = load_file(folder / "model.safetensors")
    state["bias"][1] = float("nan")
    rewrite(folder, state)
    with pytest.raises(WeightsError, match=r"not finite in \['bias'\]"):
        load_weights(folder, nn.Linear(5, 3))


def test_a_failed_load_leaves_the_model_as_it_was(folder):
    model = nn.Linear(5, 4)
    before = model.weight.clone()
    with pytest.raises(WeightsError):
        load_weights(folder, model)
    assert torch.equal(model.weight, before)


def test_missing_and_broken_config(tmp_path, folder):
    with pytest.raises(WeightsError, match="config.json is missing"):
        read_config(tmp_path / "nowhere")
    (folder / "config.json").write_text("{")
    with pytest.raises(WeightsError, match="not valid JSON"):
        read_config(folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match="lacks"):
        read_config(folder)
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(WeightsError, match="missing"):
        load_weights(folder, nn.Linear(5, 3))


def test_large_tensors_in_8_bits(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
    save_weights(tmp_path / "small", model, {}, compact=4096)
    save_weights(tmp_path / "large", model, {})
    size = {n: (tmp_path / n / "model.safetensors").stat().st_size for n in ("small", "large")}
    assert size["large"] - size["small"] == 4096
    loaded = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))
    load_weights(tmp_path / "small", loaded)
    assert loaded[0].weight.dtype == torch.float32
    # Three bits of mantissa, and eight.
    torch.testing.assert_close(loaded[0].weight, model[0].weight, rtol=2**-4, atol=2**-10)
    torch.testing.assert_close(loaded[1].weight, model[1].weight, rtol=2**-8, atol=0)
    assert not torch.allclose(loaded[0].weight, model[0].weight, rtol=2**-6, atol=0)
