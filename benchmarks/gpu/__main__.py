"""Measure everything that only a card can show, in one call and a given time; benchmarks/gpu/README.md explains it.

    benchmarks/gpu/run-all [--data FOLDER] [--minutes 9] [--out benchmarks/results/gpu.json] [--only PART,...]

Parts run in order of value, each in a process of its own. Called again with the same --out, it does what is not done.
"""

import argparse
import os
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.own_process import in_own_process
from benchmarks.gpu.parts import BY_NAME, PARTS, Part, in_words, work
from benchmarks.gpu.results import Results, is_bad
from benchmarks.gpu.settings import Settings
from sslkit import plugins
from sslkit.errors import UserError
from sslkit.machine.cards import driver_version
from sslkit.machine.environment import environment, package_version

RESERVE = 15.0
"""Seconds of the whole time for importing, and for ending what is cut off."""
LEAST = 3.0
"""Seconds below which no process is started."""


def main() -> int:
    """Run the parts; return the exit status: 0, 1 if something is not as expected, 2 for a mistake of the user."""
    began, parser = time.monotonic(), arguments()
    args = parser.parse_args()
    whole = 60 * args.minutes
    # Lets the blocks that end processes and remove folders finish.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("SSLKIT_CACHE", f"{folder}/cache")
        try:
            settings, results = checked(args), Results(args.out)
            results.begin_call(about(args))
        except UserError as error:
            parser.error(str(error))
        for part in (BY_NAME[name] for name in args.only):
            run_part(part, settings, results, whole, began + whole - RESERVE)
    results.end_call(time.monotonic() - began)
    return summary(results)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run-all", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ",".join(BY_NAME)
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(BY_NAME), help=f"parts: {names}")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10's binary files, .bin or .bin.xz")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true", help="tiny sizes, whose figures mean nothing")
    parser.add_argument("--revision", help="git revision, where this is a copy without its .git")
    return parser


def checked(args: argparse.Namespace) -> Settings:
    """Return the settings. Raises UserError for what does not exist."""
    if unknown := [name for name in args.only if name not in BY_NAME]:
        raise UserError(f"--only: {unknown[0]!r} is not a part; {plugins.suggest(unknown[0], list(BY_NAME))}")
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("torch finds no card here; try the benchmark itself with --device cpu --toy")
    if args.data and not args.data.is_dir():
        raise UserError(f"--data: {args.data} is not a folder; give the one with data_batch_1.bin or .bin.xz")
    return Settings(args.device, args.toy, args.data.resolve() if args.data else None)


def about(args: argparse.Namespace) -> dict[str, Any]:
    """Return what is noted of this call: command, settings, machine, versions."""
    machine = environment()
    return {
        "command": shlex.join(["benchmarks/gpu/run-all", *sys.argv[1:]]),
        "settings": {"device": args.device, "toy": args.toy},
        "minutes": args.minutes,
        "environment": machine | {"git": args.revision or machine["git"]},
        "plugins_not_installed": missing_plugins(),
        "card": card(args.device) if args.device.startswith("cuda") else None,
    }


def card(device: str) -> dict[str, Any]:
    """Return what there is to know of a card beyond its name."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "driver": driver_version(),
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }


def missing_plugins() -> list[str]:
    """Return the packages in plugins/ whose components will not be found, because they are not installed."""
    folder = Path(__file__).parents[2] / "plugins"
    missing = [place.parent.name for place in sorted(folder.glob("*/pyproject.toml"))]
    missing = [name for name in missing if package_version(name) is None]
    if missing:
        print(f"not installed, and therefore not measured: {', '.join(missing)}", file=sys.stderr)
    return missing


def run_part(part: Part, settings: Settings, results: Results, whole: float, end: float) -> None:
    """Measure a part in a process of its own, and in a new one after each that died, until its time is up.

    whole: seconds for all parts together. end: time of `time.monotonic()` at which they must have ended.
    """
    names, without = part.items(settings), ("skipped", "no time was left for it")
    deadline = min(time.monotonic() + part.share * whole, end)
    while (pending := results.pending(part.name, names)) and deadline - time.monotonic() > LEAST:
        ended = in_own_process(work, part.name, replace(settings, deadline=deadline), results.path, until=deadline)
        results.reload()
        if ended is None:
            break
        lost = results.end_running(*ended)
        print(f"{part.name}: {', '.join(lost) or 'between two items'}: {': '.join(ended)}", file=sys.stderr)
        if results.pending(part.name, names) == pending:
            # It did not come as far as its first item, and nor would another one.
            without = ended
            break
    for name in results.pending(part.name, names):
        results.put(part.name, name, part.about, status=without[0], reason=without[1])


def summary(results: Results) -> int:
    """Print how many items of each part ended how, and those that need a look; return the exit status."""
    bad = 0
    for part in PARTS:
        items = results.items(part.name)
        counts = Counter(item["status"] for item in items.values())
        print(f"{part.name:14} {', '.join(f'{count} {status}' for status, count in counts.items()) or 'not asked for'}")
        for name, item in items.items():
            if is_bad(item):
                bad += 1
                print(f"  {name}: {in_words(item)}")
    print(f"written: {results.path}" + (f"; {bad} not as expected" if bad else ""))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
