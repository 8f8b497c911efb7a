"""``Plugins``: the one object through which everything else finds and loads plugins."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from agentrl.errors import AgentRLError, ConfigError, PluginError, about, near_matches
from agentrl.plugins.entries import Broken, Disabled, Distribution, Entry, Scan, scan, unmet_range
from agentrl.plugins.kinds import HOOKS, KINDS
from agentrl.plugins.references import (
    FileReference,
    ModuleReference,
    NameReference,
    Reference,
    dotted_reference,
    parse_reference,
)

if TYPE_CHECKING:
    from agentrl.plugins.building import PartLike
    from agentrl.plugins.hooks import Hooks

__all__ = ["Plugins"]


class Plugins:
    """The installed plugins, less those that are disabled.

    Nothing is imported before it is used: reading entries costs a scan of the installed metadata. The
    first use of a name or a hook loads the hook plugins, because names may be registered by them. A
    plugin that cannot be used is in ``broken`` and disturbs nobody until it is asked for by name.

    ``disabled`` holds what ``-p no:`` takes; ``AGENTRL_DISABLE_PLUGINS`` in ``environ`` (the process's
    own by default) adds to it. A name in ``disabled`` that matches nothing is a ``ConfigError``.

    ``elsewhere`` says which entries other interpreters have that take part in runs of this one, or would if they were
    installed here. They are never loaded, but their names may be disabled, and are suggested where an unknown name is
    like them.
    """

    def __init__(
        self,
        disabled: Iterable[str] = (),
        *,
        environ: Mapping[str, str] | None = None,
        elsewhere: Callable[[], Iterable[Entry]] = tuple,
    ) -> None:
        self._disabled = Disabled.of(disabled, os.environ if environ is None else environ)
        self._find_elsewhere = elsewhere
        self._registered: list[Entry] = []
        self._broken: dict[Entry, Broken] = {}
        if self._disabled.asked:
            self._disabled.refuse_unknown((*self._scan.entries, *self._elsewhere))

    @property
    def disabled(self) -> tuple[str, ...]:
        """The disabled names. Worker processes are given them, to disable the same plugins."""
        return (*self._disabled.asked, *self._disabled.environment)

    @property
    def broken(self) -> tuple[Broken, ...]:
        """The plugins that are known not to work. What has not been loaded yet may turn out broken later."""
        ranges = (Broken(d.name, d, reason) for d, reason in self._unmet.items())
        return (*self._scan.broken, *ranges, *self._broken.values())

    @property
    def missing(self) -> tuple[str, ...]:
        """Names that the environment disables and that are not installed."""
        return self._disabled.unmatched((*self._scan.entries, *self._elsewhere))

    @cached_property
    def hook(self) -> Hooks:
        """Calls hooks by name, as in ``plugins.hook.agentrl_step_finished(step=1, metrics=metrics)``."""
        from agentrl.plugins.hooks import Hooks

        hooks = Hooks()
        for entry in self.entries(HOOKS):
            try:
                self._registered += hooks.load(entry)
            except AgentRLError as error:
                self._broken[entry] = Broken(entry.name, entry.distribution, str(error))
        return hooks

    @property
    def installed(self) -> tuple[Entry, ...]:
        """Every entry there is, unusable ones included; ``unusable`` says which those are."""
        return (*self._scan.entries, *self._registered)

    def disabled_by(self, entry: Entry) -> str | None:
        """What disables ``entry``, as the user wrote it, or ``None`` where nothing does."""
        return self._disabled.source(entry)

    def unusable(self, entry: Entry) -> str | None:
        """Why ``entry`` is left out without being loaded, or ``None`` where it is not."""
        source = self.disabled_by(entry)
        return f"disabled by {source}" if source else self._unmet.get(entry.distribution)

    @property
    def conflicts(self) -> tuple[tuple[Entry, ...], ...]:
        """Usable entries of one kind and name, where there are several: ``dist/name`` tells them apart."""
        claims: dict[tuple[str, str], list[Entry]] = {}
        for entry in self.installed:
            if entry.kind != HOOKS and self.unusable(entry) is None:
                claims.setdefault((entry.kind, entry.name), []).append(entry)
        return tuple(tuple(claims[key]) for key in sorted(claims) if len(claims[key]) > 1)

    def entries(self, kind: str) -> tuple[Entry, ...]:
        """The usable entries of a kind, sorted by name, without importing anything.

        What hook plugins register is among them once ``load`` or a use of a name has loaded those.
        """
        found = [entry for entry in self.installed if entry.kind == kind and self.unusable(entry) is None]
        return tuple(sorted(found, key=lambda entry: (entry.name, entry.qualified)))

    def load(self) -> None:
        """Load the hook plugins now, which lets them register their names."""
        _ = self.hook

    def load_everything(self) -> None:
        """Import every usable entry, so that ``broken`` says which do not import."""
        self.load()
        for entry in self.installed:
            if entry.kind != HOOKS and self.unusable(entry) is None:
                try:
                    self._load(entry)
                except AgentRLError as error:
                    self._broken[entry] = Broken(entry.name, entry.distribution, str(error))

    def get(self, kind: str, reference: str) -> Any:
        """The object that ``reference`` names, in one of the forms that ``agentrl.plugins.references`` describes.

        A registered name wins over a module of that name. Raises ``ConfigError`` for a name, module, file or attribute
        that does not exist, and ``PluginError`` for one that does not load, does not fit this core or is claimed twice.
        """
        with about(KINDS[kind].key):
            return self._get(kind, reference)

    def _get(self, kind: str, reference: str) -> Any:
        from agentrl.plugins.references import attribute_of, import_file, import_module, only_object

        noun = KINDS[kind].noun
        match self._parsed(kind, reference):
            case NameReference(name):
                return self._load_named(self.find(kind, name))
            case ModuleReference(module, None, folder):
                return only_object(import_module(module, noun, folder), module, kind, noun, self._adapts)
            case ModuleReference(module, str(attribute), folder):
                return attribute_of(import_module(module, noun, folder), attribute, f"module {module!r}")
            case FileReference(path, None):
                return only_object(import_file(path, noun), str(path), kind, noun, self._adapts)
            case FileReference(path, str(attribute)):
                return attribute_of(import_file(path, noun), attribute, str(path))

    def _parsed(self, kind: str, reference: str) -> Reference:
        """What ``reference`` refers to: of a name with dots that nobody has registered, a module's object."""
        parsed = parse_reference(reference)
        if isinstance(parsed, NameReference) and "." in reference and not self.has(kind, reference):
            return dotted_reference(reference) or parsed
        return parsed

    def find(self, kind: str, name: str) -> Entry:
        """The entry called ``name`` or ``dist/name``. Raises as ``get`` does, but imports no object."""
        self.load()
        found = [entry for entry in self.entries(kind) if entry.is_called(name)]
        if not found:
            raise self._not_found(kind, name)
        if len(found) > 1:
            claims = " and ".join(str(entry.distribution) for entry in found)
            choices = " or ".join(entry.qualified for entry in found)
            raise PluginError(f"{KINDS[kind].noun} {name!r} is claimed by {claims}", fix=f"write {choices}")
        return found[0]

    def has(self, kind: str, name: str) -> bool:
        """Whether any distribution claims ``name`` or ``dist/name``, usable or not."""
        self.load()
        return any(entry.kind == kind and entry.is_called(name) for entry in self.installed)

    def build(self, kind: str, part: PartLike, /, *, at: str | None = None, **context: object) -> Any:
        """Construct what ``part`` names; see ``agentrl.plugins.building`` for what it is given.

        ``at`` is the configuration key of the part in messages, where it is not the kind's usual one.
        """
        from agentrl.plugins.building import build

        key = at or KINDS[kind].key
        with about(key):
            return build(self._get(kind, part.name), kind, part, key, context)

    def adapt_agent(self, obj: object) -> object:
        """``obj`` turned into an agent by the first plugin that knows its kind, else ``obj`` itself."""
        adapted = self.hook.agentrl_adapt_agent(obj=obj)
        return obj if adapted is None else adapted

    def _adapts(self, obj: object) -> bool:
        return self.hook.agentrl_adapt_agent(obj=obj) is not None

    @cached_property
    def _scan(self) -> Scan:
        return scan()

    @cached_property
    def _elsewhere(self) -> tuple[Entry, ...]:
        return tuple(self._find_elsewhere())

    @cached_property
    def _unmet(self) -> dict[Distribution, str]:
        """Distributions made for another core, with the reason; none of their code is loaded."""
        distributions = {entry.distribution: None for entry in self._scan.entries if not self.disabled_by(entry)}
        reasons = {distribution: unmet_range(distribution) for distribution in distributions}
        return {distribution: reason for distribution, reason in reasons.items() if reason}

    def _load_named(self, entry: Entry) -> object:
        try:
            return self._load(entry)
        except PluginError as error:
            what = f"{KINDS[entry.kind].noun} {entry.name!r} of {entry.distribution}"
            raise PluginError(f"{what} does not load: {error.message}", fix=error.fix) from error.__cause__

    def _load(self, entry: Entry) -> object:
        from agentrl.plugins.references import import_target

        if entry.value is not None:
            return entry.value
        return import_target(entry.target)

    def _not_found(self, kind: str, name: str) -> AgentRLError:
        from agentrl.plugins.entries import install_command, provider

        noun = KINDS[kind].noun
        candidates = [entry for entry in (*self.installed, *self._elsewhere) if entry.kind == kind]
        for entry in candidates:
            if entry.is_called(name) and (reason := self.unusable(entry)):
                what = f"{noun} {name!r} of {entry.distribution} is left out: {reason}"
                if self.disabled_by(entry):
                    return ConfigError(what, fix="enable it to use it")
                return PluginError(what, fix=f"install a version of {entry.distribution.name} made for this core")
            if entry in self._elsewhere and entry.is_called(name):
                what = f"{noun} {name!r} of {entry.distribution} is in an environment, and not here, where it is used"
                return ConfigError(what, fix=f"here too: {install_command(entry.distribution.name)}")
        if (project := provider(kind, name)) is not None:
            apart = f", or agentrl env create {project.removeprefix('agentrl-')}" if kind == "agents" else ""
            what = f"{noun} {name!r} comes with {project}, which is not installed"
            return ConfigError(what, fix=f"{install_command(project)}{apart}")
        known = {entry.name for entry in candidates if self.unusable(entry) is None}
        failed = ", ".join(broken.name for broken in self.broken)
        hint = f", unless a plugin that does not load has it ({failed}: see `agentrl plugins --all`)" if failed else ""
        return ConfigError(f"there is no {noun} {name!r}{hint}", fix=_near(kind, name, known))


def _near(kind: str, name: str, known: set[str]) -> str:
    """The registered names and files that are like ``name``; else all names, and the plugin that may bring it."""
    from agentrl.plugins.entries import install_command

    near = near_matches(name, known | ({f"{name}.py"} if os.path.isfile(f"{name}.py") else set()))
    if near.startswith("did you mean"):
        return near
    # A backend's plugin is called after it, as that of an environment is.
    brings = kind == "backends" and "/" not in name
    plugin = f"; a plugin such as agentrl-{name} may bring it: {install_command(f'agentrl-{name}')}" if brings else ""
    return f"{near}{plugin}; what is not registered is pkg.mod:Obj or file.py:Obj"
