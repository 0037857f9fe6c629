"""Recipes: the settings of a run in YAML, by name where the file lies beside this one, else by path.

A recipe states only what differs from the defaults, or from the recipe that its key `recipe` names. The first
line of one that is shipped is a comment: what it is and where it was published.
"""

from difflib import get_close_matches
from pathlib import Path

import yaml

from sslkit.config.layers import Layer, Mistakes, flatten
from sslkit.errors import UserError

FOLDER = Path(__file__).resolve().parent


def names() -> list[str]:
    """The recipes that are shipped."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def summary(name: str) -> str:
    """What the first line of a shipped recipe says."""
    return text(name).partition("\n")[0].removeprefix("#").strip()


def text(name: str) -> str:
    """A recipe as it is written; raises UserError if there is none."""
    return _find(name).read_text(encoding="utf-8")


def with_recipes(layer: Layer, mistakes: Mistakes, folder: Path = Path(), within: tuple[Path, ...] = ()) -> list[Layer]:
    """The layer, and before it those of the recipe that its key `recipe` names, weakest first.

    A relative path is looked for in `folder`; `within` are the recipes that led here.
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
    """One YAML file: the same keys as the command line, nested or dotted."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        mistakes.add("", f"recipe {path} cannot be read: {error}")
        tree = {}
    except yaml.YAMLError as error:
        mistakes.add("", f"recipe {path} is not YAML: {' '.join(str(error).split())}")
        tree = {}
    if not isinstance(tree or {}, dict):
        mistakes.add("", f"recipe {path} must be a mapping of settings, such as `method: byol`")
        tree = {}
    return Layer(f"recipe {_called(path)}", flatten(tree or {}, mistakes))


def _find(recipe: str, folder: Path = Path()) -> Path:
    if recipe in names():
        return FOLDER / f"{recipe}.yaml"
    path = folder / Path(recipe).expanduser()
    if path.is_file():
        return path
    close = get_close_matches(recipe, names(), n=1, cutoff=0.6)
    hint = f"did you mean {close[0]!r}?" if close else "`sslkit list recipes` names those that are shipped"
    raise UserError(f"{recipe!r} is neither the name of a recipe nor a file; {hint}")


def _called(path: Path) -> str:
    return path.stem if path.parent == FOLDER else str(path)
