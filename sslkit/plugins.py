"""The plugin host: load built-ins, then installed plugins, and find any component by its name.

Nothing heavy is imported here. A plugin that fails is reported in one line (`problems()`) and has no other effect.
"""

import ast
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pluggy

from sslkit import hookspecs
from sslkit.errors import UserError, shortened

BUILTINS = (
    "sslkit.config",
    "sslkit.methods",
    "sslkit.backbones",
    "sslkit.augment",
    "sslkit.evaluation",
    "sslkit.data",
    "sslkit.runs.trackers",
)
KINDS = ("methods", "backbones", "augmentations", "evaluators", "datasets", "trackers")
FILES = ("recipes",)
"""Registered too, as paths in place of objects."""


@dataclass(frozen=True)
class Component:
    """One registered component: its kind and name, its target (the object or "module:Name"), and its origin."""

    kind: str
    name: str
    target: Any
    plugin: str
    distribution: str

    def load(self) -> Any:
        """Return the object itself, imported now if it was registered as "module:Name"."""
        if not isinstance(self.target, str):
            return self.target
        module, _, attribute = self.target.partition(":")
        try:
            return getattr(import_module(module), attribute)
        except Exception as error:
            raise UserError(
                f"{singular(self.kind)} {self.name!r} of {self.distribution} cannot be loaded from "
                f"{self.target!r} ({type(error).__name__}: {error}); update or uninstall {self.distribution}"
            ) from error

    @property
    def summary(self) -> str:
        """First line of the docstring, read without importing the module."""
        text = _docstring(self.target) or ""
        return text.strip().split("\n")[0].rstrip(".")


Catalog = dict[str, list[Component]]
"""Components of one kind by their names; two of one name clash."""


@dataclass
class Host:
    """The plugin manager, the components by kind and name, and the problems found while loading."""

    manager: pluggy.PluginManager
    distributions: dict[str, str]
    problems: list[str]
    catalogs: dict[str, Catalog]


@cache
def host() -> Host:
    """Load every plugin, once per process; SSLKIT_PLUGINS=a,b loads only those, empty loads none."""
    manager = pluggy.PluginManager("sslkit")
    manager.add_hookspecs(hookspecs)
    loaded = Host(manager, {}, [], {})
    for name in BUILTINS:
        _add(loaded, name, "sslkit", import_module(name))
    for entry, distribution in _entry_points(loaded):
        try:
            plugin = entry.load()
        except Exception as error:
            loaded.problems.append(
                f"plugin {entry.name!r} ({distribution}) does not import: {type(error).__name__}: {error}; "
                f"update it, or uninstall it with `pip uninstall {distribution}`"
            )
        else:
            _add(loaded, entry.name, distribution, plugin)
    loaded.problems += _misspelt_hooks(loaded)
    loaded.catalogs = {kind: _collect(loaded, kind) for kind in (*KINDS, *FILES)}
    loaded.problems += _clashes(loaded)
    return loaded


def problems() -> list[str]:
    """One line with cause and remedy for every broken plugin, misspelt hook and clash."""
    return host().problems


def hooks() -> Any:
    """The callable hooks, for events: `hooks().run_started(run=run)`."""
    return host().manager.hook


def components(kind: str) -> list[Component]:
    """All components of a kind, including clashing ones, sorted by name."""
    return [c for name in sorted(host().catalogs[kind]) for c in host().catalogs[kind][name]]


def names(kind: str) -> list[str]:
    return sorted(host().catalogs[kind])


def find(kind: str, name: Any) -> Any:
    """Return the component called `name`, imported.

    For a name registered with a trailing ":" (`timm:`), what follows is bound as the first argument.
    Raises UserError if there is none (with suggestions), if two distributions register it, or if `name` is no text.
    """
    catalog = host().catalogs[kind]
    if not isinstance(name, str) or not name:
        raise UserError(f"needs a name; there are: {', '.join(names(kind))}")
    prefix = name.partition(":")[0] + ":"
    if name not in catalog and prefix in catalog and name != prefix:
        return partial(_only(catalog[prefix]).load(), name.removeprefix(prefix))
    if name in catalog and name.endswith(":"):
        raise UserError(f"{name} needs a name behind the colon, such as {name}NAME")
    if name not in catalog:
        raise UserError(f"no {singular(kind)} is called {shortened(name)!r}; {suggest(name, sorted(catalog))}")
    return _only(catalog[name]).load()


def suggest(word: str, known: list[str]) -> str:
    """Return a hint for an unknown name: the closest known one, or all of them."""
    close = get_close_matches(word, known, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known) or 'none'}"


def singular(kind: str) -> str:
    return {"datasets": "data set"}.get(kind, kind.removesuffix("s"))


def add_commands(cli: Any) -> None:
    """Let every plugin add its click commands; one that fails becomes a problem."""
    loaded = host()
    for impl in loaded.manager.hook.register_commands.get_hookimpls():
        try:
            impl.function(*[cli for _ in impl.argnames])
        except Exception as error:
            loaded.problems.append(_hook_failed(loaded, impl.plugin_name, "register_commands", error))


