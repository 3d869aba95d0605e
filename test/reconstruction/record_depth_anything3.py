"""Record what test_depth_anything3.py expects, from the reference implementation.

It is not installed here. With the ``src`` folder of
https://github.com/ByteDance-Seed/Depth-Anything-3 (2025-12), einops, omegaconf and addict in
PYTHONPATH, ``python test/reconstruction/record_depth_anything3.py`` writes ``da3_keys.txt`` (names
and shapes of all parameters of Small and Base) and ``da3_expected.json``, and prints the greatest
difference of ours from the reference over all outputs, at several sizes.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from record_vggt import linspace_on_cpu
from seeded import images, pack_keys, sample, seed_weights
from torch import Tensor, nn

from wristworld_ros.reconstruction.depth_anything3 import (
    PRESETS,
    DepthAnything3,
    DepthAnything3Config,
    encode_known,
)

HERE = Path(__file__).parent
#: Batch, views, height and width [px] of the cases, and whether cameras are given.
CASES = (
    (1, 1, 70, 70, False),
    (1, 2, 42, 98, False),
    (2, 4, 70, 56, False),
    (1, 3, 56, 70, True),
)


def cameras(batch: int, views: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Some T_camera_world (B x V x 4 x 4) and K (B x V x 3 x 3)."""
    angle = 0.3 * torch.arange(batch * views, dtype=torch.float32).reshape(batch, views)
    T = torch.eye(4).repeat(batch, views, 1, 1)
    T[..., 0, 0], T[..., 0, 2] = angle.cos(), angle.sin()
    T[..., 2, 0], T[..., 2, 2] = -angle.sin(), angle.cos()
    T[..., 0, 3], T[..., 1, 3], T[..., 2, 3] = angle, 0.2 * angle, 1 + angle
    K = torch.tensor([[0.9 * width, 0, width / 2], [0, 1.1 * width, height / 2], [0, 0, 1]])
    return T, K.repeat(batch, views, 1, 1)


def reference(config: DepthAnything3Config) -> nn.Module:
    """The reference implementation at the sizes of ``config``."""
    from depth_anything_3.model.cam_dec import CameraDec
    from depth_anything_3.model.cam_enc import CameraEnc
    from depth_anything_3.model.da3 import DepthAnything3Net
    from depth_anything_3.model.dinov2.dinov2 import DinoV2
    from depth_anything_3.model.dinov2.vision_transformer import DinoVisionTransformer
    from depth_anything_3.model.dualdpt import DualDPT

    c = config
    start = c.alternate_from
    with linspace_on_cpu():
        net = DinoV2("vits", list(c.kept), start, start, start)
        net.pretrained = DinoVisionTransformer(
            c.image_size, 14, embed_dim=c.dim, depth=c.depth, num_heads=c.heads,
            alt_start=start, qknorm_start=start, rope_start=start,
        )  # fmt: skip
        return DepthAnything3Net(
            net,
            DualDPT(2 * c.dim, features=c.dense_features, out_channels=c.dense_channels),
            CameraDec(2 * c.dim),
            CameraEnc(c.dim, num_heads=c.camera_heads),
        ).eval()


def outputs_of_reference(model: nn.Module, case: tuple[int, int, int, int, bool]) -> dict:
    """All outputs, with the names of ``outputs``."""
    pictures = images(*case[:4])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pictures = (pictures - mean[:, None, None]) / std[:, None, None]
    token = None
    if case[4]:
        # What its API does to known poses before the network sees them.
        T, K = cameras(*case[:4])
        T = T @ torch.linalg.inv(T[:, :1])
        centres = torch.linalg.inv(T)[..., :3, 3]
        T[..., :3, 3] /= centres.norm(dim=-1).median().clamp(min=0.1)
        token = model.cam_enc(T, K, case[2:4])
    features, _ = model.backbone(pictures, cam_token=token)
    dense = model.head(features, *case[2:4], patch_start_idx=0)
    return {
        "tokens": features[-1][0],
        "poses": model.cam_dec(features[-1][1]),
        "depth": dense["depth"],
        "confidence": dense["depth_conf"],
        "rays": dense["ray"],
        "rays confidence": dense["ray_conf"],
    }


def outputs(model: DepthAnything3, case: tuple[int, int, int, int, bool]) -> dict[str, Tensor]:
    """All outputs of ours."""
    known = encode_known(*cameras(*case[:4]), *case[2:4]) if case[4] else None
    out = model(images(*case[:4]), known, rays=True)
    return {
        "poses": out.poses,
        "depth": out.depth,
        "confidence": out.confidence,
        "rays": out.rays,
        "rays confidence": out.rays_confidence,
    }


@torch.no_grad()
def main() -> None:
    """Compare, and write the fixtures."""
    config = PRESETS["da3-tiny"]
    theirs, ours = reference(config), DepthAnything3(config).eval()
    seed_weights(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    expected = {}
    for case in CASES:
        a, b = outputs_of_reference(theirs, case), outputs(ours, case)
        for name in b:
            assert a[name].shape == b[name].shape, (name, a[name].shape, b[name].shape)
            error = float(((a[name] - b[name]).abs() / a[name].abs().clamp_min(1)).max())
            print(f"{case} {name}: spread {float(a[name].std()):.3g}, error {error:.2g}")
        expected[str(case)] = {name: sample(a[name]) for name in b}
    (HERE / "da3_expected.json").write_text(json.dumps(expected, indent=1) + "\n")
    text = ""
    for name in ("da3-small", "da3-base"):
        with torch.device("meta"):
            model = reference(PRESETS[name])
        shapes = {"model." + k: tuple(v.shape) for k, v in model.state_dict().items()}
        print(f"{name}: {len(shapes)} names, {sum(p.numel() for p in model.parameters())} values")
        text += f"# {name}\n{pack_keys(shapes)}"
    (HERE / "da3_keys.txt").write_text(text)


if __name__ == "__main__":
    main()
