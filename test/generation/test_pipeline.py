"""The diffusers pipeline of mini: the Generator's pictures, its own files, inputs, guidance."""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from wristworld_ros.errors import InvalidInputError, WeightsError, WristWorldError
from wristworld_ros.generation import Generator, WristWorldPipeline
from wristworld_ros.generation.detail import DetailConfig, DetailRestorer
from wristworld_ros.generation.sampling import Guidance

sys.path.insert(0, str(Path(__file__).parent))
from test_generator import moment

PROMPT = "pick up the red cube"


def inputs(frames=1, views=2, start=0):
    pairs = [moment(start + i, views=views) for i in range(frames)]
    return {
        "prompt": PROMPT,
        "condition": np.stack([c.image for c, _ in pairs]),
        "mask": np.stack([c.mask for c, _ in pairs]),
        "measured": np.stack([c.measured for c, _ in pairs]),
        "anchors": [[v.image for v in f.views] for _, f in pairs],
        "intrinsics": np.stack([c.camera.K for c, _ in pairs]),
    }


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(folder):
    return quiet(WristWorldPipeline.from_pretrained(folder))


@pytest.fixture(scope="module")
def shipped():
    return quiet(WristWorldPipeline.from_pretrained())


@pytest.mark.parametrize(("frames", "views", "steps"), [(1, 1, 1), (1, 3, 2), (4, 2, 1)])
def test_shipped_pictures_are_the_generators_to_the_bit(shipped, frames, views, steps):
    generator = Generator.from_pretrained(steps=steps, seed=3)
    pairs = [moment(i, views=views) for i in range(frames)]
    expected = generator.chunk([c for c, _ in pairs], [f for _, f in pairs])
    out = shipped(
        **inputs(frames, views), num_inference_steps=steps, generator=seeded(3), output_type="pil"
    )
    assert len(out.frames) == 1 and len(out.frames[0]) == frames
    for i, result in enumerate(expected):
        np.testing.assert_array_equal(np.asarray(out.frames[0][i]), result.image)
        np.testing.assert_array_equal(out.confidence[0, i], result.confidence)


def test_two_clips_at_once_are_each_alone(pipe):
    both = [inputs(2), inputs(2, start=7)]
    together = {
        "prompt": [PROMPT] * 2,
        "anchors": [i["anchors"] for i in both],
        **{k: np.stack([i[k] for i in both]) for k in ("condition", "mask", "intrinsics")},
    }
    noise = torch.randn(2, 16, 2, 6, 8, generator=seeded())
    frames = pipe(**together, latents=noise).frames
    assert frames.shape == (2, 2, 48, 64, 3)
    for i, one in enumerate(both):
        alone = pipe(**one, latents=noise[i : i + 1]).frames
        np.testing.assert_allclose(frames[i], alone[0], atol=1e-5)


def test_forms_of_input_and_output_agree(pipe):
    given_ = inputs(2)
    first = pipe(**given_, generator=seeded())
    as_tensors = {
        **given_,
        "condition": torch.from_numpy(given_["condition"]).permute(0, 3, 1, 2) / 255,
        "mask": torch.from_numpy(given_["mask"]),
        "anchors": [[Image.fromarray(v) for v in views] for views in given_["anchors"]],
    }
    frames, confidence = pipe(**as_tensors, generator=seeded(), output_type="pt", return_dict=False)
    np.testing.assert_array_equal(frames.permute(0, 1, 3, 4, 2).numpy(), first.frames)
    np.testing.assert_array_equal(confidence.numpy(), first.confidence)
    latents = pipe(**given_, generator=seeded(), output_type="latent")
    assert latents.frames.shape == (1, 16, 2, 6, 8) and latents.confidence is None
    unknown = pipe(**{**given_, "anchors": None}, generator=seeded()).frames
    assert np.abs(unknown - first.frames).max() > 0


def test_the_callback_sees_every_step_and_may_change_the_latents(pipe):
    seen = []

    def callback(pipeline, step, timestep, kwargs):
        assert pipeline is pipe and set(kwargs) == {"latents"}
        seen.append((step, timestep.item()))
        return {"latents": kwargs["latents"] * 0} if step == 2 else {}

    out = pipe(
        **inputs(), num_inference_steps=3, output_type="latent", callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=["latents"],
    )  # fmt: skip
    assert [s for s, _ in seen] == [0, 1, 2]
    assert [t for _, t in seen] == pytest.approx([1000, 2000 / 3, 1000 / 3], rel=1e-5)
    assert out.frames.abs().max() == 0


