"""The one exception whose message is meant for the user, and one-line messages of any other."""


class UserError(Exception):
    """A mistake of the user; the message states the remedy.

    The command line prints the message without a traceback and exits with status 2. Core and plugins both raise it;
    every other exception is a bug and keeps its traceback.
    """


def in_one_line(error: BaseException) -> str:
    """Return the message of any exception in one line, truncated to 200 characters; its type if there is none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def shortened(text: str, most: int = 80) -> str:
    """Return text of at most so many characters, with an ellipsis for what is left out at its end."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
