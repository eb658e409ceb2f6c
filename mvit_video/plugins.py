"""Names for what can be added from outside (networks, list formats, augmentations, losses, exporters, trackers), and the
plugins that add them.

A plugin is a Python module that calls `register_…` functions when it is imported. It is imported because the user names it
(`--plugin MODULE`), or because an installed package lists it under the entry points `mvit_video.plugins`; never because a
checkpoint or a configuration names it.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from mvit_video.errors import ConfigError, MvitVideoError, did_you_mean

GROUP = "mvit_video.plugins"
Entry = TypeVar("Entry")

_registries: list["Registry"] = []
_loaded: list[str] = []  # plugins that the user has named, in this order
_tried: list[str] = []  # those of installed packages
_loading: list[str] = []  # plugins that are being imported, the innermost last


class Registry(Generic[Entry]):
    """Name -> entry, and the plugin that each one comes from.

    Args:
        kind: what an entry is called in errors, such as "model".
        modules: modules of ours that register entries; imported at the first look, so that importing the registry stays fast.
    """

    def __init__(self, kind: str, modules: Sequence[str] = ()) -> None:
        self.kind, self._modules = kind, list(modules)
        self._entries: dict[str, Entry] = {}
        self._plugins: dict[str, str | None] = {}
        _registries.append(self)

    def add(self, name: str, entry: Entry, module: str) -> None:
        """Enter what `module` registers. Raises ConfigError for a name that is taken or empty."""
        plugin = None if module.startswith("mvit_video.") else _loading[-1] if _loading else module
        if plugin is not None:
            self._import_ours()
        if not name or name != name.strip():
            raise ConfigError(
                f"{_by(plugin)} registers the {self.kind} '{name}': give it a name without spaces around it"
            )
        if name in self._entries and self._plugins[name] != plugin:
            raise ConfigError(
                f"{_by(plugin)} registers the {self.kind} '{name}', a name that {_by(self._plugins[name])} has taken: "
                "choose another name"
            )
        if name in self._entries and (plugin is None or _loading):
            raise ConfigError(
                f"{_by(plugin)} registers the {self.kind} '{name}' twice: choose another name for one of them"
            )
        self._entries[name], self._plugins[name] = entry, plugin

    def names(self) -> list[str]:
        """All registered names, ours first, in order of registration."""
        self._import_ours()
        load_installed()
        return sorted(self._entries, key=lambda name: self._plugins[name] is not None)

    def get(self, name: str) -> Entry:
        """Raises ConfigError for a name that nothing has registered."""
        known = self.names()
        if name not in self._entries:
            raise ConfigError(
                f"{self.kind} '{name}' is unknown{did_you_mean(name, known)}: choose from {', '.join(known)}; "
                "for names from plugins pass --plugin MODULE"
            )
        return self._entries[name]

    def plugin_of(self, name: str) -> str | None:
        """The plugin that a known name comes from; None for ours."""
        return self._plugins[name]

    def forget(self, plugin: str) -> None:
        """Remove what a plugin registered."""
        for name in [name for name, owner in self._plugins.items() if owner == plugin]:
            del self._entries[name], self._plugins[name]

    def _import_ours(self) -> None:
        while self._modules:
            importlib.import_module(self._modules.pop(0))


def calling_module() -> str:
    """Name of the module that called the caller."""
    return sys._getframe(2).f_globals.get("__name__", "")


def entered(registry: Registry[Entry], name: str, entry: Entry | None, module: str) -> Entry | Callable[[Entry], Entry]:
    """The entry, which is registered now; without one a decorator that registers what it stands above."""

    def enter(entry: Entry) -> Entry:
        registry.add(name, entry, module)
        return entry

    return enter if entry is None else enter(entry)


def load_plugins(modules: Sequence[str]) -> None:
    """Import the plugins that the user names; a module is looked for where Python looks, then in the current folder.

    Raises ConfigError that names the plugin, what is wrong with it and what to do.
    """
    if modules and os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    for module in modules:
        if module not in _loaded:
            _import(module, f"--plugin {module}", "drop it")
            _loaded.append(module)


def load_installed(points: Sequence[EntryPoint] | None = None) -> None:
    """Import the plugins of installed packages, each once. Raises ConfigError as `load_plugins` does."""
    for point in _installed() if points is None else points:
        if point.module not in _tried:
            _tried.append(point.module)
            _import(point.module, f"plugin '{point.name}' of {_package(point)}", f"uninstall {_package(point)}")


def unload_plugin(module: str) -> None:
    """Remove what a plugin registered, as if it had never been imported."""
    for registry in _registries:
        registry.forget(module)
    for names in (_loaded, _tried):
        with suppress(ValueError):
            names.remove(module)
    for name in [name for name in sys.modules if f"{name}.".startswith(f"{module}.")]:
        del sys.modules[name]


@cache
def _installed() -> list[EntryPoint]:
    return sorted(entry_points(group=GROUP), key=lambda point: point.name)


def named_plugins() -> tuple[str, ...]:
    """Plugins that the user named."""
    return tuple(_loaded)


def plugins_of(chosen: Sequence[tuple[Registry, str]]) -> tuple[str, ...]:
    """The plugins that a run needs: those the user has named, and those that the chosen names come from.

    Raises ConfigError for a name that nothing has registered.
    """
    for registry, name in chosen:
        registry.get(name)
    owners = [registry.plugin_of(name) for registry, name in chosen]
    found = [owner for owner in owners if owner is not None and owner != "__main__"]
    return tuple(dict.fromkeys([*_loaded, *found]))


def check_plugins(plugins: Sequence[str], source: str) -> None:
    """Raise ConfigError if a plugin that `source` needs is not loaded; loads nothing."""
    load_installed()
    for plugin in plugins:
        if plugin not in sys.modules:
            raise ConfigError(
                f"{source}: was made with the plugin '{plugin}', which is not loaded: add --plugin {plugin}, or install "
                "its package"
            )


def _import(module: str, what: str, otherwise: str) -> None:
    if module.endswith(".py") or "/" in module:
        name = os.path.basename(module).removesuffix(".py")
        raise ConfigError(
            f"{what}: is a file, expected the name of a module: pass --plugin {name} in the folder of the file"
        )
    try:
        with _as_plugin(module):
            importlib.import_module(module)
    except ModuleNotFoundError as reason:
        if not (reason.name and f"{module}.".startswith(f"{reason.name}.")):
            raise ConfigError(
                f"{what}: needs the module '{reason.name}', which is missing: install it, or {otherwise}"
            ) from reason
        raise ConfigError(
            f"{what}: there is no module '{reason.name}': install its package, or run this in the folder that contains it"
        ) from None
    except MvitVideoError as reason:
        named = f"'{module}'" in str(reason)
        raise ConfigError(str(reason) if named else f"{what}: {reason}") from reason
    except (Exception, SystemExit) as reason:
        text = " ".join(str(reason).split())
        raise ConfigError(
            f"{what}: cannot be imported ({type(reason).__name__}: {text}): fix it (--debug shows where), or {otherwise}"
        ) from reason


@contextmanager
def _as_plugin(module: str) -> Iterator[None]:
    """Inside, what is registered is the plugin's; where it fails, nothing of it stays."""
    _loading.append(module)
    try:
        yield
    except BaseException:
        unload_plugin(module)
        raise
    finally:
        _loading.pop()


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an installed package"


def _by(plugin: str | None) -> str:
    return "mvit_video itself" if plugin is None else f"the plugin '{plugin}'"
