"""`sslkit clean`: list what is not needed any more, with its size, and remove it."""

from collections.abc import Sequence
from pathlib import Path

import click

from sslkit.errors import UserError
from sslkit.machine.cache import cache_dir
from sslkit.machine.sizes import in_words
from sslkit.runs import clean


def clean_up(runs: Sequence[Path], keep: int, cache: bool, days: float, max_gb: float | None, dry_run: bool) -> None:
    """Print what is not needed of runs and, if `cache`, of the cache, and remove it unless `dry_run`.

    keep: newest checkpoints to keep of each run. days, max_gb: time without use, and gigabytes, that the cache allows.
    Raises UserError if nothing is named, for a path that holds no run, and for a run that a process holds.
    """
    if not runs and not cache:
        raise UserError("name runs to clean, as in: sslkit clean runs/*, or add --cache")
    found = [(run, list(clean.of_run(run, keep))) for run in runs]
    of_cache = clean.of_cache(cache_dir(), days, None if max_gb is None else 1e9 * max_gb) if cache else ()
    everything = [*found, (None, list(of_cache))]
    for run, surplus in everything:
        for item in surplus:
            click.echo(f"{in_words(item.size):>9}  {item.path}: {item.why}")
        if surplus and not dry_run:
            clean.remove(surplus, run)
    total = in_words(sum(item.size for _, surplus in everything for item in surplus))
    click.echo(f"{total} would be free; leave out --dry-run to remove this" if dry_run else f"{total} removed")
