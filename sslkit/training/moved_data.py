"""Say to a run that exists where its images are now."""

from collections.abc import Iterable
from typing import Any

from sslkit.config.base import Choice
from sslkit.config.layers import Mistakes, parse_words
from sslkit.config.resolve import requested_choice
from sslkit.data import Source
from sslkit.errors import UserError
from sslkit.runs.run import Run

SECTIONS = ("data", "eval_data")


def with_moved_data(run: Run, words: Iterable[str]) -> Run:
    """Return the run with the places that `data=PATH` and `eval_data=PATH` name; that they hold the same images is
    checked against its checkpoint. Raises UserError for other words, and for places that do not exist.
    """
    mistakes = Mistakes()
    moved = {}
    for key, value in parse_words(words, mistakes).items():
        section = key.removesuffix(".name")
        if section not in SECTIONS or section == key:
            mistakes.add(key, "a run keeps its settings; give only the place of images that have moved: data=PATH")
        else:
            moved[section] = _moved(section, getattr(run.config, section), value, mistakes)
    mistakes.stop()
    for section in SECTIONS:
        _check(section, moved.get(section, getattr(run.config, section)), run)
    return Run(run.path, run.config.model_copy(update=moved), run.origins)


def _moved(section: str, before: Choice | None, place: Any, mistakes: Mistakes) -> Choice | None:
    """Return the data set at a place, with the settings of before as far as it has them."""
    kept = {} if before is None else before.options.model_dump(include=set(Source.Config.model_fields) - {"root"})
    choice = requested_choice(
        "data", {"data.name": str(place), **{f"data.{key}": value for key, value in kept.items()}}
    )
    if choice is None:
        mistakes.add(section, f"{place} does not exist, or holds no images")
    elif before is not None and choice.name == before.name:
        # The same kind of data keeps its own settings too.
        moved = choice.options.model_dump(include={"root"})
        return before.model_copy(update={"options": before.options.model_copy(update=moved)})
    return choice


def _check(section: str, choice: Choice | None, run: Run) -> None:
    wrong = next(iter(choice.options.check()), None) if choice else None
    if wrong:
        raise UserError(f"{section}: {wrong}; if the images have moved: sslkit resume {run.path} {section}=PATH")
