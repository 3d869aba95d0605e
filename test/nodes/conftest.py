"""The two real nodes in processes of their own, with tiny random weights."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("rclpy")
pytest.importorskip("wristworld_ros.msg")

sys.path.insert(0, str(Path(__file__).parent))  # for ros_bench

from ros_bench import CAMERAS, FAST, HEIGHT, NODES, WIDTH, Bench, save_tiny_models

from wristworld_ros.nodes.graph import build_graph
from wristworld_ros.nodes.parameters import PARAMETERS
from wristworld_ros.nodes.session import isolated_environment
from wristworld_ros.nodes.supervisor import GraphProcesses
from wristworld_ros.types import CameraModel


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_models(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def anchor_camera() -> CameraModel:
    return CameraModel.from_fov(0.9, WIDTH, HEIGHT)


@pytest.fixture(scope="session")
def bench(tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """The two nodes in processes of their own, and a bench in their domain."""
    log = tmp_path_factory.mktemp("log") / "nodes.log"
    extra = {n: {"model_path": str(tiny_models), "cameras": list(CAMERAS), **FAST} for n in NODES}
    with isolated_environment() as environment, log.open("wb") as output:
        graph = GraphProcesses(build_graph({}, extra), environment, output)
        bench = Bench(environment, graph, {n: _settable(n) | extra[n] for n in NODES})
        try:
            for node in NODES:
                bench.wait(f"{node} active", lambda node=node: bench.said_state(node) == "active")
            yield bench
        finally:
            bench.close()
            codes = graph.stop()
    assert set(codes.values()) == {0}, log.read_text()[-3000:]


def _settable(node: str) -> dict[str, Any]:
    """Defaults of the parameters that are not read-only."""
    cls = PARAMETERS[node]
    fields = [f for f in dataclasses.fields(cls) if f.metadata["applies"] != "start"]
    return {f.name: getattr(cls(), f.name) for f in fields}
