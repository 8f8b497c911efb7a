"""The loaded hook plugins, calls of their hooks, and the registry that they add names to."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pluggy

from agentrl.errors import AgentRLError, PluginError
from agentrl.plugins import hookspecs
from agentrl.plugins.entries import Distribution, Entry
from agentrl.plugins.references import import_target, reason_of

__all__ = ["Hooks", "Registry"]


class Hooks:
    """Calls a hook by its name: ``hooks.agentrl_step_finished(step=3, metrics={…})``.

    The result is the list of what the plugins returned, or the first result where the hook's
    specification says so. An exception becomes a ``PluginError`` that names the plugin.
    """

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)

    def __getattr__(self, hook: str) -> Callable[..., Any]:
        return partial(self._call, getattr(self._manager.hook, hook))

    def by_plugin(self, hook: str) -> dict[str, Callable[..., Any]]:
        """For each plugin that implements ``hook``, by its name and in the order of calls, what calls it alone."""
        plugins = self._manager.get_plugins()
        implemented = reversed(getattr(self._manager.hook, hook).get_hookimpls())
        owners = {implementation.plugin_name: implementation.plugin for implementation in implemented}
        return {
            name: partial(self._call, self._manager.subset_hook_caller(hook, plugins - {owner}))
            for name, owner in owners.items()
        }

    def load(self, entry: Entry) -> tuple[Entry, ...]:
        """Load one plugin and return the names that it registers.

        Raises ``PluginError`` for one that does not import, implements a hook that does not exist or
        takes arguments that a hook does not have; such a plugin takes part in nothing.
        """
        plugin = import_target(entry.target)
        try:
            return self._register(plugin() if isinstance(plugin, type) else plugin, entry)
        except AgentRLError:
            raise
        except Exception as error:
            raise PluginError(reason_of(error), fix="update the plugin") from error

    def _register(self, plugin: object, entry: Entry) -> tuple[Entry, ...]:
        try:
            self._refuse_unmarked(plugin)
            self._manager.register(plugin, name=entry.qualified)
            self._manager.check_pending()
            if not self._manager.get_hookcallers(plugin):
                raise PluginError("it implements no hook", fix="mark its functions with agentrl.hookimpl")
            return self._names(plugin, entry)
        except Exception:
            if self._manager.is_registered(plugin):
                self._manager.unregister(plugin)
            raise

    def _refuse_unmarked(self, plugin: object) -> None:
        """A function that has a hook's name and lacks its mark would never be called."""
        for name in vars(self._manager.hook):
            if hasattr(plugin, name) and self._manager.parse_hookimpl_opts(plugin, name) is None:
                raise PluginError(f"its {name} is not marked", fix="put @agentrl.hookimpl above it")

    def _names(self, plugin: object, entry: Entry) -> tuple[Entry, ...]:
        """What the plugin's own ``agentrl_register`` adds."""
        others = [other for other in self._manager.get_plugins() if other is not plugin]
        registry = Registry(entry.distribution)
        self._call(self._manager.subset_hook_caller("agentrl_register", others), registry=registry)
        return registry.entries

    def _call(self, caller: pluggy.HookCaller, **arguments: object) -> Any:
        try:
            return caller(**arguments)
        except AgentRLError:
            raise
        except Exception as error:
            name = _culprit(caller, error)
            raise PluginError(
                f"plugin {name!r} raised {reason_of(error)} in {caller.name}",
                fix=f"update the plugin, or disable it with -p no:{name}",
            ) from error


def _culprit(caller: pluggy.HookCaller, error: Exception) -> str:
    """The name of the plugin whose implementation of the hook is on the traceback."""
    owners = {
        getattr(implementation.function, "__code__", None): implementation.plugin_name
        for implementation in caller.get_hookimpls()
    }
    traceback = error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code in owners:
            return owners[traceback.tb_frame.f_code]
        traceback = traceback.tb_next
    return "unknown"


class Registry:
    """What ``agentrl_register`` is given: it collects the names that one plugin adds at run time."""

    def __init__(self, distribution: Distribution) -> None:
        self._distribution = distribution
        self._entries: list[Entry] = []

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries that have been added so far."""
        return tuple(self._entries)

    def add(self, kind: str, name: str, target: object) -> None:
        """Add ``name`` to ``kind`` (``agents``, ``tasks``, …).

        ``target`` is the object itself, or ``"pkg.mod:Obj"``, which is imported when the name is used.
        """
        if isinstance(target, str):
            self._entries.append(Entry(kind, name, target, self._distribution))
        else:
            self._entries.append(Entry(kind, name, _described(target), self._distribution, target))


def _described(target: object) -> str:
    """Where an object came from, as an entry point would write it."""
    named = target if hasattr(target, "__qualname__") else type(target)
    return f"{named.__module__}:{getattr(named, '__qualname__', '')}"
