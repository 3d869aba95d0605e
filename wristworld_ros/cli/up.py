"""``wristworld up``: start both nodes, as ``ros2 launch wristworld_ros virtual_wrist.launch.py``.

For machines where ``ros2 launch`` is absent (ROS 2 from wheels). Same arguments, same graph.
"""

from __future__ import annotations

import argparse

from wristworld_ros.cli.ros import require_ros
from wristworld_ros.nodes.graph import ARGUMENTS, build_graph

HELP = "start the ROS 2 nodes (where 'ros2 launch' is absent)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One option per launch argument."""
    for argument in ARGUMENTS:
        text = argument.description
        if argument.default:
            text += f" (default: {argument.default})"
        parser.add_argument(
            "--" + argument.name.replace("_", "-"),
            dest=argument.name,
            default="",
            choices=argument.choices or None,
            help=text,
        )
    parser.add_argument(
        "--print", action="store_true", help="print the command lines and start nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Start the processes and wait for them; the exit code is theirs."""
    specs = build_graph({a.name: getattr(args, a.name) for a in ARGUMENTS})
    if args.print:
        import shlex

        for spec in specs:
            print(shlex.join(spec.command()))
        return 0
    require_ros("wristworld up")
    from wristworld_ros.nodes.supervisor import GraphProcesses

    return GraphProcesses(specs).run()
