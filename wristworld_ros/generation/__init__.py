"""Stage 2: condition maps, anchor views and text to the wrist picture.

May import ``reconstruction``, ``geometry``, ``runtime``, ``types`` and ``errors``.
"""

from wristworld_ros.compat import repair_torchvision

repair_torchvision()  # before diffusers, transformers or open_clip import it

from wristworld_ros.generation.generator import Generator  # noqa: E402
from wristworld_ros.generation.pipeline import WristWorldPipeline  # noqa: E402

__all__ = ["Generator", "WristWorldPipeline"]
