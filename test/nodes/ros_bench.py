"""A bench that talks to the running nodes, and tiny random weights for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from tf2_msgs.msg import TFMessage

from wristworld_ros.data.messages import (
    camera_info_fields,
    compressed_image_fields,
    image_fields,
    tf_fields,
    transform_fields,
)
from wristworld_ros.generation.anchor_encoder import AnchorEncoderConfig
from wristworld_ros.generation.autoencoder import MINI_AUTOENCODER, Autoencoder
from wristworld_ros.generation.model import Stage2Config, Stage2Model
from wristworld_ros.geometry.transforms import from_quaternion
from wristworld_ros.msg import GenerationStatus, WristEstimate
from wristworld_ros.nodes import qos
from wristworld_ros.nodes.conversions import fill
from wristworld_ros.nodes.supervisor import GraphProcesses
from wristworld_ros.reconstruction.backbone import BackboneConfig
from wristworld_ros.reconstruction.domain import Domain, DomainConfig
from wristworld_ros.reconstruction.model import Stage1Model
from wristworld_ros.types import CameraModel
from wristworld_ros.weights import read_config, save_weights

#: Longest wait for anything. Machines that train in the background are slow; nothing waits for
#: this long unless it fails.
PATIENCE_S = 120.0
CAMERAS = ("anchor_0", "anchor_1")
NODES = ("reconstruction_node", "generation_node")
WIDTH, HEIGHT = 64, 48
#: 2024-01-01, as in a recorded bag.
EPOCH_NS = 1_704_067_200 * 10**9
FAST = {
    "input_timeout": 0.6,
    "diagnostics_period": 0.2,
    "input_reliability": "reliable",
    "threads": 1,
    "device": "cpu",
}
TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
}


def save_tiny_models(folder: Path) -> Path:
    """Randomly initialised weights of the smallest sizes, written by the package's own function."""
    torch.manual_seed(0)
    stage1 = Stage1Model(
        BackboneConfig(dim=32, pairs=2, heads=2, registers=1, stem=(8, 16, 16), kept=(0, 1))
    )
    with torch.no_grad():  # a surface, not noise: every point of that would be an edge
        stage1.depth_head.out.weight.mul_(0.05)
    stage2 = Stage2Model(
        Stage2Config(
            heads=2,
            head_dim=24,
            ffn_dim=32,
            layers=1,
            anchors=AnchorEncoderConfig(image_size=32, width=32, layers=1, heads=2),
        )
    )
    autoencoder = Autoencoder(
        {
            **MINI_AUTOENCODER,
            "encoder_block_out_channels": (16, 16, 16, 16),
            "decoder_block_out_channels": (16, 16, 16, 16),
            "encoder_layers_per_block": (0, 1, 1, 1),
            "decoder_layers_per_block": (0, 1, 1, 1),
        }
    )
    for name, model in (("stage1", stage1), ("stage2", stage2), ("autoencoder", autoencoder)):
        save_weights(folder / name, model, model.config_dict())
    domain = Domain(DomainConfig(features=128, directions=2))
    domain.limit.fill_(1e4)  # all pictures are far inside
    stage = {"stage1": read_config(folder / "stage1")["sha256"]}
    save_weights(folder / "domain", domain, domain.config_dict(), stage)
    return folder


