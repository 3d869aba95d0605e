"""The generator at tiny size: modes, determinism, sampling against a known model, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from wristworld_ros.errors import InvalidInputError, WeightsError, WristWorldError
from wristworld_ros.generation import Generator
from wristworld_ros.generation.anchor_encoder import AnchorEncoderConfig
from wristworld_ros.generation.detail import DetailConfig, DetailRestorer
from wristworld_ros.generation.generator import CHUNK
from wristworld_ros.generation.model import Context, Stage2Config, Stage2Model
from wristworld_ros.generation.sampling import sample, scheduler_for
from wristworld_ros.generation.text import TextEncoder
from wristworld_ros.types import AnchorFrame, AnchorView, CameraModel, ConditionMap

ANCHORS = AnchorEncoderConfig(image_size=32, width=32, layers=1, heads=2)
TINY = Stage2Config(heads=2, head_dim=16, ffn_dim=32, layers=1, refiner=16, anchors=ANCHORS)
CAMERA = CameraModel.from_fov(1.2, 64, 48)


@pytest.fixture(scope="module")
def generator(folder):
    return Generator.from_pretrained(folder)


def moment(i=0, text="pick up the red cube", views=2):
    rng = np.random.default_rng(i)
    image = rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)
    mask = np.ones((48, 64), bool)
    mask[:, 40:] = False
    condition = ConditionMap(
        image * mask[..., None],
        mask,
        mask.astype(np.float32),
        np.where(mask, 0, -1).astype(np.int8),
        CAMERA,
    )
    anchors = tuple(
        AnchorView(f"a{v}", rng.integers(0, 255, (40, 40, 3), dtype=np.uint8), 100 + i)
        for v in range(views)
    )
    return condition, AnchorFrame(100 + i, anchors, instruction=text)


def test_a_frame_says_what_it_is(generator, folder):
    condition, frame = moment()
    result = generator(condition, frame)
    assert result.image.shape == (48, 64, 3) and result.image.dtype == np.uint8
    assert result.stamp_ns == 100 and result.camera is CAMERA
    assert result.coverage == pytest.approx(40 / 64)
    assert result.imagined_fraction == pytest.approx((result.confidence < 0.5).mean())
    assert (result.confidence[:, 40:] == 0).all()
    assert (result.steps, result.seed, result.mode, result.backend) == (1, 0, "stream", "torch")
    assert result.model_id == folder.name and len(result.model_sha256) == 64
    assert set(result.latency) == {"encode", "denoise", "decode"}


def test_the_detail_restorer_has_the_last_word(folder):
    """Where it takes the condition map and how sure it is; never sure of what no anchor shows."""
    plain = Generator.from_pretrained(folder)
    detail = DetailRestorer(DetailConfig(widths=(8, 8, 8, 8)))
    with torch.no_grad():
        detail.out.bias[12:16] = 100
        detail.out.bias[16:] = torch.log(torch.tensor(0.8 / 0.2))
    generator = Generator(plain.model, plain.autoencoder, plain.text, detail=detail)
    condition, frame = moment()
    condition = replace(condition, view=np.where(np.arange(64) < 10, -2, condition.view))
    before, after = plain(condition, frame), generator(condition, frame)
    np.testing.assert_allclose(after.image[:, :40], condition.image[:, :40], atol=1)
    np.testing.assert_array_equal(after.image[:, 40:], before.image[:, 40:])
    np.testing.assert_allclose(after.confidence[:, 10:40], 0.8, atol=1e-6)
    assert (after.confidence[:, :10] == 0).all() and (after.confidence[:, 40:] == 0).all()
    # Of a map that shows 1 % of the view nothing is trusted.
    few = np.zeros_like(condition.mask)
    few[:5, 20:26] = True
    hardly = generator(replace(condition, mask=few, view=np.where(few, 0, -1)), frame)
    assert (hardly.confidence == 0).all()


def test_equal_seeds_give_equal_bytes(generator, folder):
    first = generator(*moment())
    generator.reset()
    np.testing.assert_array_equal(first.image, generator(*moment()).image)
    other = Generator.from_pretrained(folder, seed=1)(*moment())
    assert (first.image != other.image).any()


@pytest.mark.parametrize("change", ["text", "anchors", "condition"])
def test_every_condition_is_looked_at(generator, change):
    condition, frame = moment()
    before = generator(condition, frame).image.astype(int)
    if change == "text":
        _, frame = moment(text="put the blue ball on the table")
    elif change == "anchors":
        _, frame = moment(5)
    else:
        condition, _ = moment(5)
    assert np.abs(generator(condition, frame).image - before).max() > 0


def test_chunks_return_one_frame_each_in_order(generator):
    pairs = [moment(i) for i in range(CHUNK + 3)]
    results = generator.chunk([c for c, _ in pairs], [f for _, f in pairs])
    assert [r.stamp_ns for r in results] == [100 + i for i in range(CHUNK + 3)]
    assert all(r.mode == "chunk" for r in results)
    with pytest.raises(InvalidInputError, match="2 condition maps for 1 frames"):
        generator.chunk([pairs[0][0]] * 2, [pairs[0][1]])


def test_a_chunk_of_one_equals_the_stream(generator):
    condition, frame = moment()
    chunk = generator.chunk([condition], [frame])[0]
    np.testing.assert_array_equal(chunk.image, generator(condition, frame).image)


def test_sizes_modes_and_steps_that_do_not_work_are_refused(folder, generator):
    condition, frame = moment()
    odd = ConditionMap(
        condition.image[:44], condition.mask[:44], condition.depth[:44], condition.view[:44], CAMERA
    )
    with pytest.raises(InvalidInputError, match="64 x 44 px.*multiples of 8"):
        generator(odd, frame)
    with pytest.raises(InvalidInputError, match="'turbo'"):
        Generator.from_pretrained(folder, mode="turbo")
    with pytest.raises(InvalidInputError, match="0 denoising steps"):
        Generator.from_pretrained(folder, steps=0)
    with pytest.raises(WeightsError, match="config.json is missing"):
        Generator.from_pretrained(folder / "nothing")


def test_no_picture_is_made_of_nan(folder):
    broken = Generator.from_pretrained(folder)
    with torch.no_grad():
        broken.model.transformer.proj_out.bias.fill_(float("nan"))
    with pytest.raises(WristWorldError, match="not finite"):
        broken(*moment())


class Known(nn.Module):
    """A model that always knows the clean latents."""

    def __init__(self, clean):
        super().__init__()
        self.clean = clean
        self.times = []

    def forward(self, noisy, t, context):
        self.times.append(t[0].item())
        return self.clean


@pytest.mark.parametrize("steps", [1, 2, 4, 20])
def test_the_sampler_ends_at_the_clean_latents(steps):
    clean = torch.randn(2, 16, 3, 4, 4)
    model = Known(clean)
    context = Context(torch.zeros_like(clean), clean[:, :4], clean[:, :2], torch.zeros(2, 1, 384))
    out = sample(model, [(1.0, context)], torch.randn_like(clean), scheduler_for(steps))
    torch.testing.assert_close(out, clean, atol=1e-5, rtol=0)
    assert model.times == pytest.approx([1 - i / steps for i in range(steps)], abs=1e-6)


def test_noise_of_another_shape_is_refused():
    clean = torch.randn(1, 16, 1, 4, 4)
    context = Context(clean, clean[:, :4], clean[:, :2], torch.zeros(1, 25, 384))
    with pytest.raises(InvalidInputError, match="noise of shape"):
        sample(Known(clean), [(1.0, context)], torch.randn(1, 16, 2, 4, 4), scheduler_for(1))
    with pytest.raises(InvalidInputError, match="1001"):
        scheduler_for(1001)


def test_velocity_and_correction_agree_on_what_clean_means():
    torch.manual_seed(0)
    noisy, t = torch.randn(1, 16, 1, 4, 4), torch.tensor([0.5])
    context = Context(
        torch.randn_like(noisy),
        torch.rand(1, 4, 1, 4, 4),
        torch.rand(1, 2, 1, 4, 4),
        torch.zeros(1, 25, 384),
    )
    # An untrained output layer is zero: a correction of nothing, a velocity of nothing.
    correction = Stage2Model(TINY)
    velocity = Stage2Model(Stage2Config(**{**TINY.__dict__, "prediction": "velocity"}))
    with torch.no_grad():
        torch.testing.assert_close(correction(noisy, t, context), context.latents)
        torch.testing.assert_close(velocity(noisy, t, context), noisy)
    with pytest.raises(InvalidInputError, match="'noise'"):
        Stage2Model(Stage2Config(**{**TINY.__dict__, "prediction": "noise"}))


def test_config_round_trip():
    model = Stage2Model(TINY)
    again = Stage2Model.from_config(model.config_dict())
    assert again.config == TINY


def test_text_states_tell_roles_apart_and_repeat():
    encoder = TextEncoder()
    a = encoder.encode("put the red cube on the blue ball")
    b = encoder.encode("put the blue cube on the red ball")
    assert a.shape == (24, 384)
    assert torch.equal(a, encoder.encode("put the red cube on the blue ball"))
    assert (a - b).abs().max() > 0.1
    assert encoder.encode("  ").abs().sum() == 0
    assert a[15:].abs().sum() == 0  # nothing after the last token
