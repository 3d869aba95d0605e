"""How close an engine is to the network that it was made of."""

from __future__ import annotations

from wristworld_ros.errors import EngineError
from wristworld_ros.runtime.backends import Runner
from wristworld_ros.runtime.graphs import Graph


def relative_errors(runner: Runner, graph: Graph) -> dict[str, float]:
    """Output -> root mean square error over the output's standard deviation, on the examples.

    Raises:
        EngineError: other shapes than the network's, or values that are not finite.
    """
    expected = graph.reference()
    found = runner(*graph.inputs.values())
    out = {}
    for name, a, b in zip(graph.outputs, expected, found, strict=True):
        if a.shape != b.shape or not bool(b.isfinite().all()):
            raise EngineError(
                f"{graph.name}, output {name}: shape {tuple(b.shape)} for {tuple(a.shape)}, "
                f"{int((~b.isfinite()).sum())} values not finite."
            )
        spread = float(a.std()) or 1.0
        out[name] = float((a - b).square().mean().sqrt()) / spread
    return out
