"""The one exception whose message is meant for the user."""


class UserError(Exception):
    """A mistake of the user's, told with its mend.

    The command line prints the message without a traceback and exits with status 2. Core and plugins raise it
    alike; every other exception is a bug and keeps its traceback.
    """
