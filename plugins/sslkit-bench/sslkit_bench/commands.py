"""The command `sslkit bench`."""

import json
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("words", nargs=-1, metavar="[key=value]...")
@click.option("--peers", metavar="A,B,...", help="lightly, kornia, torchvision, or none; default: all.")
@click.option("--only", type=click.Choice(["training", "views"]), help="Measure only training or only views.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Timed rounds.")
@click.option("--warmup", type=click.IntRange(min=1), default=1, show_default=True, help="Warm-up rounds.")
@click.option("--seconds", type=float, default=600, show_default=True, help="Start no further round after this time.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, every sample included.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Folder for the JSON and a chart.")
def bench(
    words: tuple[str, ...], peers: str | None, only: Any, as_json: bool, out: Path | None, **protocol: Any
) -> None:
    """Time training, its upper bound, its stages and other libraries on this machine: sslkit bench [key=value]...

    The settings are those of `sslkit run`; nothing but the result is kept.
    """
    from sslkit.runs.display import Display, terminal
    from sslkit.training.preflight import resolve_new
    from sslkit_bench import contest, show
    from sslkit_bench.clock import Protocol
    from sslkit_bench.peers import chosen

    names = chosen(peers)
    result = contest.bench(resolve_new(words), Protocol(**protocol), names, only, Display(quiet=as_json).log)
    if as_json:
        click.echo(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        terminal().print(show.as_tables(result))
    for path in show.write(result, out) if out else ():
        click.echo(f"written: {path}", err=True)
