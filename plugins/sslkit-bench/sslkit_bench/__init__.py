"""`sslkit bench`: how fast a run trains on this machine, what bounds it, and how fast others do the same.

`clock.py` lets contestants take turns and sums up what they took, `contestants.py` holds sslkit's own (the step, its
bound, its stages, its views), `peers.py` chooses the others: `lightly_peer.py` trains, `views_peers.py` makes views,
both fed by `workers.py`. `contest.py` runs it all, `show.py` prints, draws and writes the result.
"""

from typing import Any

from sslkit.hookspecs import hookimpl


@hookimpl
def register_commands(cli: Any) -> None:
    from sslkit_bench.commands import bench

    cli.add_command(bench)
