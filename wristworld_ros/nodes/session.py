"""One run of the graph over a bag: start the nodes, play, record, account for every frame, stop."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from wristworld_ros.errors import WristWorldError
from wristworld_ros.nodes import qos
from wristworld_ros.nodes.graph import NodeSpec
from wristworld_ros.nodes.playback import (
    BagPlayer,
    PlaybackTimes,
    Recorded,
    Recorder,
    wait_until,
)
from wristworld_ros.nodes.process import prepare_process
from wristworld_ros.nodes.supervisor import GraphProcesses

#: Topics of the graph, relative to its namespace -> message type.
OUTPUTS: Mapping[str, str] = {
    "wrist/estimate": "wristworld_ros/msg/WristEstimate",
    "wrist/condition/image": "sensor_msgs/msg/Image",
    "wrist/condition/mask": "sensor_msgs/msg/Image",
    "wrist/condition/camera_info": "sensor_msgs/msg/CameraInfo",
    "wrist/image_raw": "sensor_msgs/msg/Image",
    "wrist/image_raw/compressed": "sensor_msgs/msg/CompressedImage",
    "wrist/camera_info": "sensor_msgs/msg/CameraInfo",
    "wrist/confidence": "sensor_msgs/msg/Image",
    "wrist/status": "wristworld_ros/msg/GenerationStatus",
}
ABSOLUTE_OUTPUTS: Mapping[str, str] = {
    "/tf": "tf2_msgs/msg/TFMessage",
    "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
}


@contextlib.contextmanager
def isolated_environment() -> Iterator[dict[str, str]]:
    """Variables for a graph of its own: local to this machine, in a domain nobody uses.

    The domain stays claimed, against other runs of this package, until the context is left.
    """
    domain, claim = claim_domain()
    with claim:
        yield _environment(domain)


def _environment(domain: int) -> dict[str, str]:
    variables = {
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
    }
    if os.environ.get("ROS_DISTRO") == "humble":  # does not know the variable above
        variables["ROS_LOCALHOST_ONLY"] = "1"
    return variables


def claim_domain() -> tuple[int, IO[bytes]]:
    """A ROS domain between 1 and 100 that is not in use here, and the file whose lock holds it.

    Other programs are noticed by their first discovery port, other runs of this package (and its
    tests) by their lock.

    Raises:
        WristWorldError: all are in use.
    """
    domains = list(range(1, 101))
    random.SystemRandom().shuffle(domains)
    for domain in domains:
        path = Path(tempfile.gettempdir(), f"wristworld-ros-domain-{domain}.lock")
        lock = path.open("ab")  # held open for as long as the domain is taken
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as probe:
                probe.bind(("127.0.0.1", 7400 + 250 * domain + 10))
        except OSError:
            lock.close()
            continue
        return domain, lock
    raise WristWorldError("all ROS domains from 1 to 100 are in use on this machine; end some.")


@contextlib.contextmanager
def _variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process, and set them back."""
    previous = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@dataclass
class SessionResult:
    """What a run gave.

    Attributes:
        recorded: outputs in the order of arrival (``/tf`` includes what was played).
        times: when the player sent what.
        frames: node -> counters of its last diagnostics (frames_in, frames_out, ``dropped ...``).
        exit_codes: node -> exit code after the interrupt that ends the run.
        drained: whether every frame was accounted for before the run was ended.
    """

    recorded: list[Recorded]
    times: PlaybackTimes
    frames: dict[str, dict[str, float]]
    exit_codes: dict[str, int]
    drained: bool


