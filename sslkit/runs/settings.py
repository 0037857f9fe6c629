"""Settings that a run left on disk, in its config.yaml or in the header of its weights: complete, or a mistake."""

from typing import Any

from sslkit.config.layers import Layer, Mistakes
from sslkit.config.run import RunConfig

NEWER: dict[str, Any] = {"threads": "auto", "budget": None, "drop_last": True, "stall_timeout": 600.0}
"""Settings that came after version 0.1.0, with the values that describe runs without them."""


def complete(layer: Layer, file: str, mistakes: Mistakes) -> Layer:
    """Return the settings of a run as it had them; a missing one is a mistake, never filled with a default.

    file: the name of the file in messages. A recipe is a mistake too: every setting is in the file itself.
    """
    if "recipe" in layer.values:
        mistakes.add("", f"{file} names a recipe, but holds every setting itself; take that line out")
    values = {key: value for key, value in layer.values.items() if key != "recipe"}
    if missing := missing_settings(values):
        mistakes.add("", f"{file} is incomplete: {', '.join(missing)} {_are(missing)} missing; bring the file back")
    newer = {key: value for key, value in NEWER.items() if not _holds(values, key)}
    return Layer(layer.origin, newer | values)


def missing_settings(values: dict[str, Any]) -> list[str]:
    """Return the settings that every run has written and that are not among these, which are by dotted key."""
    return [key for key in RunConfig.model_fields if key not in NEWER and not _holds(values, key)]


def _holds(values: dict[str, Any], key: str) -> bool:
    return any(name == key or name.startswith(f"{key}.") for name in values)


def _are(words: list[str]) -> str:
    return "is" if len(words) == 1 else "are"
