"""The command `sslkit search`."""

from pathlib import Path

import click


def _numbers(ctx: click.Context, option: click.Parameter, text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is not a list of numbers, such as 1,2") from error


@click.command()
@click.argument("words", nargs=-1, metavar="[key=value]...")
@click.option("--transforms", required=True, metavar="A,B,...", help="Transformations to combine.")
@click.option(
    "--sizes", default="1,2", show_default=True, callback=_numbers, help="Numbers of transformations per combination."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder of the search.")
def search(words: tuple[str, ...], transforms: str, sizes: list[int], out: Path) -> None:
    """Train PIRL on each combination of transformations, and rank them: sslkit search [key=value]... --transforms A,B

    The settings are those of `sslkit run`. The same command resumes a search that was stopped.
    """

    from sslkit.machine.console import PlainConsole
    from sslkit_study.search import as_table, search_words

    outcomes = search_words(words, transforms.split(","), sizes, out)
    PlainConsole().print(as_table(outcomes))
    click.echo(f"results: {out}")
