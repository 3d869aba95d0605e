"""The graph of nodes, described once: ``ros2 launch`` and ``wristworld up`` both start this.

Imports no ROS: the launch file turns a ``NodeSpec`` into a launch action, ``supervisor`` into a
process.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.nodes.parameters import PARAMETERS, check_value
from wristworld_ros.resources import config_file

PACKAGE = "wristworld_ros"
CONFIG = "virtual_wrist.yaml"
NODES = tuple(PARAMETERS)


@dataclass(frozen=True)
class Argument:
    """One argument of the launch file and of ``wristworld up``.

    Attributes:
        name: also the name of the node parameter that it sets, if it sets one.
        default: as text; empty leaves the value to the parameter file.
        choices: allowed values besides the empty one.
    """

    name: str
    description: str
    default: str = ""
    choices: tuple[str, ...] = ()


def _of(name: str, description: str) -> Argument:
    """Argument for a node parameter, with the choices of its declaration."""
    for cls in PARAMETERS.values():
        declared = cls.__dataclass_fields__.get(name)
        if declared is not None:
            return Argument(name, description, choices=declared.metadata["choices"])
    raise AssertionError(name)


ARGUMENTS: tuple[Argument, ...] = (
    _of("cameras", "names of the anchor cameras, with commas"),
    Argument("namespace", "namespace of both nodes and their relative topics"),
    _of("mode", "stream: each frame at once; chunk: several together"),
    _of("pose_source", "where the wrist pose comes from"),
    _of("device", "device that torch computes on: cpu, cuda, cuda:1, ..."),
    _of("image_transport", "kind of camera topics"),
    _of("world_frame", "TF frame of the robot's base"),
    _of("wrist_frame", "TF frame of the wrist camera's mount"),
    _of("wrist_camera_info_topic", "topic with the intrinsics of the virtual wrist camera"),
    Argument("params_file", f"YAML file of parameters; default is config/{CONFIG}"),
    Argument("use_sim_time", "take ROS time from /clock", "false", ("true", "false")),
    Argument("nodes", "which nodes to start, with commas", ",".join(NODES)),
    Argument(
        "log_level", "of the nodes' loggers", "info", ("debug", "info", "warn", "error", "fatal")
    ),
)


@dataclass(frozen=True)
class NodeSpec:
    """One process.

    Attributes:
        executable: in lib/wristworld_ros of an installed workspace; also the node's name.
        module: that ``python -m`` runs.
        namespace: without slashes at the ends, may be empty.
        params_file: YAML file with parameters.
        parameters: values that win over the file.
    """

    executable: str
    module: str
    namespace: str
    params_file: Path
    parameters: Mapping[str, Any] = field(default_factory=dict)
    log_level: str = "info"

    @property
    def full_name(self) -> str:
        """Fully qualified node name."""
        return "/" + "/".join(p for p in (self.namespace, self.executable) if p)

    def command(self) -> list[str]:
        """Command line that starts the process without ``ros2 run``."""
        ros = ["--params-file", str(self.params_file), "--log-level", self.log_level]
        if self.namespace:
            ros += ["-r", f"__ns:=/{self.namespace}"]
        for name, value in self.parameters.items():
            ros += ["-p", f"{name}:={_yaml(value)}"]
        return [sys.executable, "-m", self.module, "--ros-args", *ros]


def _yaml(value: Any) -> str:
    """A parameter value as ROS reads it on the command line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def build_graph(
    arguments: Mapping[str, str] | None = None,
    extra: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[NodeSpec]:
    """Processes for the values of ``ARGUMENTS``.

    Args:
        arguments: name -> text; missing or empty ones take the default.
        extra: node -> parameters that win over everything (used by the demo).

    Raises:
        InvalidInputError: unknown argument, a value that its parameter does not allow, or a
            parameter file that is missing or not readable.
    """
    given = dict(arguments or {})
    known = {a.name: a for a in ARGUMENTS}
    if unknown := sorted(set(given) - set(known)):
        raise InvalidInputError(f"unknown argument {unknown[0]}; there are {', '.join(known)}.")
    values = {name: given.get(name) or a.default for name, a in known.items()}
    for name, argument in known.items():
        if values[name] and argument.choices and values[name] not in argument.choices:
            raise InvalidInputError(
                f"argument {name} is '{values[name]}'; need one of {', '.join(argument.choices)}."
            )
    names = _split(values["nodes"])
    if not names or not set(names) <= set(NODES):
        raise InvalidInputError(f"argument nodes is {names}; need some of {', '.join(NODES)}.")
    params_file = Path(values["params_file"]) if values["params_file"] else config_file(CONFIG)
    namespace = values["namespace"].strip("/")
    check_params_file(params_file, namespace)
    return [
        NodeSpec(
            executable=name,
            module=f"{PACKAGE}.nodes.{name}",
            namespace=namespace,
            params_file=params_file.resolve(),
            parameters=_parameters(name, values, (extra or {}).get(name, {})),
            log_level=values["log_level"],
        )
        for name in names
    ]


def _parameters(node: str, values: Mapping[str, str], extra: Mapping[str, Any]) -> dict[str, Any]:
    cls = PARAMETERS[node]
    result: dict[str, Any] = {"use_sim_time": values["use_sim_time"] == "true"}
    for name, text in values.items():
        if name in cls.__dataclass_fields__ and text:
            value = _split(text) if name == "cameras" else text
            result[name] = check_value(cls, name, value)
    return result | {name: check_value(cls, name, value) for name, value in extra.items()}


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.strip("[] ").split(",") if part.strip()]


def check_params_file(path: Path, namespace: str = "") -> dict[str, dict[str, Any]]:
    """Read a parameter file and check every value for our nodes.

    Returns:
        Node -> parameters, as far as the file names them.

    Raises:
        InvalidInputError: no such file, not YAML, a value that is not allowed, or an entry for one
            of our nodes that ROS would ignore because the node is in another namespace.
    """
    if not path.is_file():
        raise InvalidInputError(f"parameter file {path} does not exist; give an existing one.")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise InvalidInputError(f"parameter file {path} is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise InvalidInputError(f"parameter file {path} has no node names at its top level.")
    result: dict[str, dict[str, Any]] = {}
    for key, section in document.items():
        node = str(key).rsplit("/", 1)[-1]
        if node not in PARAMETERS:
            continue  # other nodes, and wildcards alone, which ROS checks
        full_name = "/" + "/".join(part for part in (namespace, node) if part)
        if str(key) != f"/**/{node}" and "/" + str(key).strip("/") != full_name:
            raise InvalidInputError(
                f"parameter file {path}: '{key}' does not name {full_name} and would be ignored. "
                f"Write '/**/{node}', which fits every namespace."
            )
        values = section.get("ros__parameters") if isinstance(section, dict) else None
        if not isinstance(values, dict):
            raise InvalidInputError(f"parameter file {path}: '{key}' has no 'ros__parameters'.")
        for name, value in values.items():
            if name in ("use_sim_time", "qos_overrides"):
                continue
            try:
                result.setdefault(node, {})[name] = check_value(PARAMETERS[node], name, value)
            except InvalidInputError as error:
                raise InvalidInputError(f"parameter file {path}, '{key}': {error}") from error
    return result
