"""Run trials by hand: python -m faults --count 1000 --seed 0."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from faults.trials import one


@click.command()
@click.option("--count", default=20, show_default=True, help="Number of trials.")
@click.option("--seed", default=0, show_default=True, help="Seed of the first; each further one has the next number.")
def main(count: int, seed: int) -> None:
    """Run trials and print those that fail; exit with status 1 if any does."""
    failed = 0
    with TemporaryDirectory(prefix="sslkit-faults-") as folder:
        for number in range(seed, seed + count):
            try:
                one(Path(folder), number)
            except AssertionError as wrong:
                failed += 1
                click.echo(str(wrong))
    click.echo(f"{count - failed} of {count} trials held")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
