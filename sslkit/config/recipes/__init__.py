"""Recipes: YAML files with settings of a run, found by name if shipped here or by a plugin, otherwise by path.

A recipe states only what differs from the defaults, or from the recipe that its key `recipe` names. The first line of
a shipped recipe is a comment that summarises it and names its source.
"""

import os
from difflib import get_close_matches
from pathlib import Path

from sslkit import plugins
from sslkit.config.layers import Layer, Mistakes, flatten
from sslkit.config.reading import NotYaml, read_yaml
from sslkit.errors import UserError, in_one_line, shortened
from sslkit.machine.paths import at_home


def names() -> list[str]:
    """Return the names of the shipped recipes, those of plugins included."""
    return plugins.names("recipes")


def summary(name: str) -> str:
    """Return the summary of a shipped recipe: its first line."""
    return text(name).partition("\n")[0].removeprefix("#").strip()


def text(name: str) -> str:
    """Return the text of a recipe. Raises UserError if there is none of that name."""
    return _find(name).read_text(encoding="utf-8")


def with_recipes(layer: Layer, mistakes: Mistakes, folder: Path = Path(), within: tuple[Path, ...] = ()) -> list[Layer]:
    """Return the layer, preceded by the layers of the recipe that its key `recipe` names; weakest first.

    folder: base of a relative path. within: the chain of recipes that led to this layer, to detect cycles.
    """
    if layer.values.get("recipe") is None:
        return [layer]
    own = Layer(layer.origin, {key: value for key, value in layer.values.items() if key != "recipe"})
    try:
        path = _find(str(layer.values["recipe"]), folder)
    except UserError as error:
        mistakes.add("recipe", str(error))
        return [own]
    if path.resolve() in within:
        mistakes.add("recipe", f"{_called(path)} is based on itself, through {_called(within[-1])}")
        return [own]
    return [*with_recipes(read_recipe(path, mistakes), mistakes, path.parent, (*within, path.resolve())), own]


def read_recipe(path: Path, mistakes: Mistakes) -> Layer:
    """Read one YAML file; its keys are those of the command line, nested or dotted."""
    try:
        tree = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, NotYaml) as error:
        mistakes.add("", f"recipe {path} cannot be read: {in_one_line(error)}")
        tree = {}
    if not isinstance(tree or {}, dict):
        mistakes.add("", f"recipe {path} must be a mapping of settings, such as `method: byol`")
        tree = {}
    return Layer(f"recipe {_called(path)}", flatten(tree or {}, mistakes))


def _find(recipe: str, folder: Path = Path()) -> Path:
    if recipe in names():
        return Path(plugins.find("recipes", recipe))
    path = folder / at_home(recipe)
    # Unlike `Path.is_file`, this takes names of any length.
    if os.path.isfile(path):
        return path
    close = get_close_matches(recipe, names(), n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else "`sslkit list recipes` names those that are shipped"
    raise UserError(f"{shortened(recipe)!r} is neither the name of a recipe nor a file; {hint}")


def _called(path: Path) -> str:
    return path.stem if path.stem in names() and plugins.find("recipes", path.stem) == path else str(path)
