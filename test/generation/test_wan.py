"""The paper's model at tiny size: strict loading, its start at plain Wan, conditions, guidance."""

import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file, save_file

from wristworld_ros.errors import InvalidInputError, WeightsError
from wristworld_ros.generation import Generator, WristWorldPipeline
from wristworld_ros.generation.wan import WAN_1_3B, WanAnchorEncoder, temporal_mask, widen

sys.path.insert(0, str(Path(__file__).parent))
from tiny_wan import CLIP, CLIP_CONFIG, TRANSFORMER, write_clip, write_wan

FRAMES, VIEWS, H, W = 5, 2, 32, 48
PROMPT = "pick up the red cube"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wan")
    weights, clip = write_clip(folder)
    return write_wan(folder), weights, clip


def load(files, **kwargs):
    pipe = WristWorldPipeline.from_wan(files[0], clip_model=CLIP, clip_weights=files[1], **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe(files):
    return load(files)


@pytest.fixture(scope="module")
def trained(files):
    """As after a training: every condition counts."""
    pipe = load(files)
    torch.manual_seed(2)
    torch.nn.init.normal_(pipe.transformer.patch_embedding.weight, std=0.2)
    torch.nn.init.normal_(pipe.anchor_encoder.project[2].weight, std=5.0)
    return pipe


def inputs(seed=0, views=VIEWS, frames=FRAMES):
    rng = np.random.default_rng(seed)
    mask = rng.random((frames, H, W)) < 0.7
    return {
        "prompt": PROMPT,
        "condition": rng.integers(0, 255, (frames, H, W, 3), dtype=np.uint8) * mask[..., None],
        "mask": mask,
        "anchors": rng.integers(0, 255, (frames, views, 40, 50, 3), dtype=np.uint8),
    }


def run(pipe, **changes):
    return pipe(
        **{**inputs(), "num_inference_steps": 2, "output_type": "latent", **changes},
        generator=torch.Generator().manual_seed(0),
    ).frames


def expected_keys(config):
    """Names and shapes of Wan's transformer, written down from its description."""
    dim = config["num_attention_heads"] * config["attention_head_dim"]
    ffn, text, channels = config["ffn_dim"], config["text_dim"], config["in_channels"]
    shapes = {
        "patch_embedding.weight": (dim, channels, 1, 2, 2),
        "patch_embedding.bias": (dim,),
        "scale_shift_table": (1, 2, dim),
        "proj_out.weight": (config["out_channels"] * 4, dim),
        "proj_out.bias": (config["out_channels"] * 4,),
    }

    def linear(name, out, into):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    e = "condition_embedder"
    linear(f"{e}.time_embedder.linear_1", dim, config["freq_dim"])
    linear(f"{e}.time_embedder.linear_2", dim, dim)
    linear(f"{e}.time_proj", 6 * dim, dim)
    linear(f"{e}.text_embedder.linear_1", dim, text)
    linear(f"{e}.text_embedder.linear_2", dim, dim)
    for i in range(config["num_layers"]):
        b = f"blocks.{i}"
        shapes[f"{b}.scale_shift_table"] = (1, 6, dim)
        shapes[f"{b}.norm2.weight"] = shapes[f"{b}.norm2.bias"] = (dim,)
        linear(f"{b}.ffn.net.0.proj", ffn, dim)
        linear(f"{b}.ffn.net.2", dim, ffn)
        for a in ("attn1", "attn2"):
            shapes[f"{b}.{a}.norm_q.weight"] = shapes[f"{b}.{a}.norm_k.weight"] = (dim,)
            for name in ("to_q", "to_k", "to_v", "to_out.0"):
                linear(f"{b}.{a}.{name}", dim, dim)
    return shapes


def test_the_full_size_has_the_keys_shapes_and_parameters_of_wan_2_1_1_3b():
    with torch.device("meta"):
        base = WanTransformer3DModel(**WAN_1_3B)
        wide = WanTransformer3DModel(**{**WAN_1_3B, "in_channels": 36})
        anchors = WanAnchorEncoder(
            {k: open_clip.get_model_config("ViT-H-14")[k] for k in ("embed_dim", "vision_cfg")}
        )
    shapes = {k: tuple(v.shape) for k, v in base.state_dict().items()}
    assert shapes == expected_keys(WAN_1_3B)
    assert len(shapes) == 825
    count = sum(p.numel() for p in base.parameters())
    assert count == 1_418_996_800
    # The paper's model: 20 input channels more (condition latents 16, mask 4), 1 x 2 x 2 patches.
    assert sum(p.numel() for p in wide.parameters()) == count + 1536 * 20 * 4
    assert anchors.view.shape == (8, 1280) and anchors.time.shape == (81, 1280)
    assert [tuple(p.shape) for p in anchors.project.parameters()] == [
        (4096, 1280), (4096,), (4096, 4096), (4096,),
    ]  # fmt: skip
    # 81 frames of 832 x 480 with two anchors: 350 tokens of text and 162 of anchors.
    with torch.device("meta"), torch.no_grad():
        tokens = anchors(torch.empty(1, 81, 2, 3, 224, 224))
        context = torch.cat([torch.empty(1, 350, 4096), tokens], 1)
        out = wide(torch.empty(1, 36, 21, 60, 104), torch.empty(1), context).sample
    assert context.shape == (1, 512, 4096) and out.shape == (1, 16, 21, 60, 104)


def test_widened_it_gives_what_it_gave(files):
    base = WanTransformer3DModel.from_pretrained(files[0] / "transformer").eval()
    torch.manual_seed(0)
    noisy, conditions = torch.randn(1, 16, 2, 4, 6), torch.randn(1, 20, 2, 4, 6)
    t, tokens = torch.tensor([700.0]), torch.randn(1, 9, TRANSFORMER["text_dim"])
    with torch.no_grad():
        before = base(noisy, t, tokens).sample
        wide = widen(base)
        after = wide(torch.cat([noisy, conditions], 1), t, tokens).sample
    assert wide.config.in_channels == 36 and wide.patch_embedding.in_channels == 36
    torch.testing.assert_close(after, before, atol=1e-6, rtol=0)
    with pytest.raises(WeightsError, match="36 input and 16 output channels.*Wan2.1 T2V"):
        widen(wide)


def test_before_training_it_is_wan(files, pipe):
    """All conditions given, and the video is that of diffusers' own pipeline for the text."""
    base = WanTransformer3DModel.from_pretrained(files[0] / "transformer")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    wan = WanPipeline(pipe.tokenizer, pipe.text_encoder, pipe.vae, scheduler, base)
    wan.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 16, 2, H // 8, W // 8, generator=torch.Generator().manual_seed(0))
    set_timesteps = scheduler.set_timesteps  # its own last step would be another
    scheduler.set_timesteps = lambda *_, **__: set_timesteps(sigmas=[1.0, 0.5])
    expected = wan(
        PROMPT, height=H, width=W, num_frames=FRAMES, num_inference_steps=2, guidance_scale=3.0,
        latents=noise, output_type="latent",
    ).frames  # fmt: skip
    scales = {"guidance_scale": 3.0, "guidance_scale_anchors": 3.0}
    torch.testing.assert_close(run(pipe, latents=noise, **scales), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["prompt", "condition", "mask", "anchors"])
def test_every_condition_counts(trained, name):
    other = {**inputs(1), "prompt": "put the blue ball on a table"}
    neutral = {"guidance_scale": 1, "guidance_scale_anchors": 1}
    before = run(trained, **neutral)
    assert (run(trained, **neutral, **{name: other[name]}) - before).abs().max() > 2e-4
    torch.testing.assert_close(run(trained, **neutral), before, atol=0, rtol=0)


def test_pictures_have_the_frames_and_size_of_the_maps(trained):
    out = trained(**inputs(), num_inference_steps=1)
    assert out.frames.shape == (1, FRAMES, H, W, 3) and out.frames.dtype == np.float32
    assert out.confidence.shape == (1, FRAMES, H, W)
    assert (out.confidence[0][~inputs()["mask"]] == 0).all()


def test_anchor_tokens_follow_the_text_in_a_context_of_512(trained):
    preset = trained.preset
    text = preset.text([PROMPT], FRAMES, VIEWS)
    assert text.shape == (1, 512 - FRAMES * VIEWS, 32)
    words = 1 + len(PROMPT.split())
    assert text[0, :words].abs().amin(0).max() > 0 and text[0, words:].abs().sum() == 0
    anchors = torch.rand(1, FRAMES, VIEWS, 3, 32, 32)
    with torch.no_grad():
        tokens = trained.anchor_encoder(anchors)
    assert tokens.shape == (1, FRAMES * VIEWS, 32)
    # Frame by frame, and of a frame view by view.
    changed = anchors.clone()
    changed[0, 3, 1] = 0
    with torch.no_grad():
        difference = (trained.anchor_encoder(changed) - tokens).abs().amax(2)[0]
    assert difference.nonzero().flatten().tolist() == [3 * VIEWS + 1]


def test_the_features_are_open_clips_class_token(files, pipe):
    """Before the projection; after it they are what open_clip's encode_image gives."""
    _, _, clip = files
    x = torch.randn(2, 3, 32, 32)
    features = pipe.anchor_encoder._features(x)
    assert features.shape == (2, CLIP_CONFIG["vision_cfg"]["width"])
    with torch.no_grad():
        torch.testing.assert_close(features @ clip.visual.proj, clip.eval().encode_image(x))


def test_any_number_of_views_and_none(trained):
    neutral = {"guidance_scale": 1, "guidance_scale_anchors": 1}
    counts = [run(trained, **neutral, anchors=inputs(views=v)["anchors"]) for v in (1, 3, 8)]
    assert all(c.isfinite().all() for c in counts)
    assert run(trained, **neutral, anchors=None).isfinite().all()


def test_limits_are_said(trained):
    with pytest.raises(InvalidInputError, match="4 frames; Wan takes 4 k \\+ 1, such as 1"):
        run(trained, **inputs(frames=4))
    with pytest.raises(InvalidInputError, match="9 anchor views; this model takes at most 8"):
        run(trained, **inputs(views=9))
    with pytest.raises(InvalidInputError, match="81 frames x 7 anchor views are 567 tokens.*512"):
        trained.preset.check(81, 7, False)
    with pytest.raises(InvalidInputError, match="85 frames; this model takes at most 81"):
        trained.preset.check(85, 1, False)
    long = "red " * 107
    trained.preset.text([long], 81, 4)
    with pytest.raises(InvalidInputError, match="108 tokens; 81 frames x 5 anchor views leave 107"):
        trained.preset.text([long], 81, 5)


def test_the_mask_folds_time_into_channels():
    mask = torch.zeros(1, 5, 1, 16, 16)
    mask[:, 0, :, :8, :8] = 1
    mask[:, 2, :, 8:, 8:12] = 1
    out = temporal_mask(mask)
    assert out.shape == (1, 4, 2, 2, 2)
    assert out[0, :, 0, 0, 0].tolist() == [1, 1, 1, 1]
    assert out[0, :, 1, 1, 1].tolist() == [0, 0.5, 0, 0]
    assert out.sum() == 4.5


def test_saved_and_loaded_it_gives_the_same(trained, tmp_path):
    before = run(trained)
    trained.save_pretrained(tmp_path)
    with pytest.raises(InvalidInputError, match="not of mini's kind.*WristWorldPipeline"):
        Generator.from_pretrained(tmp_path)
    again = WristWorldPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    torch.testing.assert_close(run(again), before, atol=0, rtol=0)
    file = tmp_path / "anchor_encoder" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    state.pop("view")
    save_file(state, file)
    with pytest.raises(WeightsError, match=r"anchor_encoder does not fit.*missing \['view'\]"):
        WristWorldPipeline.from_pretrained(tmp_path)


def edit(path, change):
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("part", "key", "file"),
    [
        ("transformer", "blocks.1.attn2.to_k.weight", "diffusion_pytorch_model.safetensors"),
        ("vae", "quant_conv.bias", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "encoder.final_layer_norm.weight", "model.safetensors"),
    ],
)
def test_folders_that_do_not_fit_are_refused_by_name(files, tmp_path, part, key, file):
    write_wan(tmp_path)
    path = tmp_path / part / file
    whole = load_file(path)
    wrong = {
        rf"1 keys missing \['{key}'\]": {k: v for k, v in whole.items() if k != key},
        r"1 unknown \['another'\]": {**whole, "another": torch.zeros(1)},
        rf"1 of wrong shape \['{key} ": {**whole, key: torch.zeros(3)},
    }
    for message, state in wrong.items():
        save_file(state, path, metadata={"format": "pt"})
        with pytest.raises(WeightsError, match=rf"{part} does not fit.*{message}"):
            load((tmp_path, files[1]))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(WeightsError, match="truncated"):
        load((tmp_path, files[1]))
    path.unlink()
    with pytest.raises(WeightsError, match=f"no weights at .*{part}"):
        load((tmp_path, files[1]))


def test_other_clips_and_folders_are_refused(files, tmp_path):
    with pytest.raises(InvalidInputError, match="no model 'ViT-X'"):
        WristWorldPipeline.from_wan(files[0], clip_model="ViT-X", clip_weights=files[1])
    with pytest.raises(WeightsError, match="has no folder tokenizer"):
        load((tmp_path, files[1]))
    path = tmp_path / "clip.safetensors"
    state = load_file(files[1])
    state["visual.ln_pro.weight"] = state.pop("visual.ln_pre.weight")
    save_file(state, path)
    with pytest.raises(WeightsError, match=r"\['visual.ln_pre.weight'\], 1 unknown"):
        load((files[0], path))
