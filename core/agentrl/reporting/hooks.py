"""The hooks that plugins hear of a run by: every plugin is called in a thread of its own, in the order of the run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from agentrl.reporting.listener import Failure, Listener, settle

if TYPE_CHECKING:
    from agentrl.plugins import Plugins

__all__ = ["RunHooks"]

_HOOKS = (
    "agentrl_run_started",
    "agentrl_episode_finished",
    "agentrl_batch_ready",
    "agentrl_step_finished",
    "agentrl_evaluation_finished",
    "agentrl_checkpoint_saved",
    "agentrl_run_finished",
)


class RunHooks:
    """Calls the hooks of a run.

    What a hook raises is raised by the next ``check``, ``ask`` or ``settle``, and is to end the run. A plugin whose
    hook does not return within ``patience`` seconds is given up with a warning, and its name added to ``failed``: no
    hook of it is called again, and the run goes on.
    """

    def __init__(self, plugins: Plugins, warn: Callable[[str], None], patience: float = 60.0) -> None:
        self._callers = {hook: plugins.hook.by_plugin(hook) for hook in _HOOKS}
        names = dict.fromkeys(name for callers in self._callers.values() for name in callers)
        self._listeners = {name: Listener(name, patience, self._failed) for name in names}
        self._warn = warn
        self._faults: list[Exception] = []
        self.failed: list[str] = []
        """Names of the plugins that were given up."""

    def tell(self, hook: str, **arguments: Any) -> None:
        """Have ``hook`` of every plugin called, and return at once; raises nothing."""
        for name, caller in self._callers[hook].items():
            self._listeners[name].tell(hook, partial(caller, **arguments))

    def ask(self, hook: str, **arguments: Any) -> None:
        """Have ``hook`` of every plugin called, and wait until it is. Raises what a hook has raised by then."""
        self.tell(hook, **arguments)
        self.settle()

    def settle(self) -> None:
        """Wait until every call is made, as long as one may take. Raises what a hook has raised by then."""
        settle(self._listeners.values())
        self.check()

    def check(self) -> None:
        """Raise what a hook has raised and no call of a method has raised yet."""
        if self._faults:
            raise self._faults.pop(0)

    def close(self) -> None:
        """Let the threads end; nothing is waited for."""
        for listener in self._listeners.values():
            listener.close()

    def _failed(self, failure: Failure) -> None:
        if failure.error is not None:
            self._faults.append(failure.error)
            return
        self.failed.append(failure.name)
        self._warn(
            f"plugin {failure.name!r} {failure.why} and is called no more in this run "
            f"(mend it, disable it with -p no:{failure.name}, or raise run.hook_timeout)"
        )
