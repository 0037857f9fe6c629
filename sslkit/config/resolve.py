"""Resolve layers of settings to one validated, frozen RunConfig; report all mistakes in one message.

Layers, weakest first: field defaults, advice, the data set's settings, recipes, command line. Advice is what the
method's paper used or, where no recipe is named, what fits the task. The origin of each value is kept.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from sslkit import plugins
from sslkit.config.base import Choice, Config
from sslkit.config.components import config_class
from sslkit.config.layers import SECTIONS, Layer, Mistakes, leaves, merge, nest, parse_words
from sslkit.config.plain import guessed, typed
from sslkit.config.recipes import with_recipes
from sslkit.config.run import RunConfig
from sslkit.errors import UserError, shortened
from sslkit.machine.paths import at_home

BASE: dict[str, Any] = {
    "method.name": "byol",
    "backbone.name": "shufflenetv2",
    "data.name": "digits",
    "evaluators.knn": True,
    "evaluators.linear": True,
    "evaluators.geometry": True,
    # With labels, accuracies answer the same question better.
    "evaluators.geometry.only_unlabelled": True,
}


Advice = Callable[[dict[str, Any]], list[Layer]]
"""Map requested settings to layers that are weaker than they."""


@dataclass(frozen=True)
class Resolved:
    """A valid configuration, with the origin of each dotted key (`default`, or no entry, for default values)."""

    config: RunConfig
    origins: dict[str, str]
    values: dict[str, Any]
    layers: tuple[Layer, ...] = ()
    """The layers that it was resolved from."""


@dataclass(frozen=True)
class Draft:
    """Merged layers as far as they are valid, before their mistakes are raised."""

    config: RunConfig | None
    """None if a setting is invalid."""
    sections: dict[str, Choice | None]
    """The component of each section; None if it is invalid."""
    evaluators: tuple[Choice, ...]
    values: dict[str, Any]
    """Merged values by dotted key, before validation."""
    origins: dict[str, str]
    layers: tuple[Layer, ...] = ()
    """The layers that were merged."""

    def resolved(self, mistakes: Mistakes) -> Resolved:
        """Return the valid configuration. Raises UserError that lists every mistake."""
        mistakes.stop()
        assert self.config is not None
        return Resolved(self.config, self.origins, _all_values(self.config), self.layers)


def resolve(words: Iterable[str] = (), recipe: str | Path | None = None) -> Resolved:
    """Return the configuration of `sslkit run [recipe] words...`; `recipe` is a name or a path, as in recipe=.

    Raises UserError that lists every mistake. The further checks of a new run are in `sslkit.training.preflight`.
    """
    mistakes = Mistakes()
    return resolve_layers([words_layer(words, recipe, mistakes)], mistakes)


def words_layer(words: Iterable[str], recipe: str | Path | None, mistakes: Mistakes) -> Layer:
    """Return the command line as a layer; `recipe` is equivalent to the word recipe=."""
    values = parse_words(words, mistakes)
    if recipe is not None:
        if "recipe" in values:
            mistakes.add("recipe", "given twice")
        values["recipe"] = str(recipe)
    return Layer("command line", values)


def resolve_layers(layers: list[Layer], mistakes: Mistakes) -> Resolved:
    """Merge layers, and the recipes they name, over the defaults, and validate. Raises UserError with every mistake."""
    return draft_layers(layers, mistakes).resolved(mistakes)


def draft_layers(given: list[Layer], mistakes: Mistakes, fitted: Advice | None = None) -> Draft:
    """Merge layers, and the recipes they name, over the defaults, and validate; add every mistake to `mistakes`.

    fitted: advice that fits the task. It replaces the paper's where no layer names a recipe; with a recipe, it gives
    only what the layers explicitly leave to it, as in epochs=auto.
    """
    by_recipe = any(layer.values.get("recipe") for layer in given)
    layers = [expanded for layer in given for expanded in with_recipes(layer, mistakes)]
    data_advice = _data_advice(merge([Layer("default", BASE), *layers])[0])
    requested = guessed(merge([Layer("default", BASE), *data_advice, *layers])[0])
    fits = fitted(requested) if fitted and not (by_recipe and "auto" not in requested.values()) else []
    left = {key for layer in fits for key in layer.values if requested.get(key) == "auto"}
    layers = [_omitting(layer, left) for layer in layers] + [layer for layer in fits if layer.values.keys() <= left]
    advice = fits if fits and not by_recipe else papers_advice(requested)
    values, origins = merge([Layer("default", BASE), *advice, *data_advice, *layers])
    sections = {s: _choice(s, kind, values, mistakes) for s, kind in SECTIONS.items()}
    if any(k.startswith("eval_data.") and v is not None for k, v in values.items()):
        sections["eval_data"] = _choice("eval_data", "datasets", values, mistakes)
    evaluators = _evaluators(values, mistakes)
    config = _run_config(values, sections, evaluators, mistakes)
    return Draft(config, sections, evaluators, guessed(values), origins, tuple(given))


def resolve_data(source: str, words: Iterable[str]) -> Choice:
    """Return the data set of `data=source`; `words` are its settings without the prefix: image_size=96."""
    mistakes = Mistakes()
    values = {"data.name": source} | {f"data.{k}": v for k, v in parse_words(words, mistakes).items()}
    choice = _choice("data", "datasets", values, mistakes)
    for message in choice.options.check() if choice else ():
        mistakes.add("data", message)
    mistakes.stop()
    assert choice is not None
    return choice


def _omitting(layer: Layer, keys: set[str]) -> Layer:
    return Layer(layer.origin, {key: value for key, value in layer.values.items() if key not in keys})


def papers_advice(requested: dict[str, Any]) -> list[Layer]:
    """Return the settings of the method's paper, and the augmentation that it wants."""
    method = load_component("method", requested)
    settings = {"augment.name": "simclr"} if method is None else {"augment.name": method.augment, **method.defaults}
    return [Layer(f"method {requested['method.name']}", settings)]