class Session:
    """Runs a graph over a bag.

    Args:
        specs: the graph.
        cameras: names of the anchor cameras, as the graph has them.
        image_topics: image topic of each camera, resolved.
        log: file that takes the nodes' own output.
        say: told in words what is going on.
    """

    def __init__(
        self,
        specs: Sequence[NodeSpec],
        image_topics: Sequence[str],
        info_topics: Sequence[str],
        log: Path,
        say: Callable[[str], None] = print,
    ) -> None:
        self._specs, self._log, self._say = list(specs), log, say
        self._image_topics, self._info_topics = list(image_topics), list(info_topics)
        self._statuses: dict[str, DiagnosticStatus] = {}
        self._frames_seen: dict[str, int] = {}
        namespace = f"/{specs[0].namespace}" if specs[0].namespace else ""
        self._topics = {f"{namespace}/{t}": kind for t, kind in OUTPUTS.items()}

    def run(
        self,
        bag: Path,
        *,
        rate: float = 1.0,
        start_timeout_s: float = 90.0,
        drain_timeout_s: float = 60.0,
        progress: Callable[[], None] | None = None,
    ) -> SessionResult:
        """Play ``bag`` once.

        Raises:
            WristWorldError: a node ended or could not configure, or did not listen in time.
            BagError: the bag cannot be played.
        """
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with (
            isolated_environment() as environment,
            _variables(environment),
            self._log.open("wb") as log,
        ):
            graph = GraphProcesses(self._specs, environment, log)
            context = Context()
            try:
                prepare_process()
                context.init(domain_id=int(environment["ROS_DOMAIN_ID"]))
                result = self._play(
                    graph, context, bag, rate, start_timeout_s, drain_timeout_s, progress
                )
            finally:
                exit_codes = graph.stop()
                context.try_shutdown()
        result.exit_codes = exit_codes
        return result

    def _play(
        self,
        graph: GraphProcesses,
        context: Context,
        bag: Path,
        rate: float,
        start_timeout_s: float,
        drain_timeout_s: float,
        progress: Callable[[], None] | None,
    ) -> SessionResult:
        node = Node("wristworld_session", context=context, start_parameter_services=False)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        try:
            recorder = Recorder(node, {**self._topics, **ABSOLUTE_OUTPUTS})
            node.create_subscription(
                DiagnosticArray, "/diagnostics", self._receive_diagnostics, qos.state(50)
            )
            player = BagPlayer(node, bag)
            required = self._required(player)

            def ready() -> bool:
                self._check(graph)
                return not (
                    player.unmatched(required)
                    or recorder.unmatched(self._topics)
                    or self._unmatched_between_nodes()
                )

            self._say("starting the nodes and waiting until they listen")
            if not wait_until(executor, ready, start_timeout_s):
                silent = (
                    player.unmatched(required)
                    + recorder.unmatched(self._topics)
                    + self._unmatched_between_nodes()
                )
                raise WristWorldError(
                    f"after {start_timeout_s:g} s these topics are not connected: "
                    f"{', '.join(silent)}. See {self._log}.\n{self._log_tail()}"
                )
            recorder.messages.clear()
            self._say(f"playing {player.duration_s / rate:.1f} s of {bag.name}")
            times = player.play(executor, rate, progress)
            self._frames_seen.clear()
            drained = wait_until(executor, lambda: self._settled(graph), drain_timeout_s)
            return SessionResult(
                list(recorder.messages), times, self._frame_counters(), {}, drained
            )
        finally:
            executor.remove_node(node)
            node.destroy_node()
            executor.shutdown()

    def _required(self, player: BagPlayer) -> dict[str, int]:
        """Subscribers that each input needs before the bag starts."""
        nodes = {spec.executable for spec in self._specs}
        reconstructs = "reconstruction_node" in nodes
        required = {topic: len(nodes) for topic in self._image_topics}
        if reconstructs:
            required |= dict.fromkeys(self._info_topics, 1)
            required |= {"/tf": 2, "/tf_static": 1}  # /tf: the recorder listens too
        return {topic: n for topic, n in required.items() if topic in player.publishers}

    def _unmatched_between_nodes(self) -> list[str]:
        """Topics from one node to the other that are not connected, as the sender reports."""
        names = {spec.executable: spec.full_name.lstrip("/") for spec in self._specs}
        if len(names) < 2:
            return []
        sender = self._statuses.get(f"{names['reconstruction_node']}: outputs")
        counts = {v.key: int(v.value) for v in sender.values} if sender else {}
        topics = [t for t in self._topics if "/wrist/condition/" in t]
        return [t for t in topics if counts.get(t, 0) < 2]  # generation_node and the recorder

    # --- diagnostics ------------------------------------------------------------------------------

    def _receive_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            self._statuses[status.name] = status
            if status.name.endswith(": frames"):
                self._frames_seen[status.name] = self._frames_seen.get(status.name, 0) + 1

    def _check(self, graph: GraphProcesses) -> None:
        """Raise when a node has ended or says that it cannot configure."""
        for name, code in graph.ended().items():
            raise WristWorldError(f"{name} ended with code {code}.\n{self._log_tail()}")
        for name, status in self._statuses.items():
            if name.endswith(": lifecycle") and status.level == DiagnosticStatus.ERROR:
                raise WristWorldError(f"{name.removesuffix(': lifecycle')}: {status.message}")

    def _settled(self, graph: GraphProcesses) -> bool:
        """Whether both nodes said since the end of the bag that nothing is in work."""
        self._check(graph)
        names = [f"{spec.full_name.lstrip('/')}: frames" for spec in self._specs]
        if any(self._frames_seen.get(name, 0) < 2 for name in names):
            return False
        return all(c.get("in_work", 1) == 0 for c in self._frame_counters().values())

    def _frame_counters(self) -> dict[str, dict[str, float]]:
        counters: dict[str, dict[str, float]] = {}
        for name, status in self._statuses.items():
            node, _, component = name.partition(": ")
            if component == "frames":
                counters[node] = {v.key: _number(v.value) for v in status.values}
        return counters

    def _log_tail(self, lines: int = 8) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])
        return ""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
