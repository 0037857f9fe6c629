"""Read settings from YAML: one document of mappings, lists and scalars, of limited size; scalars stay text.

PyYAML splits text into events, and nothing is constructed from its tags: dates, objects and sets do not exist here.
"""

from collections.abc import Iterator
from typing import Any

import yaml

MOST_CHARACTERS, MOST_VALUES, MOST_LEVELS = 200_000, 10_000, 20
"""Far above what settings need, and small enough to be read in a moment, aliases expanded."""
TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")} | {"!"}
TEXT_TAGS = ("!", "tag:yaml.org,2002:str")


class Plain(str):
    """Text of a scalar without quotes, whose type the field that it is for decides."""


class NotYaml(ValueError):
    """Text that is not YAML, or not of the kind that settings are written in; the message is one line."""


def read_yaml(text: str) -> Any:
    """Return the document in `text`: mappings, lists, None for nothing, and scalars as `Plain` (as str in quotes).

    Raises NotYaml.
    """
    if len(text) > MOST_CHARACTERS:
        raise NotYaml(f"has more than {MOST_CHARACTERS:,} characters")
    try:
        return _Document(yaml.parse(text, Loader=yaml.SafeLoader)).read()
    except NotYaml:
        raise
    # Escapes and directives with impossible numbers raise errors of Python's own.
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise NotYaml(" ".join(str(error).split())) from None


class _Document:
    """Builds the only document of a stream of events."""

    def __init__(self, events: Iterator[Any]) -> None:
        self._events = events
        self._anchored: dict[str, tuple[Any, int]] = {}
        self._values = 0

    def read(self) -> Any:
        next(self._events)
        if isinstance(next(self._events), yaml.StreamEndEvent):
            return None
        value = self._value(next(self._events), 0)
        next(self._events)
        if not isinstance(next(self._events), yaml.StreamEndEvent):
            raise NotYaml("holds several documents")
        return value

    def _value(self, event: Any, level: int) -> Any:
        before = self._values
        self._count(1)
        if level > MOST_LEVELS:
            raise NotYaml(f"is nested more than {MOST_LEVELS} levels deep")
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event.anchor)
        value = self._built(event, level)
        if event.anchor:
            self._anchored[event.anchor] = value, self._values - before
        return value

    def _built(self, event: Any, level: int) -> Any:
        if event.tag is not None and event.tag not in TAGS:
            raise NotYaml(f"has a tag, {event.tag}, that means nothing in settings")
        if isinstance(event, yaml.ScalarEvent):
            return Plain(event.value) if event.style is None and event.tag not in TEXT_TAGS else event.value
        return self._list(level) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(level)

    def _list(self, level: int) -> list[Any]:
        values: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            values.append(self._value(event, level + 1))
        return values

    def _mapping(self, level: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._value(event, level + 1)
            if not isinstance(key, str):
                raise NotYaml("has a list or a mapping as a key")
            if key in values:
                raise NotYaml(f"has the key {str(key)!r} twice")
            values[str(key)] = self._value(next(self._events), level + 1)
        return values

    def _alias(self, name: Any) -> Any:
        if name not in self._anchored:
            raise NotYaml(f"has an alias, *{name}, of what contains it")
        value, size = self._anchored[name]
        self._count(size)
        return value

    def _count(self, values: int) -> None:
        self._values += values
        if self._values > MOST_VALUES:
            raise NotYaml(f"has more than {MOST_VALUES:,} values")
