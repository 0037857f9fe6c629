"""The one exception whose message is meant for the user, and any other in one line."""


class UserError(Exception):
    """A mistake of the user's, told with its mend.

    The command line prints the message without a traceback and exits with status 2. Core and plugins raise it
    alike; every other exception is a bug and keeps its traceback.
    """


def in_one_line(error: BaseException) -> str:
    """What any exception says, cut off where it goes on and on; its type where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__
