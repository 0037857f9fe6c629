"""`sslkit bench`: measure the training speed of a run on this machine, its upper bound, and that of other libraries.

`clock.py` times contestants in turns and summarises the times. `contestants.py` defines sslkit's own contestants (the
step, its bound, its stages, its views); `peers.py` selects those of other libraries: `lightly_peer.py` trains,
`views_peers.py` makes views, both with the data loader of `workers.py`. `contest.py` runs the measurement; `show.py`
prints, draws and writes the result.
"""

from typing import Any

from sslkit.hookspecs import hookimpl


@hookimpl
def register_commands(cli: Any) -> None:
    from sslkit_bench.commands import bench

    cli.add_command(bench)
