"""The declared parameters on a ROS node: descriptors, checks of every new value."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import get_type_hints

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from wristworld_ros.errors import InvalidInputError
from wristworld_ros.nodes.parameters import NodeParameters, check_value


def descriptor(cls: type[NodeParameters], name: str) -> ParameterDescriptor:
    """ROS descriptor of one parameter, for ``ros2 param describe``."""
    field = next(f for f in dataclasses.fields(cls) if f.name == name)
    meta, kind = field.metadata, get_type_hints(cls)[name]
    constraints = []
    if meta["choices"]:
        constraints.append("one of " + ", ".join(meta["choices"]))
    if meta["count"]:
        constraints.append(f"{meta['count'][0]} to {meta['count'][1]} elements")
    if meta["pattern"]:
        constraints.append(f"matches {meta['pattern']}")
    if meta["applies"] == "configure":
        constraints.append("can be set while the node is unconfigured")
    unit = f" [{meta['unit']}]" if meta["unit"] else ""
    result = ParameterDescriptor(
        description=meta["description"] + unit,
        additional_constraints="; ".join(constraints),
        read_only=meta["applies"] == "start",
        dynamic_typing=True,
    )
    if meta["limits"]:
        low, high = meta["limits"]
        if kind is int:
            result.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=0)]
        elif kind is float:
            result.floating_point_range = [
                FloatingPointRange(from_value=float(low), to_value=float(high), step=0.0)
            ]
    return result


class ParameterServer:
    """Declares the parameters of a dataclass on a ROS node and keeps the checked values.

    Typing is dynamic on the ROS side so that ``wrist_fov_y:=1`` is a number like any other; every
    value passes ``check_value``, which has the types.

    Args:
        node: the rclpy node.
        cls: its parameter class.
        unconfigured: called to learn whether ``configure`` parameters may be set now.

    Attributes:
        current: the values in force, a frozen instance of ``cls``.

    Raises:
        InvalidInputError: a value from the command line or a YAML file is not allowed.
    """

    def __init__(
        self, node: Node, cls: type[NodeParameters], unconfigured: Callable[[], bool]
    ) -> None:
        self._cls, self._unconfigured = cls, unconfigured
        defaults, values = cls(), {}
        for field in dataclasses.fields(cls):
            name = field.name
            try:
                declared = node.declare_parameter(
                    name, getattr(defaults, name), descriptor(cls, name)
                )
            except InvalidParameterValueException as error:
                raise InvalidInputError(str(error)) from error
            values[name] = check_value(cls, name, declared.value)
        self.current: NodeParameters = cls(**values)
        node.add_on_set_parameters_callback(self._on_set)

    def _on_set(self, parameters: list[Parameter]) -> SetParametersResult:
        declared = {f.name: f for f in dataclasses.fields(self._cls)}
        try:
            values = {}
            for p in parameters:
                if p.name not in declared:  # use_sim_time and the like belong to rclpy
                    continue
                values[p.name] = check_value(self._cls, p.name, p.value)
                if declared[p.name].metadata["applies"] == "configure" and not self._unconfigured():
                    raise InvalidInputError(
                        f"parameter {p.name} takes effect at configure and the node is configured; "
                        "deactivate and clean up first (ros2 lifecycle set NODE cleanup)."
                    )
        except InvalidInputError as error:
            return SetParametersResult(successful=False, reason=str(error))
        self.current = dataclasses.replace(self.current, **values)
        return SetParametersResult(successful=True)