def _data_advice(requested: dict[str, Any]) -> list[Layer]:
    source = load_component("data", requested)
    settings = {} if source is None else source.advice(requested["method.name"])
    return [Layer(f"data set {requested['data.name']}", settings)]


def requested_choice(section: str, requested: dict[str, Any]) -> Choice | None:
    """Return the component that settings name for a section, or None if not valid, which is reported elsewhere."""
    return _choice(section, SECTIONS[section], requested, Mistakes())


def load_component(section: str, values: dict[str, Any]) -> Any:
    """Return the component class of a section, or None if its name is wrong, which `_choice` reports later."""
    try:
        return _component(section, values.get(f"{section}.name"))[1]
    except UserError:
        return None


def _component(section: str, name: Any) -> tuple[str, Any, dict[str, Any]]:
    """Return (registered name, component, implied options); a path selects the data set that claims it."""
    kind = SECTIONS.get(section, "datasets")
    if kind == "datasets" and isinstance(name, str) and name and name not in plugins.names(kind):
        registered = _claimant(name)
        return registered, plugins.find(kind, registered), {"root": name}
    return name, plugins.find(kind, name), {}


def _claimant(text: str) -> str:
    path = at_home(text)
    # Unlike `Path.exists`, this takes names of any length.
    if not os.path.exists(path):
        hint = plugins.suggest(text, plugins.names("datasets"))
        raise UserError(f"{shortened(text)!r} is neither a path that exists nor a registered data set; {hint}")
    for name in sorted(plugins.names("datasets"), key=lambda n: n == "folder"):
        try:
            if plugins.find("datasets", name).claims(path):
                return name
        except UserError:
            continue
    raise UserError(f"{text!r} is neither a folder, a .beton file nor a data set that an installed plugin reads")


def _choice(section: str, kind: str, values: dict[str, Any], mistakes: Mistakes) -> Choice | None:
    try:
        name, component, implied = _component(section, values.get(f"{section}.name"))
    except UserError as error:
        mistakes.add(section, str(error))
        return None
    given = {k.removeprefix(f"{section}."): v for k, v in values.items() if k.startswith(f"{section}.")}
    given.pop("name")
    options = _validate(config_class(component), nest(implied | given), section, mistakes)
    return None if options is None else Choice(name=name, options=options)


def _evaluators(values: dict[str, Any], mistakes: Mistakes) -> tuple[Choice, ...]:
    keys = [k.removeprefix("evaluators.") for k in values if k.startswith("evaluators.")]
    chosen = []
    for name in dict.fromkeys(k.partition(".")[0] for k in keys):
        section = f"evaluators.{name}"
        options = {k.removeprefix(f"{name}."): values[f"evaluators.{k}"] for k in keys if k.startswith(f"{name}.")}
        if values.get(section, True) is not True:
            mistakes.add(section, f"has settings, such as {section}.k=5; evaluators=[{name}] chooses it")
            continue
        try:
            component = plugins.find("evaluators", name)
        except UserError as error:
            mistakes.add("evaluators", str(error))
            continue
        valid = _validate(config_class(component), nest(options), section, mistakes)
        if valid is not None:
            chosen.append(Choice(name=name, options=valid))
    return tuple(chosen)


def _run_config(
    values: dict[str, Any], sections: dict[str, Choice | None], evaluators: Any, mistakes: Mistakes
) -> RunConfig | None:
    owned = tuple(f"{s}." for s in (*SECTIONS, "eval_data", "evaluators"))
    plain = {k: v for k, v in values.items() if not k.startswith(owned)}
    if any(choice is None for choice in sections.values()):
        # Validate the rest with placeholders, so that its mistakes appear in the same message.
        sections = {s: choice or Choice(name="?") for s, choice in sections.items()}
    return _validate(RunConfig, nest(plain) | sections | {"evaluators": evaluators}, "", mistakes)


C = TypeVar("C", bound=Config)


def _validate(cls: type[C], options: dict[str, Any], section: str, mistakes: Mistakes) -> C | None:
    try:
        return cls.model_validate(typed(options, cls))
    except ValidationError as error:
        for line in error.errors():
            where = [str(part) for part in line["loc"] if not str(part).startswith("function-")]
            mistakes.add(".".join(filter(None, [section, *where])), _explanation(line, cls, section))
        return None


def _explanation(line: Any, cls: type[Config], section: str) -> str:
    if line["type"] == "extra_forbidden":
        return f"unknown; {_suggest_key(cls, [str(p) for p in line['loc']], section)}"
    message = line["msg"].removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]} (got {shortened(repr(line['input']))})"


def _suggest_key(cls: type[Config], loc: list[str], section: str) -> str:
    owner: Any = cls
    for part in loc[:-1]:
        annotation = owner.model_fields[part].annotation if part in owner.model_fields else None
        owner = annotation if isinstance(annotation, type) and issubclass(annotation, Config) else owner
    prefix = ".".join(filter(None, [section, *loc[:-1]]))
    known = [f"{prefix}.{name}" if prefix else name for name in owner.model_fields]
    close = get_close_matches(f"{prefix}.{loc[-1]}" if prefix else loc[-1], known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(known) or 'no settings here'}"


def _all_values(config: RunConfig) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    options = {e["name"]: {k: v for k, v in e.items() if k != "name"} for e in tree["evaluators"]}
    tree["evaluators"] = list(options)
    flat = {k: v for key, value in tree.items() for k, v in leaves(key, value).items()}
    return flat | leaves("evaluators", options)
