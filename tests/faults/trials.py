"""One trial: a run that something happens to, what is done then, and what must hold at its end."""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import psutil
from helpers.forked_command import Forked
from safetensors.numpy import load_file

TINY = ["data=shapes", "data.n_train=16", "data.n_test=8", "data.image_size=32", "batch_size=8", "device=cpu"]
QUICK = [*TINY, "method=simclr", "backbone=squeezenet", "tune=off", "kernels=plain", "precision=fp32", "compile=false"]
RUN = ["run", *QUICK, "threads=1", "epochs=5", "checkpoint_every=1", "log_every=1", "evaluators=[]", "report=false"]
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
LONGEST = 1.2
"""Seconds within which a fault comes: about as long as the run takes."""
ALLOWED = {0, 2, *(128 + s for s in SIGNALS), *(-s for s in SIGNALS)}


@dataclass
class Trial:
    """A run in a folder of its own, with its random draws."""

    folder: Path
    seed: int
    done: list[str] = field(default_factory=list)
    """What has happened so far, for the report of a failure."""

    def __post_init__(self) -> None:
        self.draw = random.Random(self.seed)
        self.folder.mkdir(parents=True)

    @property
    def run(self) -> Path:
        return self.folder / "run"

    def sslkit(self, *words: str, fault: Callable[[Forked], None] | None = None, before: Callable | None = None) -> int:
        """Run a command to its end, with a fault at a random moment; return its status."""
        running = Forked(self.folder, *words, env=environment(self.folder.parent), before=before)
        if fault:
            fault(running)
        out = "".join(running.communicate(timeout=120))
        status = running.returncode or 0
        self.done.append(f"{words[0]} -> {status}")
        self.expect(status in ALLOWED, f"status {status}")
        self.expect("Traceback" not in out, f"a traceback: {out[-1500:]}")
        return status

    def expect(self, holds: bool, otherwise: str) -> None:
        assert holds, f"seed {self.seed}: {otherwise}; {', '.join(self.done)}"

    def kill(self, running: Forked) -> None:
        """Send a random signal at a random moment, if the command has not ended by then."""
        signum = self.draw.choice(SIGNALS)
        time.sleep(self.draw.uniform(0, LONGEST))
        self.done.append(signum.name)
        if running.poll() is None:
            running.send_signal(signum)


def environment(cache: Path) -> dict[str, str]:
    return {"OMP_NUM_THREADS": "1", "SSLKIT_CACHE": str(cache / "cache")}


def killed_and_resumed(trial: Trial) -> None:
    """A run that is killed up to three times ends with the weights of one that was not."""
    status = trial.sslkit(*RUN, "out=run", fault=trial.kill)
    for _ in range(trial.draw.randint(0, 2)):
        if status not in (0, 2):
            status = trial.sslkit(*_next(trial), fault=trial.kill)
    if status != 0:
        status = trial.sslkit(*_next(trial))
    trial.expect(status == 0, "the run cannot be continued")
    _expect_reference(trial)


def damaged(trial: Trial) -> None:
    """Damage to a file of a run costs a sentence, and no command a traceback."""
    shutil.copytree(_reference(trial.folder.parent), trial.run)
    file = trial.draw.choice([p for p in sorted(trial.run.rglob("*")) if p.is_file()])
    how = trial.draw.choice([_emptied, _cut, _flipped, _removed, _replaced])
    how(trial.draw, file)
    trial.done.append(f"{file.relative_to(trial.run)} {how.__name__[1:]}")
    commands = [["resume", "run"], ["compare", "run"], ["report", "run"], ["evaluate", "run", "evaluators=[cost]"]]
    trial.sslkit(*trial.draw.choice(commands))


def unseen(trial: Trial) -> None:
    """A run whose output nobody can take is the same run."""
    before = trial.draw.choice([_full, _closed, _broken])
    trial.done.append(before.__name__[1:])
    trial.expect(trial.sslkit(*RUN, "out=run", before=before) == 0, "output that cannot be shown ended the run")
    _expect_reference(trial)


KINDS: list[Callable[[Trial], None]] = [killed_and_resumed, killed_and_resumed, damaged, unseen]


def one(folder: Path, seed: int) -> None:
    """Carry out the trial of a seed. Raises AssertionError that says what was lost, hidden or left behind."""
    trial = Trial(folder / f"trial-{seed}", seed)
    trial.draw.choice(KINDS)(trial)
    left = [*trial.folder.rglob(".*.tmp"), *_orphans(trial.folder)]
    trial.expect(not left, f"left behind: {left}")
    shutil.rmtree(trial.folder)


def _next(trial: Trial) -> list[str]:
    """Return what the messages advise after a stop: to resume, or to start again where there is nothing yet."""
    return ["resume", "run"] if (trial.run / "config.yaml").exists() else [*RUN, "out=run"]


@cache
def _reference(folder: Path) -> Path:
    """Return the run that nothing has happened to."""
    trial = Trial(folder / "reference", 0)
    trial.expect(trial.sslkit(*RUN, "out=run") == 0, "the reference failed")
    return trial.run


def _expect_reference(trial: Trial) -> None:
    expected, found = (load_file(p / "backbone.safetensors") for p in (_reference(trial.folder.parent), trial.run))
    same = expected.keys() == found.keys() and all((found[k] == v).all() for k, v in expected.items())
    trial.expect(same, "other weights than those of a run that nothing has happened to")


def _orphans(folder: Path) -> Iterator[str]:
    for process in psutil.process_iter(["pid", "cwd", "status"]):
        if process.info["cwd"] == str(folder) and process.info["status"] != psutil.STATUS_ZOMBIE:
            yield f"process {process.info['pid']}"


def _emptied(draw: random.Random, file: Path) -> None:
    file.write_bytes(b"")


def _cut(draw: random.Random, file: Path) -> None:
    file.write_bytes(file.read_bytes()[: draw.randrange(file.stat().st_size)])


def _flipped(draw: random.Random, file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(bytes(content))


def _removed(draw: random.Random, file: Path) -> None:
    file.unlink()


def _replaced(draw: random.Random, file: Path) -> None:
    file.write_bytes(draw.randbytes(draw.randrange(200)))


def _full() -> None:
    for descriptor in (1, 2):
        os.dup2(os.open("/dev/full", os.O_WRONLY), descriptor)


def _closed() -> None:
    os.close(1)
    os.close(2)


def _broken() -> None:
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, 1)
    os.dup2(write, 2)
