"""Settings before validation: dotted keys, read from `key=value` words and mappings, in layers that are merged.

Mistakes are collected, so that one message can list them all. Neither torch nor pydantic is imported.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sslkit.config.plain import guessed
from sslkit.config.reading import NotYaml, Plain, read_yaml
from sslkit.errors import UserError

SECTIONS = {"method": "methods", "backbone": "backbones", "data": "datasets", "augment": "augmentations"}
"""Run key that names a component -> kind of component; `eval_data` and `evaluators` are handled separately."""
NAMES = (*SECTIONS, "eval_data", "optimizer")
"""Run keys whose values are names, or mappings that hold a name."""


@dataclass(frozen=True)
class Layer:
    """Settings of one origin (recipe, command line ...), by dotted key."""

    origin: str
    values: dict[str, Any]


@dataclass
class Mistakes:
    """Collect one line per mistake; `stop()` raises one UserError that lists them all."""

    lines: list[str] = field(default_factory=list)

    def add(self, key: str, message: str) -> None:
        self.lines.append(f"{key}: {message}" if key else message)

    def stop(self) -> None:
        if self.lines:
            plural = "s" if len(self.lines) > 1 else ""
            raise UserError(
                "\n".join([f"{len(self.lines)} mistake{plural} in the settings", *map(_bullet, self.lines)])
            )


def _bullet(line: str) -> str:
    return "  - " + line


def parse_words(words: Iterable[str], mistakes: Mistakes) -> dict[str, Any]:
    """Parse `key=value` words into dotted keys. Values are text, which the field that they are for gives its type."""
    tree: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            mistakes.add("", f"{word!r} is not key=value")
        elif key in tree:
            mistakes.add(key, "given twice")
        else:
            tree[key] = _grouped(key, text)
    return flatten(tree, mistakes)


def _grouped(key: str, text: str) -> Any:
    """Return the list or mapping of settings that a word gives, or else its text: {x} can be a folder."""
    try:
        group = read_yaml(text) if text.startswith("{") or key == "evaluators" else None
    except NotYaml:
        return Plain(text)
    is_group = isinstance(group, list) or (isinstance(group, dict) and (key not in NAMES or "name" in group))
    return group if is_group else Plain(text)


def flatten(tree: Mapping[str, Any], mistakes: Mistakes) -> dict[str, Any]:
    """Flatten nested settings to dotted keys: `method: byol` becomes `method.name`, evaluators `evaluators.<name>`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        section = str(key)
        if section == "evaluators":
            flat |= _flatten_evaluators(value, mistakes)
        elif section in NAMES and not isinstance(value, Mapping):
            flat[f"{section}.name"] = None if value in (None, "", "null") else str(value)
        else:
            flat |= leaves(section, value)
    return flat


def leaves(key: str, value: Any) -> dict[str, Any]:
    """Flatten a nested mapping under `key`: leaves("a", {"b": 1}) is {"a.b": 1}."""
    if not isinstance(value, Mapping):
        return {key: value}
    return {k: v for name, child in value.items() for k, v in leaves(f"{key}.{name}", child).items()}


def _flatten_evaluators(value: Any, mistakes: Mistakes) -> dict[str, Any]:
    flat: dict[str, Any] = {"evaluators": "replace"}
    for options in _named_options(value):
        if not isinstance(options, Mapping) or not isinstance(options.get("name"), str):
            mistakes.add("evaluators", "must be a list of names, such as evaluators=[knn,linear]")
            continue
        key = f"evaluators.{options['name']}"
        flat |= {key: True} | leaves(key, {k: v for k, v in options.items() if k != "name"})
    return flat


def _named_options(value: Any) -> list[Any]:
    """Return the options of each evaluator, its name among them; None for each that has no name or wrong options."""
    if isinstance(value, Mapping):
        return [_with_name(name, options) for name, options in value.items()]
    items = guessed(value) if isinstance(value, Plain) else value
    items = [items] if isinstance(items, str) else items or []
    return [{"name": item} if isinstance(item, str) else item for item in items] if isinstance(items, list) else [None]


def _with_name(name: str, options: Any) -> dict[str, Any] | None:
    options = {} if guessed(options) is None else options
    return {"name": name, **options} if isinstance(options, Mapping) else None


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Nest dotted keys: {"jitter.p": 0.5} becomes {"jitter": {"p": 0.5}}."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[leaf] = value
    return tree


def merge(layers: list[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Merge layers into (values, origins); later layers take precedence.

    A layer that names another component drops the options of the component that it replaces, except the image size:
    a recipe chooses that for its method and backbone, whatever the data.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for section in (*SECTIONS, "eval_data"):
            name = layer.values.get(f"{section}.name")
            if name is not None and name != values.get(f"{section}.name"):
                values = _without(values, f"{section}.", keep="data.image_size")
        if "evaluators" in layer.values:
            values = _without(values, "evaluators.")
        for key, value in layer.values.items():
            if key == "evaluators":
                continue
            if not key.startswith("evaluators."):
                values = _without(values, f"{key}.")
            values[key] = value
            origins[key] = layer.origin
    return values, {k: origins[k] for k in values}


def _without(values: dict[str, Any], prefix: str, keep: str = "") -> dict[str, Any]:
    return {k: v for k, v in values.items() if k == keep or not k.startswith(prefix)}


def settings_layer(origin: str, settings: dict[str, Any], mistakes: Mistakes) -> Layer:
    """Return keyword settings of the Python API, nested or dotted, as a layer."""
    return Layer(origin, flatten(settings, mistakes))
