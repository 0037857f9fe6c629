"""`sslkit search`: train PIRL on many combinations of transformations and rank them, resumably."""

from typing import Any

from sslkit.hookspecs import hookimpl


@hookimpl
def register_commands(cli: Any) -> None:
    from sslkit_study.commands import search

    cli.add_command(search)
