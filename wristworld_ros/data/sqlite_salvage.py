"""What can still be read of a damaged sqlite3 bag file."""

from __future__ import annotations

import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from wristworld_ros.errors import BagError

logger = logging.getLogger(__name__)


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
        if path.read_bytes()[:16] != b"SQLite format 3\x00":
            raise BagError(
                f"{path} ({path.stat().st_size} bytes) is not an sqlite3 bag: {reason}. "
                "Check that the file was copied completely."
            )
        self._database = sqlite3.connect(f"file:{path}?immutable=1", uri=True)
        try:
            columns = [row[1] for row in self._database.execute("PRAGMA table_info(topics)")]
            if not columns:
                raise BagError(f"{path} has no table of topics: it is not a ROS 2 bag ({reason}).")
            qos = "offered_qos_profiles" if "offered_qos_profiles" in columns else "''"
            topics = self._database.execute(
                f"SELECT id, name, type, serialization_format, {qos} FROM topics"
            ).fetchall()
        except sqlite3.DatabaseError as error:
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

    def _definitions(self) -> dict[str, tuple[str, bytes]]:
        try:
            rows = self._database.execute(
                "SELECT topic_type, encoding, encoded_message_definition FROM message_definitions"
            ).fetchall()
        except sqlite3.DatabaseError:  # older bags have no such table
            return {}
        return {name: (encoding, text.encode()) for name, encoding, text in rows}

    def _list_rows(self, reason: str) -> list[tuple[int, int, int]]:
        """(stamp, row, topic) of all rows that can be reached, by stamp."""
        rows: list[tuple[int, int, int]] = []
        try:
            # length(data) makes sqlite follow the row to its last page
            for i, topic, stamp, _ in self._database.execute(
                "SELECT id, topic_id, timestamp, length(CAST(data AS BLOB)) "
                "FROM messages NOT INDEXED"
            ):
                if topic in self.connections:
                    rows.append((stamp, i, topic))
        except sqlite3.DatabaseError as error:
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
                (raw,) = self._database.execute(
                    "SELECT data FROM messages WHERE id = ?", (row,)
                ).fetchone()
            except (sqlite3.DatabaseError, TypeError) as error:
                self._note(f"message {row} at {stamp / 1e9:.3f} s is lost: {error}")
                continue
            yield topic, 0, stamp, stamp, raw

    def close(self) -> None:
        """Close the file."""
        self._database.close()
