"""Settings that a run left on disk, in its config.yaml or in the header of its weights: complete, or a mistake."""

from typing import Any

from sslkit.config.layers import Layer, Mistakes, leaves
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
    # All checkpoints of `checkpoint_every` were kept then.
    newer = NEWER | {"keep_checkpoints": {"every": values.get("checkpoint_every", 0)}}
    absent = {key: value for key, value in newer.items() if not _holds(values, key)}
    return Layer(layer.origin, {k: v for key, value in absent.items() for k, v in leaves(key, value).items()} | values)


def missing_settings(values: dict[str, Any]) -> list[str]:
    """Return the settings that every run has written and that are not among these, which are by dotted key."""
    newer = {*NEWER, "keep_checkpoints"}
    return [key for key in RunConfig.model_fields if key not in newer and not _holds(values, key)]


def _holds(values: dict[str, Any], key: str) -> bool:
    return any(name == key or name.startswith(f"{key}.") for name in values)


def _are(words: list[str]) -> str:
    return "is" if len(words) == 1 else "are"