class Bench:
    """A node outside the graph: publishes inputs, collects outputs, calls services, waits."""

    def __init__(
        self,
        environment: Mapping[str, str],
        graph: GraphProcesses | None = None,
        defaults: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.graph, self.defaults = graph, defaults or {}
        self.context = Context()
        self.context.init(domain_id=int(environment["ROS_DOMAIN_ID"]))
        self.node = Node("bench", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.received: dict[str, list[Any]] = {}
        self.statuses: dict[str, DiagnosticStatus] = {}
        self.publishers: dict[str, Any] = {}
        self.clients: dict[str, Any] = {}
        self.node.create_subscription(
            DiagnosticArray, "/diagnostics", self._take_diagnostics, qos.state(50)
        )
        for topic, kind in (
            ("/wrist/estimate", WristEstimate),
            ("/wrist/points", PointCloud2),
            ("/wrist/condition/image", Image),
            ("/wrist/condition/mask", Image),
            ("/wrist/condition/camera_info", CameraInfo),
            ("/wrist/image_raw", Image),
            ("/wrist/image_raw/compressed", CompressedImage),
            ("/wrist/camera_info", CameraInfo),
            ("/wrist/confidence", Image),
            ("/wrist/status", GenerationStatus),
            ("/tf", TFMessage),
        ):
            self.received[topic] = []
            self.node.create_subscription(
                kind, topic, self.received[topic].append, qos.image("reliable", 50)
            )
        # DDS drops the answer to a client that the server has not discovered yet: clients are there
        # before the nodes are active, and stay.
        for node in self.defaults:
            self._client(ChangeState, f"/{node}/change_state")
            self._client(GetState, f"/{node}/get_state")
            self._client(SetParameters, f"/{node}/set_parameters")
        self.next_stamp = EPOCH_NS

    def close(self) -> None:
        self.executor.remove_node(self.node)
        self.node.destroy_node()
        self.executor.shutdown()
        self.context.try_shutdown()

    def _take_diagnostics(self, message: DiagnosticArray) -> None:
        self.statuses.update({s.name: s for s in message.status})

    def wait(self, what: str, condition: Callable[[], Any], patience_s: float = PATIENCE_S) -> Any:
        """Spin until ``condition`` gives something true, and return that."""
        deadline = time.monotonic() + patience_s
        while not (result := condition()):
            if time.monotonic() > deadline:
                said = {n: s.message for n, s in self.statuses.items()}
                raise AssertionError(f"{what}: not within {patience_s:g} s; nodes say {said}")
            self.executor.spin_once(timeout_sec=0.05)
        return result

    # --- services ---------------------------------------------------------------------------------

    def _client(self, kind: type, name: str) -> Any:
        if name not in self.clients:
            self.clients[name] = self.node.create_client(kind, name)
        return self.clients[name]

    def call(self, kind: type, name: str, request: Any) -> Any:
        client = self._client(kind, name)
        self.wait(f"service {name}", client.service_is_ready)
        future = client.call_async(request)
        self.wait(f"answer of {name}", future.done)
        return future.result()

    def transition(self, node: str, label: str) -> bool:
        request = ChangeState.Request(transition=Transition(id=TRANSITIONS[label]))
        return bool(self.call(ChangeState, f"/{node}/change_state", request).success)

    def state(self, node: str) -> str:
        answer = self.call(GetState, f"/{node}/get_state", GetState.Request())
        return str(answer.current_state.label)

    def said_state(self, node: str) -> str:
        """By the node's diagnostics; empty before the first."""
        status = self.statuses.get(f"{node}: lifecycle")
        return "" if status is None else str(status.message)

    def set(self, node: str, **values: Any) -> dict[str, str]:
        """Set parameters; returns name -> reason of those that were refused."""
        parameters = [Parameter(n, value=v).to_parameter_msg() for n, v in values.items()]
        request = SetParameters.Request(parameters=parameters)
        results = self.call(SetParameters, f"/{node}/set_parameters", request).results
        return {n: r.reason for n, r in zip(values, results, strict=True) if not r.successful}

    def to_unconfigured(self, node: str) -> None:
        if self.state(node) == "active":
            assert self.transition(node, "deactivate")
        if self.state(node) == "inactive":
            assert self.transition(node, "cleanup")
        assert self.state(node) == "unconfigured"

    def restart(self, nodes: Sequence[str] = NODES, **changes: Any) -> None:
        """Both nodes active with default parameters and ``changes``; inputs connected."""
        for node in nodes:
            self.to_unconfigured(node)
        if set(nodes) == set(NODES):
            # A subscription that is on its way out still counts as matched, and gets nothing.
            self.wait("the old subscriptions gone", self._unheard)
        for node in nodes:
            ours = {k: v for k, v in changes.items() if k in self.defaults[node]}
            assert not self.set(node, **{**self.defaults[node], **ours})
            assert self.transition(node, "configure")
            assert self.transition(node, "activate")
        self.statuses.clear()
        # generation_node, and this bench, which asks for reliable delivery
        count = 1 if changes.get("output_reliability") == "best_effort" else 2
        self.wait("one node connected with the other", lambda: self._linked(count))
        for messages in self.received.values():
            messages.clear()

    def _unheard(self) -> bool:
        """Whether nobody but this bench subscribes to what it publishes."""
        return all(
            publisher.get_subscription_count() == (topic in self.received)
            for topic, publisher in self.publishers.items()
        )

    def _linked(self, count: int) -> bool:
        """Whether the condition map has ``count`` subscribers."""
        status = self.statuses.get("reconstruction_node: outputs")
        counts = {v.key: int(v.value) for v in status.values} if status else {}
        links = [n for topic, n in counts.items() if "/condition/" in topic]
        # Points are published only while someone listens: this bench does, unless it asks for more
        # than is offered.
        heard = count == 1 or counts.get("/wrist/points", 0) >= 1
        return len(links) == 3 and min(links) >= count and heard

    # --- inputs -----------------------------------------------------------------------------------

    def publisher(self, topic: str, kind: type, listeners: int, profile: Any = None) -> Any:
        """Publisher of ``topic`` once ``listeners`` subscriptions have matched."""
        if topic not in self.publishers:
            self.publishers[topic] = self.node.create_publisher(
                kind, topic, profile or qos.image("reliable", 10)
            )
        publisher = self.publishers[topic]
        self.wait(
            f"{listeners} subscriptions of {topic}",
            lambda: publisher.get_subscription_count() >= listeners,
        )
        return publisher

    def send_calibration(self, camera: CameraModel, cameras: Sequence[str] = CAMERAS) -> None:
        """CameraInfo and static transforms of the cameras, and the mount's pose at many stamps."""
        transforms = []
        for i, name in enumerate(cameras):
            info = camera_info_fields(camera, self.next_stamp, f"{name}_optical_frame")
            self.say(f"/{name}/camera_info", CameraInfo, 1, fill(CameraInfo(), info))
            T = from_quaternion([0.5 + 0.1 * i, 0.0, 0.6], [1.0, 0.0, 0.0, 0.0])
            transforms.append(
                transform_fields(T, self.next_stamp, "base_link", f"{name}_optical_frame")
            )
        message = fill(TFMessage(), tf_fields(transforms))
        self.publisher("/tf_static", TFMessage, 1, qos.tf_static()).publish(message)

    def send_hand(self, stamp_ns: int) -> None:
        T = from_quaternion([0.5, 0.0, 0.4], [1.0, 0.0, 0.0, 0.0])
        fields = transform_fields(T, stamp_ns, "base_link", "wrist_camera_optical_frame")
        self.say("/tf", TFMessage, 2, fill(TFMessage(), tf_fields([fields])), qos.tf())

    def say(
        self, topic: str, kind: type, listeners: int, message: Any, profile: Any = None
    ) -> None:
        """Publish what reconstruction_node has to know before the images come: topics keep no order
        among one another."""
        publisher = self.publisher(topic, kind, listeners, profile)
        publisher.publish(message)
        self.wait_for_input("reconstruction_node", topic, lambda: publisher.publish(message))

    def image(self, name: str, stamp_ns: int) -> Image:
        pixels = np.random.default_rng(stamp_ns % 2**32).integers(40, 250, (HEIGHT, WIDTH, 3))
        fields = image_fields(pixels.astype(np.uint8), "rgb8", stamp_ns, f"{name}_optical_frame")
        return fill(Image(), fields)

    def compressed(self, name: str, stamp_ns: int) -> CompressedImage:
        pixels = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
        fields = compressed_image_fields(pixels, "png", stamp_ns, f"{name}_optical_frame")
        return fill(CompressedImage(), fields)

    def send_images(self, stamp_ns: int, cameras: Sequence[str] = CAMERAS) -> None:
        for name in cameras:
            self.publisher(f"/{name}/image_raw", Image, 2).publish(self.image(name, stamp_ns))

    def send_set(self, camera: CameraModel) -> int:
        """Everything for one moment; returns its stamp."""
        stamp, self.next_stamp = self.next_stamp, self.next_stamp + 200_000_000
        self.send_calibration(camera)
        self.send_hand(stamp)
        self.send_images(stamp)
        return stamp

    # --- outputs ----------------------------------------------------------------------------------

    def stamps(self, topic: str) -> list[int]:
        return [stamp_of(m) for m in self.received[topic]]

    def frames(self, node: str) -> dict[str, float]:
        """Counters of the last diagnostics."""
        status = self.statuses.get(f"{node}: frames")
        return {v.key: float(v.value) for v in status.values} if status else {}

    def wait_for_input(
        self, node: str, topic: str, stream: Callable[[], None] | None = None
    ) -> None:
        """Wait until the node says that a first message has come on an input.

        ``stream`` sends again meanwhile, as a driver would: of a volatile topic the first message
        is lost when the node has not matched the publisher as early as that has matched the node.
        """
        name = f"{node}: input {topic}"

        def heard() -> bool:
            status = self.statuses.get(name)
            unheard = ("no message yet", "waiting for the first message")
            known = status is not None and not any(text in status.message for text in unheard)
            if stream is not None and not known:
                stream()
            return known

        self.wait(f"{node} hearing {topic}", heard)

    def wait_for_problem(self, component: str, *words: str) -> DiagnosticStatus:
        """Wait for a status that is not OK and says all ``words``."""

        def found() -> DiagnosticStatus | None:
            status = self.statuses.get(component)
            if status and status.level != DiagnosticStatus.OK:
                return status if all(w in status.message for w in words) else None
            return None

        return self.wait(f"{component} saying {words}", found)


def stamp_of(message: Any) -> int:
    header = message.header if hasattr(message, "header") else message.transforms[0].header
    return header.stamp.sec * 10**9 + header.stamp.nanosec