def test_saved_it_is_a_diffusers_pipeline_with_the_same_pictures(folder, tmp_path):
    pipe = quiet(WristWorldPipeline.from_pretrained(folder))
    detail = DetailRestorer(DetailConfig(widths=(8, 8, 8, 8))).eval()
    torch.nn.init.normal_(detail.out.weight, std=0.1)
    pipe.register_modules(detail=detail)
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == "WristWorldPipeline"
    assert index["scheduler"] == ["diffusers", "FlowMatchEulerDiscreteScheduler"]
    assert index["transformer"] == ["wristworld_ros.generation.model", "Stage2Model"]
    again = quiet(WristWorldPipeline.from_pretrained(tmp_path))
    before, after = (p(**inputs(), generator=seeded()).frames for p in (pipe, again))
    np.testing.assert_array_equal(before, after)
    # Weights are checked, and that the restorer belongs to them.
    config = tmp_path / "detail" / "config.json"
    written = config.read_text()
    config.write_text(written.replace(again.transformer.sha256, "ab" * 32))
    with pytest.raises(WeightsError, match="trained with the stage2 abab"):
        WristWorldPipeline.from_pretrained(tmp_path)
    config.write_text(written)
    weights = tmp_path / "vae" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="truncated or altered"):
        WristWorldPipeline.from_pretrained(tmp_path)
    weights = tmp_path / "text_encoder" / "model.safetensors"
    state = load_file(weights)
    state.pop("embeddings.LayerNorm.bias")
    save_file(state, weights, {"format": "pt"})
    with pytest.raises(WeightsError, match=r"missing \['embeddings.LayerNorm.bias'\]"):
        WristWorldPipeline.from_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="config.json is missing"):
        WristWorldPipeline.from_pretrained(tmp_path / "nothing")


def test_without_a_restorer_it_is_saved_too_and_the_generator_takes_it(folder, pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = Generator.from_pretrained(tmp_path)
    assert again.detail is None and len(again.sha256) == 64
    np.testing.assert_array_equal(
        again(*moment()).image, Generator.from_pretrained(folder)(*moment()).image
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"condition": np.zeros((1, 40, 64, 3), np.uint8), "mask": np.ones((1, 40, 64), bool),
          "measured": None}, "64 x 40 px.*multiples of 16"),
        ({"condition": np.zeros((1, 48, 64, 3), np.float32)}, "condition: got torch.float32"),
        ({"condition": torch.full((1, 3, 48, 64), 2.0)}, r"condition holds values outside \[0, 1"),
        ({"condition": torch.full((1, 3, 48, 64), torch.nan)}, "condition holds values"),
        ({"condition": torch.zeros(1, 4, 48, 64)}, r"condition of shape \(1, 4, 48, 64\)"),
        ({"mask": np.ones((1, 48, 48), bool)}, r"mask of shape \(1, 1, 1, 48, 48\)"),
        ({"mask": np.ones((1, 48, 64), np.uint8)}, "mask: got torch.uint8.*bool masks"),
        ({"anchors": inputs(2)["anchors"]}, "anchors of 1 clips of 2 frames for 1 clips of 1"),
        ({"anchors": [inputs()["anchors"][0], []]}, r"frames with \[0, 2\] views"),
        ({"anchors": torch.zeros(1, 9, 3, 40, 40)}, "9 anchor views; this model takes at most 8"),
        ({"anchors": [[np.zeros((40, 40, 3))]]}, "anchor view: got float64"),
        ({"anchors": torch.zeros(1, 2, 40, 40)}, r"anchors of shape \(1, 2, 40, 40\)"),
        ({"intrinsics": None}, "needs the intrinsics"),
        ({"intrinsics": np.eye(3)[None, :2]}, r"intrinsics of shape \(1, 1, 2, 3\)"),
        ({"prompt": [PROMPT] * 2}, "2 prompts for 1 clips"),
        ({"output_type": "gif"}, "output_type 'gif'"),
        ({"callback_on_step_end_tensor_inputs": ["noise"]}, r"\['noise'\]; there are"),
        ({"num_inference_steps": 0}, "0 denoising steps"),
        ({"guidance_scale": -1.0}, "guidance scale -1.0 for text"),
        ({"guidance_scale_map": float("nan")}, "guidance scale nan for map"),
        ({"latents": torch.zeros(1, 16, 1, 4, 4)}, r"noise of shape \(1, 16, 1, 4, 4\)"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(pipe, change, message):
    with pytest.raises(InvalidInputError, match=message):
        pipe(**{**inputs(), **change})


def test_too_many_frames_are_refused(pipe):
    with pytest.raises(InvalidInputError, match="33 frames; this model takes at most 32"):
        pipe.preset.check(33, 2, True)


def test_no_picture_is_made_of_nan(folder):
    broken = quiet(WristWorldPipeline.from_pretrained(folder))
    with torch.no_grad():
        broken.transformer.transformer.proj_out.bias.fill_(float("nan"))
    with pytest.raises(WristWorldError, match="not finite"):
        broken(**inputs())


SCALES = st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0])


