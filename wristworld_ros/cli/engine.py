"""``wristworld engine``: networks compiled for a runtime, kept in a cache."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wristworld_ros.errors import EngineError, InvalidInputError, WristWorldError

if TYPE_CHECKING:
    from wristworld_ros.runtime.backends import Backend
    from wristworld_ros.runtime.graphs import Graph

HELP = "compile the generator's networks for OpenVINO, ONNX Runtime, TensorRT; list, verify, clean"
ACTIONS = ("build", "list", "verify", "clean")
#: Relative error (root mean square over standard deviation) up to which an engine counts as the
#: same network.
TOLERANCE = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this verb."""
    parser.add_argument("action", choices=ACTIONS)
    parser.add_argument(
        "--backend",
        default="openvino",
        help="openvino (default), onnxruntime, tensorrt (on its own GPU) or tensorrt_rtx",
    )
    parser.add_argument(
        "--precision", help="fp32, fp16 or bf16; default: the fastest that runs here"
    )
    parser.add_argument(
        "--target",
        metavar="CC",
        help="build: compute capability of a GPU that is not here, such as 8.6 (tensorrt_rtx)",
    )
    parser.add_argument("--model", type=Path, metavar="DIR", help="weights; default: shipped ones")
    parser.add_argument("--networks", nargs="+", help="only these; default: all of stage 2")
    parser.add_argument(
        "--views", type=int, nargs="+", default=[3], help="numbers of anchors, default 3"
    )
    parser.add_argument(
        "--frames", type=int, default=1, help="1 (default) to stream; 8 for chunks of recordings"
    )
    parser.add_argument("--size", default="128x128", help="of the wrist view, default 128x128")
    parser.add_argument("--force", action="store_true", help="build again what is there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="verify: write the errors there")


def run(args: argparse.Namespace) -> int:
    """Do it; returns 0, or 1 when ``verify`` finds an engine that is not right."""
    from wristworld_ros.runtime.engines import EngineStore

    store = EngineStore()
    if args.action == "list":
        return _list(store)
    if args.action == "clean":
        for path in store.clean():
            print(f"removed {path}")
        return 0
    from wristworld_ros.runtime.registry import get_backend

    backend = get_backend(args.backend)
    if args.target:
        backend = backend.targeting(args.target)
    backend.check(args.precision or backend.precisions[-1], run=args.action == "verify")
    precision = args.precision or backend.default_precision()
    chosen = graphs(args)
    if args.action == "verify":
        return _verify(store, backend, precision, chosen, args.json)
    for i, graph in enumerate(chosen, 1):
        print(f"[{i}/{len(chosen)}] {graph.name} {_shapes(graph)}", flush=True)
        path = store.build(graph, backend, precision, force=args.force)
        print(f"    {path}", flush=True)
    return 0


def size_of(text: str) -> tuple[int, int]:
    """``WxH`` -> width, height [px].

    Raises:
        InvalidInputError: not of that form, or not multiples of 16.
    """
    width, _, height = text.partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise InvalidInputError(f"size '{text}': write it as WIDTHxHEIGHT, e.g. 128x128.")
    if int(width) % 16 or int(height) % 16:
        raise InvalidInputError(f"size {text}: both sides must be multiples of 16.")
    return int(width), int(height)


def graphs(args: argparse.Namespace) -> list[Graph]:
    """The graphs that the options name, each shape once."""
    from wristworld_ros.generation import Generator

    width, height = size_of(args.size)
    networks = Generator.from_pretrained(args.model).networks
    found: dict[str, Graph] = {}
    for views in args.views:
        for graph in networks.graphs(args.frames, views, height, width):
            found[f"{graph.name} {graph.shapes}"] = graph
    names = {g.name for g in found.values()}
    wanted = set(args.networks or names)
    if unknown := wanted - names:
        raise InvalidInputError(
            f"no networks {sorted(unknown)}; this model has {', '.join(sorted(names))}."
        )
    return [g for g in found.values() if g.name in wanted]


def _shapes(graph: Graph) -> str:
    return ", ".join(f"{n} {'x'.join(map(str, s))}" for n, s in graph.shapes.items())


def _list(store: Any) -> int:
    for path, record in store.all():
        if "error" in record:
            print(f"damaged     {path}: {record['error']}")
            continue
        key = record["key"]
        size = sum(f.stat().st_size for f in path.iterdir()) / 1e6
        shapes = ", ".join(f"{n} {'x'.join(map(str, s))}" for n, s in key["shapes"].items())
        gpu = key["identity"].get("compute_capability")
        target = f"SM {gpu}  " if gpu else ""
        print(
            f"{key['backend']:<12} {key['precision']:<5} {key['graph']:<9} {size:5.1f} MB  "
            f"{target}weights {key['weights'][:12]}  {shapes}"
        )
    print(f"in {store.folder}")
    return 0


def _verify(
    store: Any, backend: Backend, precision: str, chosen: list[Graph], json_file: Path | None
) -> int:
    """Run every engine on examples and compare with torch."""
    from wristworld_ros.runtime.engines import EngineKey
    from wristworld_ros.runtime.parity import relative_errors

    rows: dict[str, Any] = {}
    wrong = 0
    for graph in chosen:
        label = f"{graph.name} {_shapes(graph)}"
        try:
            runner = store.load(EngineKey.of(graph, backend, precision), backend)
            errors = relative_errors(runner, graph)
        except EngineError as error:
            print(f"FAILED  {label}: {error}")
            wrong += 1
            continue
        good = max(errors.values()) <= TOLERANCE[precision]
        wrong += not good
        found = ", ".join(f"{n} {e:.1e}" for n, e in errors.items())
        print(f"{'ok' if good else 'WRONG':<7} {label}: {found} ({runner.provider})")
        rows[label] = {"errors": errors, "provider": runner.provider, "ok": good}
    if json_file:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(rows, indent=1) + "\n")
    if not chosen:
        raise WristWorldError("there is nothing to verify")
    return int(wrong > 0)
