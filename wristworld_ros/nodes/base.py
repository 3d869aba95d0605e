"""Lifecycle node base: parameters, publishers, worker thread, refusals, diagnostics, shutdown.

A node of this package says in four methods what is its own: ``load`` (models and publishers),
``listen`` (subscriptions), ``process`` (one item, in the worker thread) and ``unload``. Everything
can be done in any order any number of times; whatever goes wrong is a refusal with a cause and a
text, which appears in the log, on /diagnostics and in the counters.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.clock import Clock, ClockType
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile

from wristworld_ros.errors import (
    CalibrationError,
    InvalidInputError,
    TransformLookupError,
    WeightsError,
    WristWorldError,
)
from wristworld_ros.msg import GenerationStatus
from wristworld_ros.nodes import qos
from wristworld_ros.nodes.monitoring import (
    ERROR,
    OK,
    WARN,
    EventCounters,
    FrameCounters,
    InputMonitor,
    ProblemLog,
    diagnostic,
)
from wristworld_ros.nodes.parameter_server import ParameterServer
from wristworld_ros.nodes.parameters import NodeParameters
from wristworld_ros.nodes.worker import LatestWorker

T = TypeVar("T")
RCLError = rclpy_implementation.RCLError

#: Kind of expected error -> cause in the counters, code in the messages; the first match counts.
_REFUSALS: tuple[tuple[type[Exception], str, int], ...] = (
    (TransformLookupError, "no_transform", GenerationStatus.ERROR_TRANSFORM),
    (CalibrationError, "calibration", GenerationStatus.ERROR_CALIBRATION),
    (InvalidInputError, "invalid_input", GenerationStatus.ERROR_INVALID_INPUT),
    (WeightsError, "model", GenerationStatus.ERROR_MODEL),
    (WristWorldError, "model", GenerationStatus.ERROR_MODEL),
)


class Refusal(Exception):  # noqa: N818 - the word that users read
    """One set of images gives no output: why, for the counters, the messages and people."""

    def __init__(self, cause: str, code: int, text: str) -> None:
        super().__init__(text)
        self.cause, self.code = cause, code


def as_refusal(error: Exception) -> Refusal:
    """Any error of the core as a refusal."""
    if isinstance(error, Refusal):
        return error
    for kind, cause, code in _REFUSALS:
        if isinstance(error, kind):
            return Refusal(cause, code, str(error))
    text = f"unexpected {type(error).__name__}: {error}. Please report it with the log."
    return Refusal("internal_error", GenerationStatus.ERROR_MODEL, text)


@dataclass
class _LastRefusal:
    refusal: Refusal
    time: float


class WristNode(LifecycleNode, Generic[T]):
    """Base of both nodes.

    Args:
        parameters_class: declares the node's name and parameters.

    Raises:
        InvalidInputError: a parameter given at start is not allowed.
    """

    def __init__(self, parameters_class: type[NodeParameters], **node_arguments: Any) -> None:
        super().__init__(parameters_class.node_name, **node_arguments)
        self.frames = FrameCounters()
        self.events = EventCounters()
        self.inputs: list[InputMonitor] = []
        self.worker: LatestWorker[T] | None = None
        self._server = ParameterServer(self, parameters_class, self._is_unconfigured)
        self._publishers_by_name: dict[str, Publisher] = {}
        self._own_subscriptions: list[Any] = []
        self._failure = ""
        self._last_refusal: _LastRefusal | None = None
        self._problems = ProblemLog(self)
        self._lock = threading.Lock()
        self._guard_transitions()
        # Wall time on purpose: with use_sim_time and no /clock a ROS timer would never fire.
        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.state())
        period = self._server.current.diagnostics_period
        self._timer = self.create_timer(period, self._publish_diagnostics, clock=self._steady)
        self._starter = None
        if self._server.current.autostart:
            self._starter = self.create_timer(0.0, self._autostart, clock=self._steady)

    # --- what a node defines ----------------------------------------------------------------------

    def load(self) -> None:
        """Load models and create publishers; raise WristWorldError when that cannot be done."""
        raise NotImplementedError

    def listen(self) -> None:
        """Create the subscriptions."""
        raise NotImplementedError

    def process(self, item: T) -> None:
        """Work on one item in the worker thread; raise Refusal or WristWorldError to drop it."""
        raise NotImplementedError

    def refused(self, item: T, refusal: Refusal) -> None:
        """An item was dropped: publish that."""

    def count_in(self, item: T) -> int:
        """How many sets of images an item holds."""
        return 1

    def unmatched(self) -> int:
        """Sets of images that wait for something that has not come (yet)."""
        return 0

    def abandon(self) -> int:
        """Forget what waits outside the worker at deactivation; returns how many sets that is."""
        return self.unmatched()

    def unload(self) -> None:
        """Release the models."""

    def components(self) -> list[DiagnosticStatus]:
        """More diagnostics of this node."""
        return []

    # --- services to a node -----------------------------------------------------------------------

    @property
    def parameters(self) -> Any:
        """The parameters in force, an instance of the node's parameter class."""
        return self._server.current

    def advertise(self, name: str, message_type: type, profile: QoSProfile) -> None:
        """Create the publisher that ``publish`` knows by ``name``, a relative topic."""
        self._publishers_by_name[name] = self.create_lifecycle_publisher(
            message_type, name, profile
        )

    def limit_threads(self) -> None:
        """Give torch as many CPU threads as the parameter says; 0 leaves its own choice."""
        import torch

        if self.parameters.threads:
            torch.set_num_threads(self.parameters.threads)

    def wanted(self, name: str) -> bool:
        """Whether somebody listens to an output."""
        publisher = self._publishers_by_name.get(name)
        return publisher is not None and publisher.get_subscription_count() > 0

    def publish(self, name: str, message: Any) -> bool:
        """Publish, and count what DDS does not take; returns whether it was taken."""
        publisher = self._publishers_by_name.get(name)
        if publisher is None:
            return False
        try:
            publisher.publish(message)
        except RCLError as error:  # a reliable writer whose reader does not keep up
            self.events.add(f"not_sent {name}")
            self.get_logger().warning(
                f"{name} was not sent: {error}. A reliable subscriber does not keep up; set "
                "output_reliability to best_effort or make it faster.",
                throttle_duration_sec=10.0,
                throttle_time_source_type=self._steady,
            )
            return False
        return True

    def subscribe(
        self,
        monitor: InputMonitor,
        message_type: type,
        callback: Callable[[Any], int],
        *more_profiles: QoSProfile,
    ) -> None:
        """Subscribe until deactivation, once for each QoS profile.

        ``callback(message)`` returns the stamp [ns] and may raise WristWorldError: then the
        monitor says why the message was refused.
        """
        monitor.topic = self.resolve_topic_name(monitor.topic)

        def receive(message: Any) -> None:
            try:
                stamp = callback(message)
            except WristWorldError as error:
                monitor.refuse(str(error))
            except Exception as error:
                self.get_logger().error(traceback.format_exc(), throttle_duration_sec=10.0)
                monitor.refuse(f"unexpected {type(error).__name__}: {error}")
            else:
                monitor.accept(stamp)

        self.inputs.append(monitor)
        for profile in (monitor.profile, *more_profiles):
            self._own_subscriptions.append(
                self.create_subscription(message_type, monitor.topic, receive, profile)
            )

    def submit(self, item: T) -> None:
        """Give an item to the worker; the one that it replaces is dropped as superseded."""
        if self.worker is None:
            self.frames.dropped("inactive", self.count_in(item))
            return
        replaced = self.worker.submit(item)
        if replaced is not None:
            self.frames.dropped("superseded", self.count_in(replaced))

    def drop(self, item: T, refusal: Refusal) -> None:
        """Count, remember and publish a refusal."""
        self.frames.dropped(refusal.cause, self.count_in(item))
        with self._lock:
            self._last_refusal = _LastRefusal(refusal, time.monotonic())
        self.refused(item, refusal)

    # --- lifecycle --------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load models, create publishers. A failure leaves the node unconfigured and alive."""
        self._failure = ""
        try:
            self.load()
        except WristWorldError as error:
            return self._configure_failed(str(error))
        except Exception as error:
            self.get_logger().error(traceback.format_exc())
            return self._configure_failed(f"unexpected {type(error).__name__}: {error}")
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start the worker and listen."""
        self.frames.reset()
        self._last_refusal = None
        result = super().on_activate(state)
        self.worker = LatestWorker(self._work, f"{self.get_name()} worker")
        self.listen()
        topics = ", ".join(dict.fromkeys(monitor.topic for monitor in self.inputs))
        self.get_logger().info(f"active, listening to {topics}")
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop listening, finish the item in work, stop the worker."""
        self._stop()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release models and publishers."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything, from any state."""
        self._stop()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Back to unconfigured with nothing held."""
        self._stop()
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def close(self) -> None:
        """Join the worker; to be called before the node is destroyed."""
        self._stop()

    def _configure_failed(self, text: str) -> TransitionCallbackReturn:
        self._failure = text
        self.get_logger().error(f"cannot configure: {text}")
        self._release()
        return TransitionCallbackReturn.FAILURE

    def _stop(self) -> None:
        for subscription in self._own_subscriptions:
            self.destroy_subscription(subscription)
        self._own_subscriptions.clear()
        self.inputs.clear()
        if self.worker is not None:
            waiting = self.worker.stop()
            self.worker = None
            if waiting is not None:
                self.frames.dropped("deactivated", self.count_in(waiting))
            self.frames.dropped("deactivated", self.abandon())

    def _release(self) -> None:
        for publisher in self._publishers_by_name.values():
            self.destroy_lifecycle_publisher(publisher)
        self._publishers_by_name.clear()
        self.unload()

    def _autostart(self) -> None:
        assert self._starter is not None
        self.destroy_timer(self._starter)
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()

    def _state(self) -> str:
        return str(self._state_machine.current_state[1])

    def _is_unconfigured(self) -> bool:
        return self._state() == "unconfigured"

    def _guard_transitions(self) -> None:
        """Answer a transition that the state does not allow, where rclpy would end the process."""
        service = self._service_change_state
        change = service.callback

        def guarded(request: Any, response: Any) -> Any:
            try:
                return change(request, response)
            except RCLError:
                asked = request.transition.label or f"number {request.transition.id}"
                self.get_logger().warning(
                    f"transition {asked} is not possible in state {self._state()}; nothing done."
                )
                response.success = False
                return response

        service.callback = guarded

    # --- work -------------------------------------------------------------------------------------

    def _work(self, item: T) -> None:
        try:
            self.process(item)
        except Exception as error:
            refusal = as_refusal(error)
            if refusal.cause == "internal_error":
                self.get_logger().error(
                    traceback.format_exc(),
                    throttle_duration_sec=10.0,
                    throttle_time_source_type=self._steady,
                )
            self.drop(item, refusal)

    # --- diagnostics ------------------------------------------------------------------------------

    def recent_refusal(self) -> Refusal | None:
        """The last refusal, when nothing newer than ``input_timeout`` came out since."""
        with self._lock:
            last = self._last_refusal
        if last is None or time.monotonic() - last.time > self.parameters.input_timeout:
            return None
        return last.refusal

    def _publish_diagnostics(self) -> None:
        array = DiagnosticArray(status=[self._lifecycle_status()])
        now = self.get_clock().now()
        if now.nanoseconds == 0:  # use_sim_time without a /clock
            now = Clock(clock_type=ClockType.SYSTEM_TIME).now()
        array.header.stamp = now.to_msg()
        if self._state() == "active":
            timeout = self.parameters.input_timeout
            for monitor in self.inputs:
                level, text = monitor.status(self, timeout)
                values = {
                    "received": monitor.received,
                    "refused": monitor.refused,
                    "last_stamp_ns": monitor.last_stamp_ns,
                    "qos": qos.describe(monitor.profile),
                }
                array.status.append(self._status(f"input {monitor.topic}", level, text, values))
            array.status.append(self._outputs_status())
            array.status.append(self._frames_status())
            array.status.extend(self.components())
        for status in array.status:
            component = status.name.split(": ", 1)[1]
            self._problems.update(component, status.level, status.message)
        try:
            self._diagnostics.publish(array)
        except RCLError:
            self.events.add("not_sent /diagnostics")

    def _lifecycle_status(self) -> DiagnosticStatus:
        state = self._state()
        if self._failure:
            text = f"{state}: cannot configure: {self._failure}"
            return self._status("lifecycle", ERROR, text, {"state": state})
        level = OK if state == "active" else WARN
        return self._status("lifecycle", level, state, {"state": state})

    def _outputs_status(self) -> DiagnosticStatus:
        values = {
            publisher.topic_name: publisher.get_subscription_count()
            for publisher in self._publishers_by_name.values()
        }
        heard = sum(1 for count in values.values() if count)
        text = f"{heard} of {len(values)} outputs have subscribers"
        return self._status("outputs", OK, text, values)

    def _frames_status(self) -> DiagnosticStatus:
        frames, drops = self.frames, self.frames.drops
        values: dict[str, object] = {
            "frames_in": frames.frames_in,
            "frames_out": frames.frames_out,
            "rate_hz": frames.rate(),
            "unmatched": self.unmatched(),
        }
        values["in_work"] = (
            frames.frames_in - frames.frames_out - sum(drops.values()) - self.unmatched()
        )
        values |= {f"dropped {cause}": n for cause, n in sorted(drops.items())}
        for stage, (p50, p99) in frames.latencies().items():
            values |= {f"{stage} p50_ms": p50 * 1e3, f"{stage} p99_ms": p99 * 1e3}
        values |= self.events.snapshot()
        refusal = self.recent_refusal()
        if refusal is not None:
            return self._status("frames", ERROR, f"{refusal.cause}: {refusal}", values)
        text = (
            f"{frames.frames_out} of {frames.frames_in} sets of images led to an output, "
            f"{frames.rate():.1f} Hz"
        )
        return self._status("frames", OK, text, values)

    def _status(
        self, component: str, level: bytes, text: str, values: Mapping[str, object]
    ) -> DiagnosticStatus:
        return diagnostic(self.get_fully_qualified_name(), component, level, text, values)
