"""What can still be read of a damaged sqlite3 bag file."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import apsw

from wristworld_ros.errors import BagError

logger = logging.getLogger(__name__)

MAGIC = b"SQLite format 3\x00"
_VFS_NAME = "wristworld_whole_pages"


class _WholePagesFile(apsw.VFSFile):
    """A file that ends with its last complete page.

    sqlite fills a page that is cut off with zeros, which would come out as altered messages.
    """

    def __init__(self, name: Any, flags: list[int]) -> None:
        super().__init__("", name, flags)
        header = bytes(super().xRead(100, 0))
        size = int.from_bytes(header[16:18], "big")
        self._page = 65536 if size == 1 else max(size, 512)

    def xFileSize(self) -> int:
        """Size without a page that is cut off [bytes]."""
        size = super().xFileSize()
        return size - size % self._page


class _WholePages(apsw.VFS):
    def __init__(self) -> None:
        super().__init__(_VFS_NAME, "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return _WholePagesFile(name, flags)


class SqliteSalvage:
    """Reads rows in the order in which they were recorded, until the file gives out.

    Raises:
        BagError: not even the list of topics can be read, or it is no sqlite3 file.
    """

    def __init__(self, path: Path, reason: str, connection: Callable[..., Any]) -> None:
        self.damage: list[str] = []
        self.metadata: list[tuple[str, dict[str, str]]] = []
        self.attachments: list[bytes] = []
        self._path = path
        with path.open("rb") as stream:
            head = stream.read(512)
        if len(head) < 512 or not head.startswith(MAGIC):
            raise BagError(
                f"{path} ({path.stat().st_size} bytes) is not an sqlite3 bag: {reason}. "
                "Check that the file was copied completely."
            )
        vfs = _WholePages()
        self._database = apsw.Connection(
            f"file:{path}?immutable=1",
            flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI,
            vfs=_VFS_NAME,
        )
        self._vfs = vfs  # lives as long as the connection
        try:
            # Without it sqlite refuses a file that is shorter than its header says.
            self._query("PRAGMA writable_schema = ON")
            columns = [row[1] for row in self._query("PRAGMA table_info(topics)")]
            if not columns:
                raise BagError(f"{path} has no table of topics: it is not a ROS 2 bag ({reason}).")
            qos = "offered_qos_profiles" if "offered_qos_profiles" in columns else "''"
            topics = self._query(f"SELECT id, name, type, serialization_format, {qos} FROM topics")
        except apsw.Error as error:
            raise BagError(
                f"{path} is damaged so early that not even its topics can be read ({error}). "
                "Nothing can be recovered from it here; copy it again."
            ) from error
        definitions = self._definitions()
        self.connections: dict[int, Any] = {
            i: connection(
                name,
                msgtype,
                *definitions.get(msgtype, ("", b"")),
                serialization,
                {"offered_qos_profiles": profiles},
            )
            for i, name, msgtype, serialization, profiles in topics
        }
        self._rows = self._list_rows(reason)
        self.counts: dict[int, int] = dict(Counter(topic for _, _, topic in self._rows))

    def _query(self, sql: str, *values: int) -> list[Any]:
        return list(self._database.execute(sql, values))

    def _definitions(self) -> dict[str, tuple[str, bytes]]:
        try:
            rows = self._query(
                "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
            )
        except apsw.Error:  # older bags have no such table
            return {}
        return {name: (encoding, text.encode()) for name, encoding, text in rows}

    def _list_rows(self, reason: str) -> list[tuple[int, int, int]]:
        """(stamp, row, topic) of all rows that can be reached, by stamp."""
        rows: list[tuple[int, int, int]] = []
        try:
            # data itself, since only that makes sqlite follow a row to its last page
            found: Any = self._database.execute(
                "SELECT id, topic_id, timestamp, data FROM messages NOT INDEXED"
            )
            for i, topic, stamp, _ in found:
                if topic in self.connections:
                    rows.append((stamp, i, topic))
        except apsw.Error as error:
            reason = str(error)
        self._note(f"damaged ({reason}); {len(rows)} messages were recovered, the rest is lost")
        return sorted(rows)

    def _note(self, text: str) -> None:
        self.damage.append(f"{self._path.name}: {text}")
        logger.warning(self.damage[-1])

    def read(
        self, ids: Collection[int], start_ns: int, stop_ns: int
    ) -> Iterator[tuple[int, int, int, int, memoryview | bytes]]:
        """Yield (id, sequence, log time, publish time, raw) by log time."""
        for stamp, row, topic in self._rows:
            if topic not in ids or not start_ns <= stamp < stop_ns:
                continue
            try:
                ((raw,),) = self._query("SELECT data FROM messages WHERE id = ?", row)
            except (apsw.Error, ValueError) as error:
                self._note(f"message {row} at {stamp / 1e9:.3f} s is lost: {error}")
                continue
            yield topic, 0, stamp, stamp, raw

    def close(self) -> None:
        """Close the file."""
        self._database.close()
