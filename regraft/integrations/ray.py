"""Work done as tasks of a Ray cluster, whose nodes share the folder the work is about. Needs the extra `cluster`."""

from __future__ import annotations

import json
from importlib import import_module
from typing import Any

from regraft.errors import ConfigError

LOCAL = "local"  # the address that starts a cluster on this machine


def _call(target: str, work: str) -> str:
    """What a task does: call `module:function` on JSON values."""
    module, _, name = target.partition(":")
    try:
        return json.dumps({"result": getattr(import_module(module), name)(json.loads(work))})
    except KeyboardInterrupt:  # which `core.stopping.Interrupted` is
        return json.dumps({"stopped": None})
    except Exception as error:
        return json.dumps({"error": f"{type(error).__name__}: {error}"})


class RayWorkers:
    """Pieces of work by number, each a task that Ray does not repeat: who is told of a death decides about that.

    `wait` gives (number, kind, content): `result`, `died` with the reason, `stopped`, or `error`.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str, count: int, target: str) -> None:
        try:
            ray: Any = import_module("ray")
        except ImportError:
            raise ConfigError("--ray: needs the package ray; run: pip install 'regraft[cluster]'") from None
        self.ray, self.count, self.target = ray, count, target
        self.running: dict[Any, int] = {}  # task -> number
        self.ours = not ray.is_initialized()
        if self.ours:
            self._connect(address)
        self.task = ray.remote(max_retries=0, num_cpus=1)(_call)

    def _connect(self, address: str) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "include_dashboard": False, "configure_logging": False}
        try:
            if address == LOCAL:
                self.ray.init(num_cpus=self.count, **options)
            else:
                del options["include_dashboard"]  # of the cluster that is there already
                self.ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"--ray {address}: no cluster answers there ({error}); give its address, or `local` to start one here"
            ) from error

    @property
    def free(self) -> int:
        """How many tasks could begin now."""
        return self.count - len(self.running)

    def start(self, number: int, work: dict[str, Any]) -> None:
        """Submit a task."""
        self.running[self.task.remote(self.target, json.dumps(work))] = number

    def wait(self, seconds: float) -> list[tuple[int, str, Any]]:
        """Tasks that have ended, and those whose worker or node died."""
        if not self.running:
            return []
        done, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        return [self._ended(task) for task in done]

    def _ended(self, task: Any) -> tuple[int, str, Any]:
        number = self.running.pop(task)
        try:
            ((kind, content),) = json.loads(self.ray.get(task)).items()
        except self.ray.exceptions.TaskCancelledError:
            return number, "stopped", None
        except self.ray.exceptions.RayError as error:
            return number, "died", f"was lost by Ray ({type(error).__name__})"
        return number, kind, content

    def stop(self) -> list[tuple[int, str, Any]]:
        """Interrupt the tasks, which save where they stand, and wait for them."""
        for task in self.running:
            self.ray.cancel(task)
        events: list[tuple[int, str, Any]] = []
        while self.running:
            events += self.wait(60.0) or [self._ended(task) for task in list(self.running)[:1]]
        return events

    def close(self) -> None:
        """Leave the cluster, and end one that was started for this."""
        for task in self.running:
            self.ray.cancel(task, force=True)
        self.running.clear()
        if self.ours:
            self.ray.shutdown()