@given(SCALES, SCALES, SCALES)
def test_guidance_is_what_its_formula_says(text, anchors, map_):
    """Against the sum over conditions written out, for predictions that are numbers."""
    scales = {"text": text, "anchors": anchors, "map": map_}
    guided = [c for c in scales if scales[c] != 1]
    subsets = [tuple(guided[:k]) for k in range(len(guided) + 1)]
    value = {names: 10.0 ** (len(names) + 1) for names in subsets}
    expected = value[subsets[-1]]
    for condition, (more, fewer) in zip(guided, itertools.pairwise(subsets), strict=True):
        expected += scales[condition] * (value[more] - value[fewer])
    branches = Guidance(**scales).branches()
    assert sum(weight * value[names] for weight, names in branches) == pytest.approx(expected)
    assert sum(weight for weight, _ in branches) == pytest.approx(1)
    assert len(branches) <= 1 + len(guided)


@pytest.mark.parametrize(
    ("scales", "evaluations"),
    [((1, 1, 1), 1), ((3, 1, 1), 2), ((1, 3, 1), 2), ((1, 1, 3), 2), ((3, 3, 1), 2),
     ((3, 2, 1), 3), ((3, 2, 4), 4), ((0, 1, 1), 1)],
)  # fmt: skip
def test_neutral_scales_cost_no_evaluation(folder, scales, evaluations):
    pipe = quiet(WristWorldPipeline.from_pretrained(folder))
    calls = []
    pipe.transformer.transformer.register_forward_hook(lambda *_: calls.append(1))
    names = ("guidance_scale", "guidance_scale_anchors", "guidance_scale_map")
    pipe(**inputs(), **dict(zip(names, scales, strict=True)))
    assert len(calls) == evaluations


@pytest.mark.parametrize("name", ["guidance_scale", "guidance_scale_anchors"])
def test_a_scale_of_0_takes_the_condition_away(pipe, name):
    kinds = {"guidance_scale": {"prompt": ""}, "guidance_scale_anchors": {"anchors": None}}
    without = pipe(**{**inputs(), **kinds[name]}, generator=seeded(), output_type="latent").frames
    found = pipe(**inputs(), **{name: 0.0}, generator=seeded(), output_type="latent").frames
    full = pipe(**inputs(), generator=seeded(), output_type="latent").frames
    assert (found - full).abs().max() > 1e-4
    if name == "guidance_scale":  # dropped anchors are as many tokens of nothing as there were
        torch.testing.assert_close(found, without, atol=1e-5, rtol=0)


def test_a_map_scale_of_0_is_a_map_that_shows_nothing(pipe):
    nothing = {"condition": np.zeros((1, 48, 64, 3), np.uint8), "mask": np.zeros((1, 48, 64), bool)}
    expected = pipe(**{**inputs(), **nothing}, generator=seeded(), output_type="latent").frames
    found = pipe(
        **inputs(), guidance_scale_map=0.0, generator=seeded(), output_type="latent"
    ).frames
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_negative_prompt_stands_for_no_text(pipe):
    scaled = {**inputs(), "guidance_scale": 3.0, "output_type": "latent"}
    plain = pipe(**scaled, generator=seeded()).frames
    other = pipe(**scaled, negative_prompt="blue ball", generator=seeded()).frames
    same = pipe(**scaled, negative_prompt=PROMPT, generator=seeded()).frames
    assert (plain - other).abs().max() > 1e-4
    unguided = pipe(**{**scaled, "guidance_scale": 1.0}, generator=seeded()).frames
    torch.testing.assert_close(same, unguided, atol=1e-4, rtol=0)
