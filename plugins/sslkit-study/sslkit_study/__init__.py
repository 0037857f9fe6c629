"""Train a method with many settings and rank the outcomes, as one resumable thing: `sslkit search`."""

from typing import Any

from sslkit.hookspecs import hookimpl


@hookimpl
def register_commands(cli: Any) -> None:
    from sslkit_study.commands import search

    cli.add_command(search)
