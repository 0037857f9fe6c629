"""Commands that run and launch processes: wait for their files, and find the processes."""

import time
from pathlib import Path

from helpers.forked_command import Forked


def wait_for(file: Path, running: Forked, seconds: int = 200) -> None:
    end = time.monotonic() + seconds
    while not file.exists() or not file.stat().st_size:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def workers_of(parent: int) -> list[tuple[int, str]]:
    """(pid, rank) of the processes that `parent` launched."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and int((entry / "stat").read_text().rpartition(")")[2].split()[1]) == parent:
                words = dict(w.partition("=")[::2] for w in (entry / "environ").read_text().split("\0"))
                found += [(int(entry.name), words["RANK"])] if "RANK" in words else []
        except (OSError, ValueError):
            continue
    return found
