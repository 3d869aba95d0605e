"""Entry of the command ``wristworld``: finds the verb, prints expected errors in one line."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from wristworld_ros import __version__
from wristworld_ros.errors import WristWorldError

#: Verb -> module. Each has HELP: str, add_arguments(parser) -> None and run(args) -> int.
VERBS = {
    "demo": "wristworld_ros.cli.demo",
    "simulate": "wristworld_ros.cli.simulate",
    "import": "wristworld_ros.cli.import_",
    "run": "wristworld_ros.cli.run",
    "calibrate": "wristworld_ros.cli.calibrate",
    "train": "wristworld_ros.cli.train",
    "finetune": "wristworld_ros.cli.finetune",
    "evaluate": "wristworld_ros.cli.evaluate",
    "gallery": "wristworld_ros.cli.gallery",
    "experiment": "wristworld_ros.cli.experiment",
    "engine": "wristworld_ros.cli.engine",
    "bench": "wristworld_ros.cli.bench",
    "up": "wristworld_ros.cli.up",
    "info": "wristworld_ros.cli.info",
}
EXIT_OK, EXIT_FAILED, EXIT_INTERRUPTED = 0, 2, 130


def verb_help(module_name: str) -> str:
    """HELP of a verb, read from its source so that listing the verbs imports none of them."""
    spec = find_spec(module_name)
    if spec is None or spec.origin is None:
        return "(not part of this installation)"
    for node in ast.parse(Path(spec.origin).read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "HELP" for t in targets):
            return str(ast.literal_eval(node.value))
    return ""


def usage() -> str:
    """Text of ``wristworld --help``."""
    lines = [f"  {verb:10} {verb_help(module)}" for verb, module in VERBS.items()]
    return "\n".join(
        [
            "usage: wristworld VERB [options]",
            "",
            "Virtual wrist camera for robots: third-person views in, wrist view out.",
            "",
            *lines,
            "",
            "`wristworld VERB --help` lists the options of a verb; `wristworld --version`.",
            "Set WRISTWORLD_TRACEBACK=1 to see where an error comes from.",
        ]
    )


def _import_verb(verb: str) -> ModuleType:
    try:
        return importlib.import_module(VERBS[verb])
    except ModuleNotFoundError as error:
        raise _missing_package(verb, error) from error


def _missing_package(verb: str, error: ModuleNotFoundError) -> WristWorldError:
    name = (error.name or "").split(".")[0]
    if name == "wristworld_ros":
        return WristWorldError(
            f"`wristworld {verb}` needs {error.name}, which this installation lacks. Build the "
            "package again: `make setup`, `colcon build`, or `pip install .` in the source tree."
        )
    extras = {"mujoco": "sim", "onnxruntime": "onnx", "openvino": "openvino"}
    if name in ("rclpy", "tf2_msgs", "launch") or name.endswith("_msgs"):
        cure = "Source your ROS 2 setup file, or use the environment that `make setup` makes."
    elif name in extras:
        cure = f"Install it: pip install 'wristworld_ros[{extras[name]}]'"
    else:
        cure = "Install it with pip, or use the environment that `make setup` makes."
    return WristWorldError(f"`wristworld {verb}` needs the Python package '{name}'. {cure}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``wristworld`` with ``arguments`` (default: those of the process).

    Returns:
        The exit code of the verb; 2 after an error that the user can act on, 130 after ctrl-c.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] in ([], ["-h"], ["--help"], ["help"]):
        print(usage())
        return EXIT_OK
    if arguments[0] == "--version":
        print(f"wristworld {__version__}")
        return EXIT_OK
    verb = arguments[0]
    try:
        if verb not in VERBS:
            raise WristWorldError(f"there is no verb '{verb}'; the verbs are {', '.join(VERBS)}.")
        module = _import_verb(verb)
        parser = argparse.ArgumentParser(prog=f"wristworld {verb}", description=module.HELP)
        module.add_arguments(parser)
        return int(module.run(parser.parse_args(arguments[1:])) or EXIT_OK)
    except ModuleNotFoundError as error:
        return _report(_missing_package(verb, error))
    except WristWorldError as error:
        return _report(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `wristworld ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK


def _report(error: WristWorldError) -> int:
    if os.environ.get("WRISTWORLD_TRACEBACK"):
        raise error
    print(f"error: {error}", file=sys.stderr)
    return EXIT_FAILED


if __name__ == "__main__":
    sys.exit(main())
