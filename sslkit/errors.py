"""The one exception whose message is meant for the user, and one-line messages of any other."""

import re

OBJECT = re.compile(r" ?<\S+ object at 0x[0-9a-fA-F]+>")
"""An object as Python shows it, with an address that differs from run to run."""


class UserError(Exception):
    """A mistake of the user; the message states the remedy.

    The command line prints the message without a traceback and exits with status 2. Core and plugins both raise it;
    every other exception is a bug and keeps its traceback.
    """


def in_one_line(error: BaseException) -> str:
    """Return the message of any exception in one line of up to 200 characters, without addresses; else its type."""
    return OBJECT.sub("", " ".join(str(error).split()))[:200] or type(error).__name__


def shortened(text: str, most: int = 80) -> str:
    """Return text of at most so many characters, with an ellipsis for what is left out at its end."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
