"""ROS message types without ROS: definitions, type hashes, CDR, and the package's own messages."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.interfaces import Nodetype
from rosbags.serde import SerdeError
from rosbags.typesys import Stores, get_types_from_idl, get_types_from_msg, get_typestore
from rosbags.typesys.base import TypesysError

from wristworld_ros.data.messages import Fields
from wristworld_ros.errors import BagError, InvalidInputError
from wristworld_ros.resources import candidate_folders

OWN_MESSAGES = ("WristEstimate", "GenerationStatus")


def own_message_folder() -> Path:
    """Folder with this package's .msg files: the source tree's, or the one that was installed.

    Raises:
        BagError: there is none.
    """
    searched = candidate_folders("msg")
    for folder in searched:
        if all((folder / f"{name}.msg").is_file() for name in OWN_MESSAGES):
            return folder
    raise BagError(
        f"{OWN_MESSAGES[0]}.msg was not found in {', '.join(map(str, searched))}. "
        "Install the package again."
    )


@lru_cache(maxsize=1)
def own_definitions() -> dict[str, str]:
    """Type name -> text of the .msg file, for the messages of this package."""
    folder = own_message_folder()
    return {
        f"wristworld_ros/msg/{name}": (folder / f"{name}.msg").read_text() for name in OWN_MESSAGES
    }


class MessageTypes:
    """Known message types: those that a bag defines, then this package's, then ROS 2 Jazzy's."""

    def __init__(self) -> None:
        self._store = get_typestore(Stores.EMPTY)
        self._common = get_typestore(Stores.ROS2_JAZZY)

    def register(self, msgtype: str, encoding: str, text: str) -> None:
        """Learn a definition that a bag carries; the first one of a type wins.

        Args:
            encoding: ``ros2msg`` or ``ros2idl``.

        Raises:
            BagError: the text cannot be parsed, or contradicts an earlier one.
        """
        if msgtype in self._store.fielddefs:
            return
        try:
            if encoding == "ros2idl":
                found = get_types_from_idl(text)
            else:
                found = get_types_from_msg(text, msgtype)
            self._store.register(found)
        except (TypesysError, KeyError, ValueError, SyntaxError) as error:
            raise BagError(
                f"the definition of {msgtype} cannot be used: {error}. "
                "Record the bag again with matching message packages."
            ) from error
        self._complete()

    def _complete(self) -> None:
        """Add the common types that a registered definition mentions but does not bring along."""
        for name in list(self._store.fielddefs):
            for _, description in self._store.fielddefs[name][1]:
                kind: Any
                detail: Any
                kind, detail = description
                if kind in (Nodetype.ARRAY, Nodetype.SEQUENCE):
                    kind, detail = detail[0]
                if kind == Nodetype.NAME and detail not in self._store.fielddefs:
                    self._need(str(detail))

    def _need(self, msgtype: str) -> None:
        """Make sure that a type is known.

        Raises:
            InvalidInputError: nobody defines it.
        """
        if msgtype in self._store.fielddefs:
            return
        if msgtype.startswith("wristworld_ros/") and msgtype in own_definitions():
            self.register(msgtype, "ros2msg", own_definitions()[msgtype])
            return
        if msgtype not in self._common.fielddefs:
            raise InvalidInputError(
                f"message type {msgtype} is not known: the bag carries no definition of it. "
                "Record with storage mcap, which stores the definitions."
            )
        self._store.fielddefs[msgtype] = self._common.fielddefs[msgtype]
        self._store.types[msgtype] = self._common.types[msgtype]
        self._complete()

    def knows(self, msgtype: str) -> bool:
        """Whether messages of this type can be read and written."""
        try:
            self._need(msgtype)
        except InvalidInputError:
            return False
        return True

    def definition(self, msgtype: str) -> str:
        """Full text with all nested types, as a recorder stores it (encoding ``ros2msg``)."""
        self._need(msgtype)
        text, _ = self._store.generate_msgdef(msgtype, ros_version=2)
        return text

    def type_hash(self, msgtype: str) -> str:
        """RIHS01 hash, equal to that of a ROS 2 installation."""
        self._need(msgtype)
        return self._store.hash_rihs01(msgtype)

    def make(self, msgtype: str, fields: Fields) -> Any:
        """Message object from fields; what is left out gets its default.

        Raises:
            InvalidInputError: a name that the type does not have, or an array of wrong length.
        """
        self._need(msgtype)
        definitions = dict(self._store.fielddefs[msgtype][1])
        if unknown := set(fields) - set(definitions):
            raise InvalidInputError(
                f"{msgtype} has no field {sorted(unknown)}; it has {list(definitions)}."
            )
        values = {
            name: self._value(kind, detail, fields.get(name), f"{msgtype}.{name}")
            for name, (kind, detail) in definitions.items()
        }
        return self._store.types[msgtype](**values)

    def _value(self, kind: Any, detail: Any, value: Any, where: str) -> Any:
        if kind == Nodetype.BASE:
            base = detail[0]
            if base == "string":
                return "" if value is None else str(value)
            if base == "bool":
                return bool(value)
            number = float if base.startswith("float") else int
            return number(0 if value is None else value)
        if kind == Nodetype.NAME:
            return self.make(detail, {} if value is None else value)
        (item_kind, item_detail), length = detail
        fixed = length if kind == Nodetype.ARRAY else None
        if value is not None and fixed is not None and len(value) != fixed:
            raise InvalidInputError(f"{where} takes {fixed} values, got {len(value)}.")
        if item_kind == Nodetype.BASE and item_detail[0] != "string":
            dtype = np.dtype({"byte": "u1", "char": "u1"}.get(item_detail[0], item_detail[0]))
            return np.zeros(fixed or 0, dtype) if value is None else np.asarray(value, dtype)
        items = [None] * (fixed or 0) if value is None else value
        return [self._value(item_kind, item_detail, item, where) for item in items]

    def serialize(self, msgtype: str, fields: Fields) -> bytes:
        """CDR (little endian) of a message given by its fields."""
        message = self.make(msgtype, fields)
        return bytes(self._store.serialize_cdr(message, msgtype, little_endian=True))

    def deserialize(self, msgtype: str, raw: bytes | memoryview) -> Any:
        """Message object from CDR.

        Raises:
            InvalidInputError: the bytes do not fit the type.
        """
        self._need(msgtype)
        try:
            return self._store.deserialize_cdr(raw, msgtype)
        except (SerdeError, IndexError, AssertionError, MemoryError, OverflowError) as error:
            raise InvalidInputError(
                f"{len(raw)} bytes are not a {msgtype}: {error}. The message is damaged."
            ) from error
