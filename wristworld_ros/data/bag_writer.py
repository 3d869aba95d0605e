"""Writing ROS 2 bags (mcap) without ROS: deterministic, and complete or not there at all."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from wristworld_ros import __version__
from wristworld_ros.data.bags import BagMessage, Connection
from wristworld_ros.data.mcap import Channel, McapWriter, Message, Schema
from wristworld_ros.data.message_types import MessageTypes
from wristworld_ros.data.messages import Fields
from wristworld_ros.errors import BagError

if TYPE_CHECKING:
    from typing import Self

logger = logging.getLogger(__name__)

#: QoS by name, as in ``nodes.qos``: depth, reliability, durability (numbers of rmw).
_RELIABLE, _BEST_EFFORT, _TRANSIENT_LOCAL, _VOLATILE = 1, 2, 1, 2
QOS: Mapping[str, tuple[int, int, int]] = {
    "image": (5, _RELIABLE, _VOLATILE),
    "sensor": (5, _BEST_EFFORT, _VOLATILE),
    "state": (10, _RELIABLE, _VOLATILE),
    "latched": (1, _RELIABLE, _TRANSIENT_LOCAL),
    "tf": (100, _RELIABLE, _VOLATILE),
    "tf_static": (100, _RELIABLE, _TRANSIENT_LOCAL),
}
_NAMES = {
    "history": {1: "keep_last"},
    "reliability": {1: "reliable", 2: "best_effort"},
    "durability": {1: "transient_local", 2: "volatile"},
    "liveliness": {1: "automatic"},
}


def qos_profile(name: str, version: int = 8) -> dict[str, Any]:
    """A QoS profile as bags store it: numbers up to version 8 of their metadata, then names.

    Raises:
        BagError: unknown name.
    """
    if name not in QOS:
        raise BagError(f"QoS '{name}' is not one of {', '.join(QOS)}.")
    depth, reliability, durability = QOS[name]
    forever = {"sec": 9223372036, "nsec": 854775807}
    profile: dict[str, Any] = {
        "history": 1,
        "depth": depth,
        "reliability": reliability,
        "durability": durability,
        "deadline": dict(forever),
        "lifespan": dict(forever),
        "liveliness": 1,
        "liveliness_lease_duration": dict(forever),
        "avoid_ros_namespace_conventions": False,
    }
    if version >= 9:
        profile.update({key: names[profile[key]] for key, names in _NAMES.items()})
    return profile


class BagWriter:
    """Writes one bag: a single file if ``path`` ends in ``.mcap``, else a folder.

    The content goes to ``<path>.partial`` and gets its name when it is complete. After an error
    the partial file stays if it holds messages (it reads as a truncated bag).

    Args:
        path: where the bag shall be; must not exist unless ``overwrite``.
        compression: of the chunks, ``zstd`` or ``none``.
        version: of rosbag2's metadata, 8 or 9; decides how QoS is written.
        types: message types to use, e.g. those of a bag that is copied.

    Raises:
        BagError: the path exists, or cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        compression: str = "zstd",
        version: int = 8,
        types: MessageTypes | None = None,
        overwrite: bool = False,
    ) -> None:
        self.path = Path(path)
        self._folder = self.path.suffix != ".mcap"
        if self.path.exists() and not overwrite:
            raise BagError(f"{self.path} exists already. Remove it, or choose another name.")
        if version not in (8, 9):
            raise BagError(f"version {version} of rosbag2 metadata; can write 8 and 9.")
        self._partial = self.path.with_name(self.path.name + ".partial")
        name = f"{self.path.name}_0.mcap" if self._folder else ""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _remove(self._partial)
            if self._folder:
                self._partial.mkdir()
            self._file = self._partial / name if self._folder else self._partial
            self._writer = McapWriter(self._file, f"wristworld_ros {__version__}", compression)
        except OSError as error:
            raise BagError(f"cannot write {self._partial}: {error.strerror}.") from error
        self.types = types or MessageTypes()
        self._version = version
        self._schemas: dict[tuple[str, str, bytes], int] = {}
        self._connections: list[Connection] = []
        self._ids: dict[str, int] = {}
        self._sequence: dict[int, int] = {}

    # --- topics -----------------------------------------------------------------------------------

    def add_topic(
        self,
        topic: str,
        msgtype: str,
        qos: str = "state",
        *,
        extra: Mapping[str, str] | None = None,
        beside: bool = False,
    ) -> None:
        """Declare a topic that ``write`` shall fill; a name in ``QOS`` says how it is offered.

        Args:
            extra: string pairs to store with the topic.
            beside: where the topic has been copied from another bag, write beside its publishers
                with the same quality of service.

        Raises:
            BagError: the topic exists already.
        """
        same = next((c for c in self._connections if c.topic == topic), None)
        if same is not None and not beside:
            raise BagError(f"topic '{topic}' is in this bag already. Choose another name.")
        profiles = yaml.safe_dump([qos_profile(qos, self._version)], sort_keys=False).strip()
        if same is not None:
            profiles = same.metadata.get("offered_qos_profiles", profiles)
        self._ids[topic] = self.add_connection(
            Connection(
                topic,
                msgtype,
                "ros2msg",
                self.types.definition(msgtype).encode(),
                "cdr",
                {
                    "offered_qos_profiles": profiles,
                    "topic_type_hash": self.types.type_hash(msgtype),
                    **(extra or {}),
                },
            )
        )

    def add_connection(self, connection: Connection) -> int:
        """Add a connection as it was recorded; returns its id for ``copy``."""
        schema_id = 0
        if connection.msgtype:
            encoding, text = connection.definition_encoding, connection.definition
            if not text and self.types.knows(connection.msgtype):
                encoding, text = ("ros2msg", self.types.definition(connection.msgtype).encode())
            key = (connection.msgtype, encoding, text)
            if key not in self._schemas:
                self._schemas[key] = len(self._schemas) + 1
                self._writer.add_schema(Schema(self._schemas[key], *key))
            schema_id = self._schemas[key]
        self._connections.append(connection)
        channel_id = len(self._connections)
        self._writer.add_channel(
            Channel(
                channel_id,
                schema_id,
                connection.topic,
                connection.serialization,
                connection.metadata,
            )
        )
        return channel_id

    # --- content ----------------------------------------------------------------------------------

    def write(self, topic: str, fields: Fields, log_time_ns: int) -> None:
        """Append a message given by its fields to a topic declared by ``add_topic``.

        Raises:
            BagError: the topic was not declared.
            InvalidInputError: the fields do not fit its type.
        """
        if topic not in self._ids:
            raise BagError(f"topic '{topic}' was not declared; call add_topic first.")
        channel_id = self._ids[topic]
        raw = self.types.serialize(self._connections[channel_id - 1].msgtype, fields)
        sequence = self._sequence[channel_id] = self._sequence.get(channel_id, -1) + 1
        self._writer.write(Message(channel_id, sequence, log_time_ns, log_time_ns, memoryview(raw)))

    def copy(self, channel_id: int, message: BagMessage) -> None:
        """Append a recorded message unchanged."""
        self._writer.write(
            Message(
                channel_id,
                message.sequence,
                message.log_time_ns,
                message.publish_time_ns,
                memoryview(message.raw),
            )
        )

    def add_metadata(self, name: str, pairs: Mapping[str, str]) -> None:
        """Add an MCAP metadata record."""
        self._writer.add_metadata(name, pairs)

    def add_attachment(self, content: bytes) -> None:
        """Add an MCAP attachment as it was read."""
        self._writer.add_attachment(content)

    # --- end --------------------------------------------------------------------------------------

    def _information(self) -> dict[str, Any]:
        """rosbag2's description of the bag."""
        counts = self._writer.counts
        start, end = self._writer.time_range
        total = sum(counts.values())
        span = {
            "duration": {"nanoseconds": end - start},
            "starting_time": {"nanoseconds_since_epoch": start},
            "message_count": total,
        }
        # the file carries its final name before it has it
        name = f"{self.path.name}_0.mcap" if self._folder else self.path.name
        topics: dict[str, dict[str, Any]] = {}
        for i, connection in enumerate(self._connections, 1):
            if connection.topic in topics:  # several publishers of one topic
                topics[connection.topic]["message_count"] += counts[i]
                continue
            profiles: Any = connection.metadata.get("offered_qos_profiles", "")
            topics[connection.topic] = {
                "topic_metadata": {
                    "name": connection.topic,
                    "type": connection.msgtype,
                    "serialization_format": connection.serialization,
                    "offered_qos_profiles": connection.qos if self._version >= 9 else profiles,
                    "type_description_hash": connection.metadata.get("topic_type_hash", ""),
                },
                "message_count": counts[i],
            }
        return {
            "version": self._version,
            "storage_identifier": "mcap",
            **span,
            "topics_with_message_count": list(topics.values()),
            "compression_format": "",
            "compression_mode": "",
            "relative_file_paths": [name],
            "files": [{"path": name, **span}],
            "custom_data": None,
            "ros_distro": "",
        }

    def close(self) -> None:
        """Write index and description, and give the bag its name."""
        information = self._information()
        text = yaml.safe_dump(information, sort_keys=False)
        self._writer.add_metadata("rosbag2", {"serialized_metadata": text})
        self._writer.close()
        if self._folder:
            text = yaml.safe_dump({"rosbag2_bagfile_information": information}, sort_keys=False)
            (self._partial / "metadata.yaml").write_text(text)
        _remove(self.path)
        self._partial.replace(self.path)

    def abort(self) -> None:
        """Close without finishing; the partial file stays when it holds messages."""
        self._writer.abort()
        if sum(self._writer.counts.values()):
            logger.warning(
                "%s was not finished; what was written is in %s", self.path, self._partial
            )
        else:
            _remove(self._partial)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
