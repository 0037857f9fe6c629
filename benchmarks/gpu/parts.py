"""The parts of the benchmark, in order of value, and the process that measures the items of one of them."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import agreement, cifar10, memory, processes, speed
from benchmarks.gpu.results import Results
from benchmarks.gpu.settings import Result, Settings, Skipped
from sslkit.errors import in_one_line


@dataclass(frozen=True)
class Part:
    """Items that belong together, measured one after another in one process."""

    name: str
    about: str
    share: float
    """Largest share of the whole time that it may take; what one part leaves, the later ones can use."""
    items: Callable[[Settings], list[str]]
    measure: Callable[[str, Settings], Result]


PARTS = (
    Part("agreement", "first steps of every method, fp32, device and CPU", 0.2, agreement.methods,
         agreement.against_cpu),
    Part("augmentations", "views of every augmentation, device and CPU", 0.04, agreement.augmentations,
         agreement.views_against_cpu),
    Part("precision", "first steps of every method, bf16 and fp16 against fp32", 0.1, agreement.methods_in_half,
         agreement.half_precision),
    Part("processes", "a step of two processes against one: gradients, SyncBN", 0.1, processes.items,
         processes.two_processes),
    Part("memory", "largest batch on a card of 8 GB", 0.1, memory.items, memory.largest_batch),
    Part("executions", "compiled, CUDA graphs, memory formats against the plain step", 0.12, agreement.executions,
         agreement.executed),
    Part("throughput", "steps against their bound, views against kornia", 0.12, speed.items, speed.measured),
    Part("cifar10", "SimCLR on all of CIFAR-10, kNN and linear probe against floors", 1.0, cifar10.items,
         cifar10.trained),
)  # fmt: skip
BY_NAME = {part.name: part for part in PARTS}


def work(name: str, settings: Settings, path: Path) -> None:
    """Measure the items of a part that are still to be measured, until the time is up; write each to the file.

    Ends with SystemExit if the card no longer answers this process.
    """
    part, results, longest, parent = BY_NAME[name], Results(path), 0.0, os.getppid()
    for number, item in enumerate(results.pending(name, part.items(settings))):
        if settings.seconds_left < longest or os.getppid() != parent:
            # A process that outlives the call that started it must not write beside the next call.
            return
        began = time.monotonic()
        results.put(name, item, part.about, status="running", process=os.getpid())
        entry = attempted(part, item, settings)
        # The first one also loads and compiles what the others use.
        longest = max(longest, time.monotonic() - began) if number else 0.0
        results.put(name, item, part.about, **entry, seconds=round(time.monotonic() - began, 2))
        print(f"{name}: {item}: {in_words(entry)}, {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)
        if "CUDA error" in entry.get("reason", ""):
            raise SystemExit("after such an error nothing works on the card in this process")


def attempted(part: Part, item: str, settings: Settings) -> Result:
    """Return the entry of an item: its figures, or why there are none."""
    try:
        return {"status": "done"} | part.measure(item, settings)
    except Skipped as skipped:
        return {"status": "skipped", "reason": str(skipped)}
    except Exception as error:
        where = traceback.format_exception(error)
        return {"status": "failed", "reason": in_one_line(error), "traceback": "".join(where)[-4000:]}


def in_words(entry: Result) -> str:
    """Return an entry's outcome: done, done: NOT AS EXPECTED, failed (reason)."""
    reason = f" ({entry['reason']})" if "reason" in entry else ""
    return entry["status"] + reason + (": NOT AS EXPECTED" if entry.get("passed") is False else "")
