"""Consoles, on which names of files cannot do more than be read: control characters are shown as escapes."""

import re
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""All but tabulators and ends of lines; with them, what turns the direction of text around."""


def printable(text: str) -> str:
    """Return text with control characters as escapes, such as \\x1b, which a terminal would obey."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PlainConsole(Console):
    """A console that prints text as it is: no markup of names, no emoji codes, no control characters."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, emoji=False, markup=False, **options)

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        # rich's own control codes come in segments of their own.
        return super()._render_buffer(s if s.control else Segment(printable(s.text), s.style) for s in buffer)
