"""Print the LPIPS values that test_metrics.py expects.

Next to ours stand those of the reference implementation, when it can be imported (it need not be
installed here: ``pip install --no-deps --target DIR lpips==0.1.4`` and ``PYTHONPATH=DIR``). Its
heads are its own; its backbones get our weights, since torchvision would download them.
"""

from __future__ import annotations

import numpy as np
import torch
from skimage import data

from wristworld_ros import compat
from wristworld_ros.generation.lpips import LPIPS, lpips


def main() -> None:
    """Compare the picture of the tests with a noisy one."""
    a = data.astronaut()[30:158, 160:288]
    noise = np.random.default_rng(0).normal(0, 10, a.shape)
    b = np.clip(np.round(a + noise), 0, 255).astype(np.uint8)
    for net, name in (("alexnet", "alex"), ("vgg16", "vgg")):
        print(f"{net}: {lpips([b], [a], net)[0]:.6f}, reference: {_reference(net, name, a, b)}")


def _reference(net: str, name: str, a: np.ndarray, b: np.ndarray) -> str:
    compat.repair_torchvision()
    try:
        import lpips as package
    except ImportError as error:
        return f"not available ({error})"
    reference = package.LPIPS(net=name, pnet_rand=True, verbose=False).eval()
    slices = [getattr(reference.net, f"slice{i}") for i in range(1, 6)]
    layers = [x for s in slices for x in s if isinstance(x, torch.nn.Conv2d)]
    for layer, ours in zip(layers, LPIPS(net).convolutions, strict=True):
        layer.load_state_dict(ours.state_dict())
    x, y = (torch.from_numpy(i).permute(2, 0, 1)[None].float() / 127.5 - 1 for i in (b, a))
    with torch.no_grad():
        return f"{float(reference(x, y)):.6f}"


if __name__ == "__main__":
    main()
