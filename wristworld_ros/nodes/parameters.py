"""Parameters of the nodes, each declared once: type, default, unit, range, when it applies, text.

From the one declaration come the ROS parameter descriptors, the validation of every value, the
defaults in ``config/virtual_wrist.yaml`` (a test compares them) and the tables of the README
(``parameters_markdown``). ``parameter_server.py`` brings them to ROS.
"""

from __future__ import annotations

import dataclasses
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, get_type_hints

from wristworld_ros.errors import InvalidInputError

#: When a new value takes effect: ``start`` parameters are read-only while the process lives,
#: ``configure`` ones may change only while the node is unconfigured, ``any`` ones apply at once.
APPLIES = ("start", "configure", "any")
CAMERA_NAME = r"[A-Za-z][A-Za-z0-9_]*(/[A-Za-z][A-Za-z0-9_]*)*"
FRAME_NAME = r"[A-Za-z0-9_][A-Za-z0-9_/.-]*"
TOPIC_OR_EMPTY = r"(~?/?[A-Za-z][A-Za-z0-9_]*(/[A-Za-z0-9_]+)*)?"

P = TypeVar("P", bound="NodeParameters")


def parameter(
    default: Any,
    description: str,
    *,
    unit: str = "",
    limits: tuple[float, float] | None = None,
    choices: Sequence[str] = (),
    pattern: str = "",
    count: tuple[int, int] | None = None,
    applies: str = "configure",
) -> Any:
    """Field of a parameter dataclass.

    Args:
        default: value when nobody sets one; its type has to be the annotated one.
        limits: smallest and largest value allowed (of each element for a list).
        choices: the values allowed for a string.
        pattern: regular expression that a string (each element of a list) has to match in full.
        count: smallest and largest number of elements of a list.
        applies: one of ``APPLIES``.
    """
    if applies not in APPLIES:
        raise ValueError(f"applies={applies!r} is not one of {APPLIES}")
    metadata = {
        "description": description,
        "unit": unit,
        "limits": limits,
        "choices": tuple(choices),
        "pattern": pattern,
        "count": count,
        "applies": applies,
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class NodeParameters:
    """Parameters that both nodes have."""

    node_name: ClassVar[str] = ""

    autostart: bool = parameter(
        True, "Configure and activate at start, without a lifecycle manager.", applies="start"
    )
    cameras: list[str] = parameter(  # noqa: RUF009 - returns a field
        ["anchor_0", "anchor_1", "anchor_2"],
        "Names of the anchor cameras; each is the prefix of that camera's topics.",
        pattern=CAMERA_NAME,
        count=(1, 8),
    )
    image_transport: str = parameter(
        "raw",
        "Read <camera>/image_raw, or <camera>/image_raw/compressed (PNG, JPEG).",
        choices=("raw", "compressed"),
    )
    input_reliability: str = parameter(
        "best_effort",
        "Asked of images and camera_info; best_effort also receives from reliable publishers.",
        choices=("best_effort", "reliable"),
    )
    output_reliability: str = parameter(
        "reliable",
        "Reliability offered to subscribers of images; reliable also serves best-effort ones.",
        choices=("best_effort", "reliable"),
    )
    model_path: str = parameter(
        "", "Folder of the weights; empty takes the ones shipped in models/."
    )
    device: str = parameter(
        "auto",
        "What torch computes on: auto (a GPU where there is one), cpu, cuda or cuda:N.",
        pattern=r"auto|cpu|cuda(:\d+)?",
    )
    threads: int = parameter(
        0, "CPU threads for torch; 0 leaves torch's own choice.", limits=(0, 256)
    )
    sync_slop: float = parameter(
        0.02,
        "Images of different cameras closer than this belong together; 0 asks for equal stamps.",
        unit="s",
        limits=(0.0, 10.0),
    )
    sync_queue: int = parameter(
        10, "Messages kept per camera while waiting for the others.", limits=(1, 1000)
    )
    input_timeout: float = parameter(
        2.0,
        "An input that is silent for longer than this is reported with reason and cure.",
        unit="s",
        limits=(0.1, 3600.0),
        applies="any",
    )
    diagnostics_period: float = parameter(
        1.0, "Time between two messages on /diagnostics.", unit="s", limits=(0.1, 60.0)
    )


@dataclass(frozen=True)
class ReconstructionParameters(NodeParameters):
    """Parameters of reconstruction_node."""

    node_name: ClassVar[str] = "reconstruction_node"

    pose_source: str = parameter(
        "auto",
        "Where the pose of the wrist camera comes from; auto takes the best that the inputs allow; "
        "fused estimates a roughly known mount from the pictures.",
        choices=("auto", "kinematic", "learned", "fused"),
    )
    backbone: str = parameter(
        "mini",
        "Network that depth and cameras come from; others than mini need backbone_weights, a "
        "kinematic wrist pose and a known wrist camera.",
        choices=("mini", "vggt-1b", "da3-small", "da3-base"),
    )
    backbone_weights: str = parameter(
        "", "Published weights' file of a backbone other than mini (model.safetensors, model.pt)."
    )
    calibration_file: str = parameter(
        "",
        "YAML file with the wrist camera's mount on wrist_frame. Pose source fused starts from it "
        "where it exists, and writes it at cleanup; auto and kinematic take it as it is.",
    )
    draw_robot: bool = parameter(
        True,
        "Draw the robot's own body by joint_states where a robot_description is published.",
    )
    points_frame: str = parameter(
        "world",
        "Frame of wrist/points: world_frame, or the optical frame of the first camera. Without "
        "calibration it is always the latter.",
        choices=("world", "anchor"),
    )
    max_points: int = parameter(
        100_000,
        "Most points on wrist/points; a larger cloud is thinned evenly, most trusted points first.",
        limits=(1, 10_000_000),
        applies="any",
    )
    use_depth: bool = parameter(False, "Also read <camera>/depth/image_raw (16UC1 mm or 32FC1 m).")
    world_frame: str = parameter(
        "base_link", "TF frame of the robot's base, in which everything is expressed.",
        pattern=FRAME_NAME,
    )  # fmt: skip
    wrist_frame: str = parameter(
        "wrist_camera_optical_frame",
        "TF frame of the wrist camera's mount, used by pose sources kinematic and fused.",
        pattern=FRAME_NAME,
    )
    virtual_frame: str = parameter(
        "wrist_camera_virtual_optical_frame",
        "TF frame that is broadcast for the virtual wrist camera.",
        pattern=FRAME_NAME,
    )
    publish_tf: bool = parameter(True, "Broadcast virtual_frame on /tf.")
    tf_timeout: float = parameter(
        0.25,
        "Longest wait for a transform at an image's stamp.",
        unit="s",
        limits=(0.0, 10.0),
        applies="any",
    )
    calibration_timeout: float = parameter(
        3.0,
        "Time from the first set of images on in which camera_info and TF may still come; then "
        "pose sources auto and learned go on without them, and say so.",
        unit="s",
        limits=(0.0, 600.0),
    )
    wrist_camera_info_topic: str = parameter(
        "",
        "Topic with the intrinsics of the virtual wrist camera; of the values below it leaves only "
        "wrist_width and wrist_height in force.",
        pattern=TOPIC_OR_EMPTY,
    )
    wrist_width: int = parameter(
        0,
        "Width of the virtual image, a multiple of 16; 0 leaves it to the model.",
        unit="px",
        limits=(0, 1024),
    )
    wrist_height: int = parameter(
        0, "Height of the virtual image; as wrist_width.", unit="px", limits=(0, 1024)
    )
    wrist_fov_y: float = parameter(
        0.0,
        "Vertical field of view; 0 when unknown: then it is estimated, once.",
        unit="rad",
        limits=(0.0, 3.1),
    )
    wrist_fx: float = parameter(
        0.0,
        "Horizontal focal length, as in camera_info; 0 when unknown. Wins over wrist_fov_y.",
        unit="px",
        limits=(0.0, 1e5),
    )
    wrist_fy: float = parameter(
        0.0, "Vertical focal length; 0 means wrist_fx.", unit="px", limits=(0.0, 1e5)
    )
    wrist_cx: float = parameter(
        -1.0,
        "Principal point, pixel centres at integers as in camera_info; -1 means the centre.",
        unit="px",
        limits=(-1.0, 8192.0),
    )
    wrist_cy: float = parameter(-1.0, "Principal point; as wrist_cx.", unit="px", limits=(-1, 8192))
    instruction: str = parameter(
        "", "Task in words until a message arrives on topic instruction.", applies="any"
    )


@dataclass(frozen=True)
class GenerationParameters(NodeParameters):
    """Parameters of generation_node."""

    node_name: ClassVar[str] = "generation_node"

    mode: str = parameter(
        "stream",
        "stream: every frame at once; chunk: chunk_length frames together, smoother and later.",
        choices=("stream", "chunk"),
    )
    chunk_length: int = parameter(
        6,
        "New frames per chunk; the last two of the chunk before are looked at again.",
        limits=(2, 128),
    )
    steps: int = parameter(1, "Denoising steps per frame.", limits=(1, 100))
    seed: int = parameter(0, "Seed of the noise.", limits=(0, 2**31 - 1))
    backend: str = parameter(
        "auto",
        "What runs the networks: torch, or engines that `wristworld engine build` made before; "
        "auto: the best of these for which there is an engine. wrist/status says what ran.",
        choices=("auto", "torch", "openvino", "onnxruntime"),
    )
    strict_backend: bool = parameter(
        False, "Refuse to run by torch what the backend has no engine for."
    )
    refuse_below_coverage: float = parameter(
        0.0,
        "Publish a refusal instead of a picture when fewer of its pixels are measured.",
        unit="share of pixels",
        limits=(0.0, 1.0),
        applies="any",
    )
    refuse_beyond_domain: float = parameter(
        0.0,
        "Publish a refusal instead of a picture when the anchor images are farther from the "
        "training images; 1 is what 1 % of validation frames exceed, 0 never refuses.",
        limits=(0.0, 1000.0),
        applies="any",
    )
    jpeg_quality: int = parameter(
        90, "Quality of wrist/image_raw/compressed.", unit="%", limits=(1, 100), applies="any"
    )
    instruction: str = parameter(
        "", "Task in words until a message arrives on topic instruction.", applies="any"
    )


#: Node name -> its parameter class.
PARAMETERS: dict[str, type[NodeParameters]] = {
    p.node_name: p for p in (ReconstructionParameters, GenerationParameters)
}


def check_value(cls: type[NodeParameters], name: str, value: Any) -> Any:
    """Return ``value`` in the declared type, or raise.

    Raises:
        InvalidInputError: unknown name, wrong type, out of range, not one of the choices, ...
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}
    if name not in fields:
        raise InvalidInputError(
            f"{cls.node_name} has no parameter '{name}'; it has {', '.join(sorted(fields))}."
        )
    meta = fields[name].metadata
    kind = get_type_hints(cls)[name]
    label = f"parameter {name}"
    element = {list[str]: str, list[float]: float, list[int]: int}.get(kind)
    if element is not None:
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise InvalidInputError(f"{label} is {value!r}; need a list of {element.__name__}.")
        values = [_convert(element, v, label) for v in value]
        low, high = meta["count"] or (0, 10**6)
        if not low <= len(values) <= high:
            raise InvalidInputError(f"{label} has {len(values)} elements; need {low} to {high}.")
        if len(set(values)) != len(values) and element is str:
            raise InvalidInputError(f"{label} is {values}; its elements have to differ.")
        result: Any = values
    else:
        result = _convert(kind, value, label)
        values = [result]
    for v in values:
        if meta["limits"] is not None and not meta["limits"][0] <= v <= meta["limits"][1]:
            low, high = meta["limits"]
            unit = f" {meta['unit']}" if meta["unit"] else ""
            raise InvalidInputError(f"{label} is {v:g}{unit}; need {low:g} to {high:g}{unit}.")
        if meta["choices"] and v not in meta["choices"]:
            raise InvalidInputError(f"{label} is '{v}'; need one of {', '.join(meta['choices'])}.")
        if meta["pattern"] and not re.fullmatch(meta["pattern"], v):
            raise InvalidInputError(f"{label} is '{v}'; it has to match {meta['pattern']}.")
    return result


def _convert(kind: type, value: Any, label: str) -> Any:
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise InvalidInputError(f"{label} is {value}; need a finite number.")
        return float(value)
    if type(value) is not kind:
        raise InvalidInputError(f"{label} is {value!r}; need a {kind.__name__}.")
    return value


def from_mapping(cls: type[P], values: Mapping[str, Any]) -> P:
    """Parameters with ``values`` over the defaults, all checked."""
    return cls(**{name: check_value(cls, name, value) for name, value in values.items()})


def parameters_markdown(node: str) -> str:
    """Markdown table of the parameters of ``node`` (``reconstruction_node``, ``generation_node``).

    Raises:
        InvalidInputError: no node of that name.
    """
    if node not in PARAMETERS:
        raise InvalidInputError(f"no node '{node}'; there are {', '.join(PARAMETERS)}.")
    cls = PARAMETERS[node]
    rows = ["| parameter | type | default | range | applies | |", "| --- " * 6 + "|"]
    for field in dataclasses.fields(cls):
        meta, kind = field.metadata, get_type_hints(cls)[field.name]
        kind_name = kind.__name__ if isinstance(kind, type) and kind in (
            bool, int, float, str) else str(kind)  # fmt: skip
        default = field.default
        if default is dataclasses.MISSING:
            default = field.default_factory()  # type: ignore[misc]
        allowed = ""
        if meta["limits"]:
            allowed = f"{meta['limits'][0]:g} to {meta['limits'][1]:g}"
        elif meta["choices"]:
            allowed = ", ".join(meta["choices"])
        elif meta["count"]:
            allowed = f"{meta['count'][0]} to {meta['count'][1]} elements"
        unit = f" {meta['unit']}" if meta["unit"] else ""
        shown = {True: "true", False: "false"}.get(default) if kind is bool else default
        shown = f"`{shown!r}`" if kind is str else f"`{shown}`"
        applies = {"start": "read-only", "configure": "at configure", "any": "at once"}
        rows.append(
            f"| `{field.name}` | {kind_name} | {shown.replace(chr(39), chr(34))}{unit} | {allowed} "
            f"| {applies[meta['applies']]} | {meta['description']} |"
        )
    return "\n".join(rows) + "\n"


def parameters_yaml() -> str:
    """Text of ``config/virtual_wrist.yaml``: every parameter with its default and description.

    ``python -m wristworld_ros.nodes.parameters > config/virtual_wrist.yaml`` writes it anew.
    """
    lines = [
        "# Parameters of both nodes with their defaults, generated from",
        "# wristworld_ros/nodes/parameters.py. Copy this file, keep what you change, start with",
        "# ros2 launch wristworld_ros virtual_wrist.launch.py params_file:=yours.yaml",
    ]
    for node, cls in PARAMETERS.items():
        lines += ["", f"/**/{node}:", "  ros__parameters:"]
        for field in dataclasses.fields(cls):
            unit = f" [{field.metadata['unit']}]" if field.metadata["unit"] else ""
            lines += [f"    # {line}" for line in textwrap.wrap(
                field.metadata["description"] + unit, 94)]  # fmt: skip
            lines.append(f"    {field.name}: {_yaml_value(getattr(cls(), field.name))}")
    return "\n".join(lines) + "\n"


def _yaml_value(value: Any) -> str:
    """Scalar or list as YAML; a string is always quoted, so that it stays one."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_yaml_value(v) for v in value) + "]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def parameters_page() -> str:
    """Content of docs/parameters.md."""
    head = (
        "# Parameters of the nodes\n\nWritten by `python -m wristworld_ros.nodes.parameters page`; "
        "`config/virtual_wrist.yaml`\n(written by the same without `page`) has the same defaults.\n"
    )
    return head + "".join(f"\n## {n}\n\n{parameters_markdown(n).rstrip()}\n" for n in PARAMETERS)


if __name__ == "__main__":
    print(parameters_page() if sys.argv[1:] == ["page"] else parameters_yaml(), end="")
