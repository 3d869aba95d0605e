"""Engines on disk: found by what they were made of, checked before use, written all or nothing."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wristworld_ros.errors import EngineError
from wristworld_ros.runtime.backends import Backend, Runner
from wristworld_ros.runtime.graphs import REVISION, Graph, export_onnx, exporters

RECORD = "engine.json"
_TEMPORARY = ".partial-"


def default_folder() -> Path:
    """WRISTWORLD_ENGINES, else ``wristworld/engines`` in the user's cache."""
    if named := os.environ.get("WRISTWORLD_ENGINES"):
        return Path(named).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "wristworld" / "engines"


@dataclass(frozen=True)
class EngineKey:
    """What an engine is made of; engines of other keys are never used for it.

    Attributes:
        graph: name of the graph; weights: sha256 of its weights.
        shapes: input -> shape.
        backend, precision: how it is compiled.
        identity: versions and hardware that it depends on (``Backend.identity``).
        revision: of this package's graphs.
    """

    graph: str
    weights: str
    shapes: dict[str, tuple[int, ...]]
    backend: str
    precision: str
    identity: dict[str, str]
    revision: int = REVISION

    @classmethod
    def of(cls, graph: Graph, backend: Backend, precision: str) -> EngineKey:
        """Key of a graph."""
        return cls(
            graph.name, graph.weights, graph.shapes, backend.name, precision, backend.identity()
        )

    def document(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.__dict__, "shapes": {n: list(s) for n, s in self.shapes.items()}}

    @property
    def folder(self) -> str:
        """Name of the engine's folder."""
        text = json.dumps(self.document(), sort_keys=True)
        return f"{self.graph}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


class EngineStore:
    """A folder of engines, one folder each with ``engine.json``.

    Args:
        folder: made when the first engine is written.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()

    def path(self, key: EngineKey) -> Path:
        """Where the engine of a key is, or would be."""
        return self.folder / key.backend / key.folder

    def has(self, key: EngineKey) -> bool:
        """Whether it was built."""
        return (self.path(key) / RECORD).is_file()

    def build(self, graph: Graph, backend: Backend, precision: str, force: bool = False) -> Path:
        """Build an engine unless it is there; its folder appears complete or not at all.

        Args:
            force: build it again.

        Raises:
            EngineError: the backend or an exporter is missing, or the network does not compile.
        """
        backend.check(precision)
        key = EngineKey.of(graph, backend, precision)
        target = self.path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if self.has(key) and not force:
                return target
            partial = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=target.parent))
            try:
                self._write(graph, backend, key, partial)
                if target.exists():
                    shutil.rmtree(target)
                os.replace(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return target

    @staticmethod
    def _write(graph: Graph, backend: Backend, key: EngineKey, folder: Path) -> None:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as workspace:
            onnx = Path(workspace) / "graph.onnx"
            digest = export_onnx(graph, onnx)
            backend.build(onnx, folder, key.precision)
        record = {
            "key": key.document(),
            "graph_sha256": digest,
            "exporters": exporters(),
            "build_s": round(time.perf_counter() - began, 2),
            "files": {f.name: _sha256(f) for f in sorted(folder.iterdir())},
        }
        (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n")
        folder.chmod(0o755)

    def load(self, key: EngineKey, backend: Backend) -> Runner:
        """The runner of a built engine, whose files are compared to their sha256 first.

        Raises:
            EngineError: it was not built, its files are damaged, or this machine cannot run it.
        """
        folder = self.path(key)
        if not self.has(key):
            raise EngineError(
                f"there is no engine of {key.graph} for {key.backend} {key.precision} and inputs "
                f"{key.shapes} in {self.folder}. Build it: wristworld engine build."
            )
        self.check(folder)
        return backend.load(folder, key.precision)

    @staticmethod
    def check(folder: Path) -> dict[str, Any]:
        """The record of an engine whose files are as they were written.

        Raises:
            EngineError: files are missing or altered.
        """
        try:
            record = json.loads((folder / RECORD).read_text())
            files: dict[str, str] = record["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EngineError(
                f"{folder / RECORD} cannot be read ({error}). Build it again: wristworld engine "
                "build --force."
            ) from None
        for name, digest in files.items():
            path = folder / name
            if not path.is_file() or _sha256(path) != digest:
                raise EngineError(
                    f"{path} is missing or altered. Build it again: wristworld engine build "
                    "--force."
                )
        return record

    def all(self) -> list[tuple[Path, dict[str, Any]]]:
        """Folder and record of every engine that is there; damaged ones have an ``error``."""
        found = []
        for path in sorted(self.folder.glob(f"*/*/{RECORD}")):
            try:
                record = self.check(path.parent)
            except EngineError as error:
                record = {"error": str(error)}
            found.append((path.parent, record))
        return found

    def clean(self, keep: Iterable[EngineKey] = ()) -> list[Path]:
        """Remove engines but those of ``keep``, and what killed builds left; returns what went."""
        kept = {self.path(key) for key in keep}
        removed = []
        if self.folder.is_dir():
            with self._locked():
                for path in sorted(self.folder.glob("*/*")):
                    if path.is_dir() and path not in kept:
                        shutil.rmtree(path)
                        removed.append(path)
        return removed

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One builder at a time, also between processes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
