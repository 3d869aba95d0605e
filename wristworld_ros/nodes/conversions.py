"""From the fields of ``data.messages`` to rclpy messages; large data as ``array.array``.

Reading needs no conversion: the decoders of ``data.messages`` take rclpy messages as they are.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from wristworld_ros.data.messages import Fields

M = TypeVar("M")
_TYPECODES = {
    "u1": "B", "u2": "H", "u4": "I", "u8": "Q",
    "i1": "b", "i2": "h", "i4": "i", "i8": "q",
    "f4": "f", "f8": "d",
}  # fmt: skip


def to_array(values: np.ndarray) -> array:
    """1-D numpy array -> ``array.array``, the type that rclpy assigns without looking at items."""
    out = array(_TYPECODES[values.dtype.str[1:]])
    out.frombytes(memoryview(np.ascontiguousarray(values)).cast("B"))
    return out


def fill(message: M, fields: Fields) -> M:
    """Set the fields of an rclpy message, nested ones too; returns the message."""
    for name, value in fields.items():
        current = getattr(message, name)
        if isinstance(value, Mapping):
            fill(current, value)
        elif isinstance(value, np.ndarray):
            # fixed-size arrays (CameraInfo.k) are numpy in rclpy, sequences are array.array
            fixed = isinstance(current, np.ndarray)
            setattr(message, name, value if fixed else to_array(value))
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            element = _element_type(message, name)
            setattr(message, name, [fill(element(), v) for v in value])
        else:
            setattr(message, name, value)
    return message


def _element_type(message: Any, name: str) -> type:
    """Class of the elements of a sequence of messages."""
    kind = message.get_fields_and_field_types()[name]  # e.g. sequence<sensor_msgs/PointField>
    return message_class(kind.removeprefix("sequence<").removesuffix(">"))


def message_class(name: str) -> type:
    """Class of a message type: ``sensor_msgs/Image`` or ``sensor_msgs/msg/Image``.

    Raises:
        ImportError: the package is not installed or has no such message; says which.
    """
    import importlib

    package, *_, kind = name.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), kind)
    except (ImportError, AttributeError) as error:
        raise ImportError(
            f"message type {name} is not known to this ROS installation ({error}); install the "
            f"package {package}, or build it."
        ) from error
