"""Does classifier-free guidance help the shipped mini? PSNR and LPIPS by scales, on val."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from wristworld_ros.data.knowledge import restrict
from wristworld_ros.data.simulation.episode import simulate_episode
from wristworld_ros.evaluation.scores import Means, score_frame
from wristworld_ros.generation import WristWorldPipeline
from wristworld_ros.provenance import provenance
from wristworld_ros.reconstruction import Reconstructor

#: Scales of text and anchors. The map was never dropped in training.
SCALES = (
    (1, 1),
    (0, 1),
    (1, 0),
    (0.5, 1),
    (1, 0.5),
    (1.5, 1),
    (1, 1.5),
    (2, 1),
    (1, 2),
    (1.5, 1.5),
)


def main() -> None:
    """Generate every frame with every pair of scales from equal noise, print the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=int, default=6)
    parser.add_argument("--frames", type=int, default=2, help="of each episode")
    parser.add_argument("--geometry", default="kinematic")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    reconstructor, means = Reconstructor.from_pretrained(), Means()
    pipe = WristWorldPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    for seed in tqdm(range(100_900, 100_900 + args.episodes)):
        episode = simulate_episode(seed, "val", n_frames=args.frames)
        for t in range(args.frames):
            frame = restrict(episode.anchor_frame(t, with_depth=True), args.geometry)
            condition = reconstructor(frame).condition
            pictures = {}
            for text, anchors in SCALES:
                out = pipe(
                    frame.instruction,
                    condition.image[None],
                    condition.mask[None],
                    anchors=[[view.image for view in frame.views]],
                    intrinsics=condition.camera.K[None],
                    measured=condition.measured[None],
                    num_inference_steps=args.steps,
                    guidance_scale=text,
                    guidance_scale_anchors=anchors,
                    generator=torch.Generator().manual_seed(0),
                    output_type="pil",
                )
                pictures[f"{text:g} {anchors:g}"] = np.asarray(out.frames[0][0])
            means.add(score_frame(pictures, episode.wrist_rgb[t], {}))
    table = means.summary()
    print(f"{args.episodes * args.frames} frames of val, {args.geometry}, steps: {args.steps}")
    print("text anchors  PSNR [dB]    SSIM   LPIPS")
    for scales, row in table.items():
        text, anchors = scales.split()
        print(f"{text:>4} {anchors:>7} {row['psnr']:10.2f} {row['ssim']:7.3f} {row['lpips']:7.3f}")
    if args.json:
        document = provenance(geometry=args.geometry, steps=args.steps, scores=table)
        args.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
