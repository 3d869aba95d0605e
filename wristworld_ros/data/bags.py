"""ROS 2 bags without ROS: reading mcap and sqlite3 as far as they go."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import apsw
import yaml
from rosbags.interfaces import ConnectionExtRosbag2, MessageDefinitionFormat
from rosbags.rosbag2 import Reader as RosbagsReader
from rosbags.rosbag2 import ReaderError
from rosbags.rosbag2.metadata import dump_qos_v8

from wristworld_ros.data.mcap import McapReader, ZstdError
from wristworld_ros.data.message_types import MessageTypes
from wristworld_ros.data.sqlite_salvage import SqliteSalvage
from wristworld_ros.errors import BagError, InvalidInputError

if TYPE_CHECKING:
    from typing import Self

logger = logging.getLogger(__name__)
#: What rosbags lets through when a file is damaged.
_READ_ERRORS = (ReaderError, apsw.Error, OSError, KeyError, TypeError, ValueError)
_FOREVER = (1 << 63) - 1


@dataclass(frozen=True)
class Connection:
    """One publisher as it was recorded: topic, type and quality of service.

    Attributes:
        msgtype: e.g. ``sensor_msgs/msg/Image``.
        definition_encoding, definition: ``ros2msg`` or ``ros2idl``, and the text; empty when the
            bag carries none.
        serialization: ``cdr``.
        metadata: string pairs stored with the topic, among them ``offered_qos_profiles``.
    """

    topic: str
    msgtype: str
    definition_encoding: str
    definition: bytes
    serialization: str
    metadata: Mapping[str, str] = field(hash=False)

    @property
    def qos(self) -> list[dict[str, Any]]:
        """Offered QoS profiles as recorded (numbers or names, by the version of the bag)."""
        profiles = yaml.safe_load(self.metadata.get("offered_qos_profiles", "") or "[]")
        return profiles if isinstance(profiles, list) else []

    @property
    def latched(self) -> bool:
        """Whether late joiners receive the last message (transient local)."""
        return any(q.get("durability") in (1, "transient_local") for q in self.qos)


@dataclass(frozen=True)
class BagMessage:
    """One recorded message; ``decode`` gives its fields.

    Attributes:
        log_time_ns, publish_time_ns: when it was recorded, and sent [ns].
        raw: serialised bytes (CDR).
    """

    connection: Connection
    sequence: int
    log_time_ns: int
    publish_time_ns: int
    raw: memoryview | bytes
    types: MessageTypes = field(repr=False, compare=False)

    @property
    def topic(self) -> str:
        return self.connection.topic

    def decode(self) -> Any:
        """Message object with the fields of its type.

        Raises:
            InvalidInputError: naming topic and time, when the bytes do not fit the type.
        """
        try:
            return self.types.deserialize(self.connection.msgtype, self.raw)
        except InvalidInputError as error:
            at = self.log_time_ns / 1e9
            raise InvalidInputError(f"{self.topic} at {at:.3f} s: {error}") from error


class _Storage(Protocol):
    """One file of a bag. ``connections`` maps ids of its own to connections."""

    connections: dict[int, Connection]
    counts: dict[int, int]
    damage: list[str]
    metadata: list[tuple[str, dict[str, str]]]
    attachments: list[bytes]

    def read(
        self, ids: Collection[int], start_ns: int, stop_ns: int
    ) -> Iterator[tuple[int, int, int, int, memoryview | bytes]]:
        """Yield (id, sequence, log time, publish time, raw) by log time."""

    def close(self) -> None: ...


class _McapStorage:
    def __init__(self, path: Path) -> None:
        self._file = McapReader(path)
        self.damage = self._file.damage
        self.metadata = self._file.metadata
        self.attachments = self._file.attachments
        self.counts = self._file.counts or {}
        self.connections = {}
        for channel in self._file.channels.values():
            schema = self._file.schemas.get(channel.schema_id)
            self.connections[channel.id] = Connection(
                channel.topic,
                schema.name if schema else "",
                schema.encoding if schema else "",
                schema.data if schema else b"",
                channel.message_encoding,
                channel.metadata,
            )

    def read(
        self, ids: Collection[int], start_ns: int, stop_ns: int
    ) -> Iterator[tuple[int, int, int, int, memoryview | bytes]]:
        for m in self._file.messages(ids, start_ns, stop_ns):
            yield m.channel_id, m.sequence, m.log_time, m.publish_time, m.data

    def close(self) -> None:
        self._file.close()


class _RosbagsStorage:
    """sqlite3 files and compressed bag folders, read by the rosbags package."""

    def __init__(self, path: Path) -> None:
        self._reader = RosbagsReader(path)
        self._reader.open()
        self.damage: list[str] = []
        self.metadata: list[tuple[str, dict[str, str]]] = []
        self.attachments: list[bytes] = []
        self._path = path
        self.connections = {}
        self.counts = {}
        formats = {MessageDefinitionFormat.MSG: "ros2msg", MessageDefinitionFormat.IDL: "ros2idl"}
        for c in self._reader.connections:
            assert isinstance(c.ext, ConnectionExtRosbag2)
            metadata = {"offered_qos_profiles": dump_qos_v8(c.ext.offered_qos_profiles)}
            if c.digest:
                metadata["topic_type_hash"] = c.digest
            self.connections[c.id] = Connection(
                c.topic,
                c.msgtype,
                formats.get(c.msgdef.format, ""),
                c.msgdef.data.encode(),
                c.ext.serialization_format,
                metadata,
            )
            self.counts[c.id] = c.msgcount

    def read(
        self, ids: Collection[int], start_ns: int, stop_ns: int
    ) -> Iterator[tuple[int, int, int, int, memoryview | bytes]]:
        wanted = [c for c in self._reader.connections if c.id in ids]
        if not wanted:
            return
        try:
            for connection, stamp, raw in self._reader.messages(
                wanted, start_ns, min(stop_ns, _FOREVER)
            ):
                yield connection.id, 0, stamp, stamp, raw
        except (*_READ_ERRORS, ZstdError) as error:
            self.damage.append(f"{self._path.name}: {error}; messages after that are lost")
            logger.warning(self.damage[-1])

    def close(self) -> None:
        self._reader.close()


class BagReader:
    """A bag as one stream of messages in the order of their log time.

    Takes a folder with ``metadata.yaml``, one whose recorder died before writing it, or a single
    ``.mcap`` or ``.db3`` file. A truncated or altered bag is read as far as it goes.

    Attributes:
        connections: every topic with its type and QoS.
        counts: topic -> number of messages.
        types: message types, those of the bag first.
        metadata: MCAP metadata records as (name, string pairs), without rosbag2's own.
        attachments: MCAP attachments, raw.
        damage: what could not be read, one sentence each; grows while messages are read.

    Raises:
        BagError: no such path, or nothing in it is a bag.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise BagError(f"bag {self.path} does not exist. Check the path.")
        self._damage: list[str] = []
        self._storages = self._open()
        self.types = MessageTypes()
        self.connections: list[Connection] = []
        self.counts: dict[str, int] = {}
        for storage in self._storages:
            for i, connection in storage.connections.items():
                if connection not in self.connections:
                    self.connections.append(connection)
                self.counts[connection.topic] = self.counts.get(connection.topic, 0) + (
                    storage.counts.get(i, 0)
                )
                if connection.definition:
                    self.types.register(
                        connection.msgtype,
                        connection.definition_encoding,
                        connection.definition.decode(errors="replace"),
                    )
        self.metadata = [m for s in self._storages for m in s.metadata if m[0] != "rosbag2"]
        self.attachments = [a for s in self._storages for a in s.attachments]

    def _open(self) -> list[_Storage]:
        if self.path.is_file():
            return [self._open_file(self.path)]
        info: dict[str, Any] = {}
        description = self.path / "metadata.yaml"
        if description.is_file():
            try:
                info = yaml.safe_load(description.read_text())["rosbag2_bagfile_information"]
            except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
                self._note(f"metadata.yaml cannot be read ({error}); taking every file there is")
        else:
            self._note("metadata.yaml is missing (the recorder was killed); taking every file")
        if str(info.get("compression_mode") or "").lower() in ("file", "message"):
            try:
                return [_RosbagsStorage(self.path)]
            except (*_READ_ERRORS, ZstdError) as error:
                raise BagError(f"{self.path}: {error}. Decompress it: ros2 bag convert.") from error
        names = [Path(n).name for n in info.get("relative_file_paths", [])]
        files = [self.path / n for n in names] or sorted(
            p for p in self.path.iterdir() if p.suffix in (".mcap", ".db3")
        )
        present = [f for f in files if f.is_file()]
        if not present:
            raise BagError(
                f"{self.path} holds no bag: no .mcap or .db3 file "
                f"({', '.join(names) or 'none'} listed in metadata.yaml). Check the path."
            )
        for missing in set(files) - set(present):
            self._note(f"{missing.name}, a part of the bag, is missing")
        return [self._open_file(f) for f in present]

    def _open_file(self, path: Path) -> _Storage:
        if path.suffix == ".mcap":
            return _McapStorage(path)
        if path.suffix != ".db3":
            raise BagError(
                f"{path} is not a bag: known are .mcap and .db3 files and folders with a "
                "metadata.yaml. Unpack or convert it (ros2 bag convert)."
            )
        log = path.with_name(path.name + "-wal")
        if log.is_file() and log.stat().st_size:
            self._note(
                f"{log.name} holds messages that were not yet merged, they are left out; "
                f"merge them: sqlite3 {path.name} 'pragma wal_checkpoint(truncate)'"
            )
        try:
            return _RosbagsStorage(path)
        except _READ_ERRORS as error:
            return SqliteSalvage(path, str(error), Connection)

    def _note(self, text: str) -> None:
        self._damage.append(f"{self.path.name}: {text}")
        logger.warning(self._damage[-1])

    @property
    def damage(self) -> list[str]:
        return self._damage + [d for s in self._storages for d in s.damage]

    @property
    def topics(self) -> list[str]:
        """Names of all topics, sorted."""
        return sorted(self.counts)

    def msgtype(self, topic: str) -> str:
        """Message type of a topic.

        Raises:
            BagError: the bag has no such topic.
        """
        for connection in self.connections:
            if connection.topic == topic:
                return connection.msgtype
        raise BagError(
            f"bag {self.path} has no topic '{topic}'; it has {', '.join(self.topics) or 'none'}."
        )

    def messages(
        self, topics: Collection[str] | None = None, start_ns: int = 0, stop_ns: int = _FOREVER
    ) -> Iterator[BagMessage]:
        """Messages with start <= log time < stop, of some topics or of all.

        Raises:
            BagError: a topic that the bag does not have.
        """
        for topic in topics or ():
            self.msgtype(topic)
        streams = [
            self._stream(rank, storage, topics, start_ns, stop_ns)
            for rank, storage in enumerate(self._storages)
        ]
        for _, message in heapq.merge(*streams, key=lambda item: item[0]):
            yield message

    def _stream(
        self,
        rank: int,
        storage: _Storage,
        topics: Collection[str] | None,
        start_ns: int,
        stop_ns: int,
    ) -> Iterator[tuple[tuple[int, int], BagMessage]]:
        chosen = {
            i: c for i, c in storage.connections.items() if topics is None or c.topic in topics
        }
        for i, sequence, log_time, publish_time, raw in storage.read(chosen, start_ns, stop_ns):
            message = BagMessage(chosen[i], sequence, log_time, publish_time, raw, self.types)
            yield (log_time, rank), message

    def close(self) -> None:
        """Close all files."""
        for storage in self._storages:
            storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
