"""Which engine runs a network for inputs of a shape, and torch where there is none."""

from __future__ import annotations

from torch import Tensor, nn

from wristworld_ros.errors import EngineError, InvalidInputError
from wristworld_ros.runtime.backends import Backend, Runner
from wristworld_ros.runtime.engines import EngineKey, EngineStore
from wristworld_ros.runtime.graphs import call
from wristworld_ros.runtime.registry import BACKENDS, get_backend

TORCH, AUTO = "torch", "auto"
CHOICES = (AUTO, TORCH, *BACKENDS)


class Dispatcher:
    """Runs networks by engines that were built before; it builds none.

    Args:
        backend: ``torch``; a backend, whose engines are used; or ``auto``, the best for the inputs'
            device for which there is an engine.
        precision: only engines of it; None: any, in the backend's order.
        strict: refuse to run by torch what has no engine. Without it torch takes over, and
            ``providers`` says so.
        store: where engines are.

    Raises:
        InvalidInputError: no such backend or precision.
        EngineError: the backend cannot run here (not for ``auto``).

    Attributes:
        providers: network -> what ran it last.
    """

    def __init__(
        self,
        backend: str = TORCH,
        *,
        precision: str | None = None,
        strict: bool = False,
        store: EngineStore | None = None,
    ) -> None:
        if backend not in CHOICES:
            raise InvalidInputError(f"backend '{backend}' is not one of {', '.join(CHOICES)}.")
        self.backend, self.precision, self.strict = backend, precision, strict
        self.store = store or EngineStore()
        self._backends: list[Backend] = []
        if backend == AUTO:
            self._backends = [b for b in BACKENDS.values() if b.cannot_run() is None]
        elif backend != TORCH:
            chosen = get_backend(backend)
            chosen.check(precision or chosen.default_precision(), run=True)
            self._backends = [chosen]
        self._runners: dict[tuple, Runner | None] = {}
        self.providers: dict[str, str] = {}

    def __call__(
        self, name: str, weights: str, module: nn.Module, inputs: dict[str, Tensor]
    ) -> tuple[Tensor, ...]:
        """Outputs of a network.

        Args:
            name, weights: as of ``Graph``.
            module: the network itself.
            inputs: name -> tensor.

        Raises:
            EngineError: ``strict``, and there is no engine for these shapes; or it is damaged.
        """
        shapes = {n: tuple(x.shape) for n, x in inputs.items()}
        device = next(iter(inputs.values())).device.type
        place = (name, weights, device, *shapes.items())
        if place not in self._runners:
            self._runners[place] = self._find(name, weights, shapes, device)
        runner = self._runners[place]
        if runner is None:
            self.providers[name] = TORCH
            return call(module, tuple(inputs.values()))
        self.providers[name] = runner.provider
        first = next(iter(inputs.values()))
        return tuple(x.to(first.device) for x in runner(*inputs.values()))

    def _find(
        self, name: str, weights: str, shapes: dict[str, tuple[int, ...]], device: str
    ) -> Runner | None:
        for backend in self._backends:
            if self.backend == AUTO and backend.device != device:
                continue
            for precision in backend.precisions:
                if self.precision not in (None, precision) or backend.unsupported(precision):
                    continue
                key = EngineKey(name, weights, shapes, backend.name, precision, backend.identity())
                if self.store.has(key):
                    return self.store.load(key, backend)
        if self.strict and self.backend != TORCH:
            raise EngineError(
                f"strict: no engine of {name} by '{self.backend}' for inputs {shapes} in "
                f"{self.store.folder}. Build it (wristworld engine build), or leave strict off to "
                "let torch run it."
            )
        return None

    @property
    def summary(self) -> str:
        """What ran the networks, e.g. ``openvino`` or ``openvino+torch``."""
        names = sorted({p.split()[0] for p in self.providers.values()})
        return "+".join(names) or TORCH
