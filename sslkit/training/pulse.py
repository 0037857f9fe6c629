"""Signs of life of the processes that train together, which the launching process watches, and the life of that one.

Each process writes once a second, from a thread of its own: the time of its last step, and where it is now.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

FOLDER = "SSLKIT_PULSE"
"""Environment variable with the folder that signs of life are written to."""
EVERY = 0.5
"""Seconds between two signs of life."""
GRACE = 6.0
"""Seconds to save and end in, once the launching process is gone."""
LEFT_ALONE = 3
"""Exit status of a process that ends because the launching process, or another of the group, has died."""
WAITING = ("distributed_c10d.py", "autograd/graph.py")
"""Files of torch in which a process waits for the others."""

_state: dict[str, Any] = {"step_at": None, "resting": False, "shown": False}


def start(rank: int, launcher: int) -> None:
    """Show signs of life from now on, and end with the process `launcher`, which must be this one's parent."""
    _state["shown"] = True
    folder = Path(os.environ[FOLDER]) if FOLDER in os.environ else None
    threading.Thread(target=_live, args=(folder, rank, launcher), daemon=True).start()


def leave() -> None:
    """Show no more signs of life, as the work is done."""
    _state["shown"] = False


def end_of_steps() -> None:
    """Note that no more steps will follow."""
    _state["step_at"] = None


def beat() -> None:
    """Note that a step has been taken."""
    _state["step_at"] = time.monotonic()


@contextmanager
def resting() -> Iterator[None]:
    """Take no steps inside the block, however long it lasts, without being missed."""
    _state["resting"] = True
    try:
        yield
    finally:
        beat()
        _state["resting"] = False


def _live(folder: Path | None, rank: int, launcher: int) -> None:
    while os.getppid() == launcher:
        if folder:
            _show(folder, rank)
        time.sleep(EVERY)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(LEFT_ALONE)


def _show(folder: Path, rank: int) -> None:
    file, unfinished = folder / str(rank), folder / f".{rank}"
    # The folder may be gone already.
    with suppress(OSError):
        if not _state["shown"]:
            file.unlink(missing_ok=True)
            return
        main = sys._current_frames().get(threading.main_thread().ident or 0)
        life = {**_state, "alive_at": time.monotonic(), "pid": os.getpid(), **_place(main)}
        unfinished.write_text(json.dumps(life), encoding="utf-8")
        os.replace(unfinished, file)


def _place(frame: FrameType | None) -> dict[str, Any]:
    """Return the line of ours that a process is at, and if it waits there for the others."""
    files, at = [], "its end"
    while frame:
        files.append(frame.f_code.co_filename)
        if "sslkit" in files[-1] and at == "its end":
            at = f"{Path(files[-1]).name}:{frame.f_lineno}"
        frame = frame.f_back
    return {"at": at, "waits": any(file.endswith(WAITING) for file in files)}
