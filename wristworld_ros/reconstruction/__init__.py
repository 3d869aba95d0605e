"""Stage 1: anchor views to wrist pose, point cloud and condition map.

May import ``geometry``, ``runtime``, ``types`` and ``errors``.
"""

from wristworld_ros.reconstruction.reconstructor import Reconstructor, ReconstructorConfig

__all__ = ["Reconstructor", "ReconstructorConfig"]
