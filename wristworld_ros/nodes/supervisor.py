"""Starts the processes of a graph, passes signals on, and collects their exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO

from wristworld_ros.nodes.graph import NodeSpec
from wristworld_ros.nodes.process import dds_environment

#: Time that a process has to end after a signal before it is killed [s].
GRACE_S = 30.0


class GraphProcesses:
    """The running processes of a graph. Nothing is restarted: one that ends stays ended.

    Args:
        specs: what to start.
        environment: added to this process's variables.
        output: where stdout and stderr of the nodes go; None passes them through.
    """

    def __init__(
        self,
        specs: Sequence[NodeSpec],
        environment: Mapping[str, str] | None = None,
        output: IO[bytes] | None = None,
    ) -> None:
        variables = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
        variables |= dict(environment or {})
        variables |= dds_environment(variables)
        self.processes = {
            spec.full_name: subprocess.Popen(
                spec.command(),
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output is not None else None,
                start_new_session=True,  # Ctrl-C reaches the nodes once: through us
            )
            for spec in specs
        }

    def running(self) -> list[str]:
        """Names of the nodes that have not ended."""
        return [name for name, p in self.processes.items() if p.poll() is None]

    def ended(self) -> dict[str, int]:
        """Node -> exit code of those that have ended; negative for a signal."""
        codes = {name: p.poll() for name, p in self.processes.items()}
        return {name: code for name, code in codes.items() if code is not None}

    def send(self, number: int) -> None:
        """Pass a signal to every process that still runs."""
        for process in self.processes.values():
            if process.poll() is None:
                process.send_signal(number)

    def stop(self, number: int = signal.SIGINT) -> dict[str, int]:
        """End all processes and wait; returns node -> exit code."""
        self.send(number)
        deadline = time.monotonic() + GRACE_S
        for name, process in self.processes.items():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                print(f"{name} did not end within {GRACE_S:g} s and is killed", file=sys.stderr)
                process.kill()
                process.wait()
        return {name: p.returncode for name, p in self.processes.items()}

    def run(self) -> int:
        """Wait until all have ended, passing SIGINT and SIGTERM on; returns an exit code.

        0 when every process ended with 0 or by a signal that came through here, else the first
        other code.
        """
        asked = threading.Event()
        wake = threading.Event()

        def pass_on(number: int, _frame: object) -> None:
            asked.set()
            wake.set()
            self.send(number)

        previous = {n: signal.signal(n, pass_on) for n in (signal.SIGINT, signal.SIGTERM)}
        reported: set[str] = set()
        try:
            deadline = None
            while self.running():
                wake.wait(0.2)
                for name, code in self.ended().items():
                    if name not in reported and not asked.is_set():
                        reported.add(name)
                        others = ", ".join(self.running()) or "nothing"
                        print(
                            f"{name} ended with code {code}; {others} goes on. "
                            "Nothing is restarted.",
                            file=sys.stderr,
                        )
                if asked.is_set():
                    wake.clear()
                    deadline = deadline or time.monotonic() + GRACE_S
                    if time.monotonic() > deadline:
                        self.stop(signal.SIGKILL)
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        codes = self.ended().values()
        fine = {0, -signal.SIGINT, -signal.SIGTERM} if asked.is_set() else {0}
        bad = [c for c in codes if c not in fine]
        if not bad:
            return 0
        return bad[0] if bad[0] > 0 else 128 - bad[0]