def _entry_points(loaded: Host) -> list[tuple[metadata.EntryPoint, str]]:
    installed = [(e, e.dist.name if e.dist else "?") for e in metadata.entry_points(group="sslkit")]
    # An editable install next to its own source tree can list the same entry point twice.
    installed = sorted({(e.name, d): (e, d) for e, d in installed}.values(), key=lambda pair: pair[0].name)
    if "SSLKIT_PLUGINS" not in os.environ:
        return installed
    selected = [w.strip() for w in os.environ["SSLKIT_PLUGINS"].split(",") if w.strip()]
    present = {name for e, d in installed for name in (e.name, d)}
    for word in selected:
        if word not in present:
            loaded.problems.append(
                f"SSLKIT_PLUGINS names {word!r}, which is not installed; {suggest(word, sorted(present))}"
            )
    return [(e, d) for e, d in installed if e.name in selected or d in selected]


def _add(loaded: Host, name: str, distribution: str, plugin: ModuleType) -> None:
    key = name if loaded.manager.get_plugin(name) is None else f"{distribution}:{name}"
    try:
        loaded.manager.register(plugin, name=key)
    except (pluggy.PluginValidationError, ValueError) as error:
        if loaded.manager.get_plugin(key) is not None:
            loaded.manager.unregister(name=key)
        reason = " ".join(str(error).split())
        loaded.problems.append(f"plugin {name!r} ({distribution}) is left out: {reason}; see docs/hooks.md")
    else:
        loaded.distributions[key] = distribution


def _misspelt_hooks(loaded: Host) -> list[str]:
    known = [n for n in vars(hookspecs) if n.startswith(("register_", "run_"))]
    callers = vars(loaded.manager.hook)
    return [
        f"plugin {impl.plugin_name!r} ({loaded.distributions[impl.plugin_name]}) implements an unknown hook "
        f"{name!r}; {suggest(name, known)}"
        for name, caller in sorted(callers.items())
        if isinstance(caller, pluggy.HookCaller) and not caller.has_spec()
        for impl in caller.get_hookimpls()
        if not impl.optionalhook
    ]


def _collect(loaded: Host, kind: str) -> Catalog:
    catalog: Catalog = {}
    for impl in getattr(loaded.manager.hook, f"register_{kind}").get_hookimpls():
        register = _registrar(catalog, kind, impl.plugin_name, loaded.distributions[impl.plugin_name])
        try:
            impl.function(*[register for _ in impl.argnames])
        except Exception as error:
            loaded.problems.append(_hook_failed(loaded, impl.plugin_name, f"register_{kind}", error))
    return catalog


def _registrar(
    catalog: dict[str, list[Component]], kind: str, plugin: str, distribution: str
) -> Callable[[str, Any], None]:
    def register(name: str, thing: Any) -> None:
        catalog.setdefault(name, []).append(Component(kind, name, thing, plugin, distribution))

    return register


def _hook_failed(loaded: Host, plugin: str, hook: str, error: Exception) -> str:
    distribution = loaded.distributions[plugin]
    return (
        f"plugin {plugin!r} ({distribution}) fails in {hook}: {type(error).__name__}: {error}; "
        f"update it, or uninstall it with `pip uninstall {distribution}`"
    )


def _clashes(loaded: Host) -> list[str]:
    return [_clash(claims) for catalog in loaded.catalogs.values() for claims in catalog.values() if len(claims) > 1]


def _clash(claims: list[Component]) -> str:
    first = claims[0]
    owners = " and ".join(sorted({c.distribution for c in claims}))
    removable = sorted({c.distribution for c in claims} - {"sslkit"})
    return (
        f"{singular(first.kind)} {first.name!r} is offered by both {owners}; uninstall one, "
        f"or leave it out with SSLKIT_PLUGINS (e.g. `pip uninstall {removable[0] if removable else first.plugin}`)"
    )


def _only(claims: list[Component]) -> Component:
    if len(claims) > 1:
        raise UserError(_clash(claims))
    return claims[0]


def _docstring(target: Any) -> str | None:
    if not isinstance(target, str):
        return inspect.getdoc(target)
    module, _, attribute = target.partition(":")
    return _docstrings(module).get(attribute)


@cache
def _docstrings(module: str) -> dict[str, str | None]:
    """Docstrings of the classes and functions of a module, parsed without running it; none if it cannot be read."""
    try:
        spec = find_spec(module)
        tree = ast.parse(Path(str(spec and spec.origin)).read_text(encoding="utf-8"))
    except (ImportError, OSError, ValueError, SyntaxError):
        return {}
    named = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    return {node.name: ast.get_docstring(node) for node in named}


def lazy_names(package: str, home: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return `__getattr__` and `__dir__` of a package whose public names are imported on first use (PEP 562).

    home: name -> the module that defines it, or "module:name there".
    """

    def __getattr__(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, _, attribute = home[name].partition(":")
        return getattr(import_module(module), attribute or name)

    def __dir__() -> list[str]:
        # The hooks too: pluggy finds those of a built-in package by its `dir`.
        module = sys.modules[package]
        return sorted([*module.__all__, *(name for name in vars(module) if name.startswith("register_"))])

    return __getattr__, __dir__
