"""Measure accuracy after equal training time: sslkit against lightly's own examples, and every method of sslkit.

    python benchmarks/learning.py CIFAR_FOLDER [--methods simclr,byol] [--networks ...] [--seconds 60,300] [...]
    python benchmarks/learning.py --page
    python benchmarks/learning.py --remark METHOD "why it falls short"

CIFAR_FOLDER contains the official binary files of CIFAR-10 (`.bin` or `.bin.xz`). Its first 10,000 training images are
the images of pre-training, kNN and the linear probe, its first 5,000 test images judge: PNG files in a folder that both
libraries read. --part contest: both libraries, the same network with the stem of ImageNet. --part methods: every
method of sslkit, with the backbone's own stem and the settings that it comes with, or with further key=value words.

Cells take turns, each in a process of its own, and are added to OUT when they end, so that a grid can be measured in
several sittings: done cells are kept, and a cell that fails is reported and can be measured later. The time of a cell
is that of training, start of the first epoch included, evaluations apart. --validation judges by further training
images in place of the test images, for choosing settings. --page writes docs/results.md and the chart from OUT alone.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import learning_page
import lightly_example
from learning_cells import OWN, Cell, floors_of, measure
from peer_contest import VALIDATION, take_turn, write_folder

from sslkit.machine import atomic

METHODS = ("simclr", "byol")
NETWORKS = ("shufflenetv2", "mobilenetv3_small", "resnet18")
SECONDS = (60.0, 150.0, 300.0, 900.0)
CONTESTANTS = ("sslkit", *lightly_example.OPTIMIZERS)
METHODS_SECONDS = (300.0,)
METHODS_NETWORKS = {"mae": ("vit_tiny",)}
"""Networks of a method in --part methods, unless named: MAE needs a vision transformer; others have ShuffleNetV2."""
PARTS = ("contest", "methods")

Report = dict[str, Any]


def main() -> None:
    parser = arguments()
    args = parser.parse_intermixed_args()
    if args.measure:
        print(json.dumps(measure(_cell(args.measure), args.folder, args.batch)))
        return
    args.out = args.out or _default_out(args)
    if args.page:
        learning_page.write(read(args.out), args.docs, args.out.with_suffix(".svg"))
        return
    if args.remark:
        _remark(args.out, *args.remark)
        return
    if args.cifar is None:
        parser.error("CIFAR_FOLDER is missing, the folder of CIFAR-10's binary files")
    if failed := _sit(args, parser.error):
        sys.exit(f"{len(failed)} cells failed and can be measured again: {'; '.join(failed)}")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path, nargs="?", metavar="CIFAR_FOLDER")
    parser.add_argument("words", nargs="*", metavar="key=value", help="further settings of sslkit's cells")
    parser.add_argument("--part", choices=PARTS, help="default: both")
    parser.add_argument("--methods", **_listed(str))
    parser.add_argument("--networks", **_listed(str))
    parser.add_argument("--seconds", **_listed(float))
    parser.add_argument("--seeds", default=[0, 1, 2], **_listed(int))
    parser.add_argument("--contestants", default=[*CONTESTANTS], **_listed(str))
    parser.add_argument("--stem", choices=("imagenet", "small", OWN), help="default: imagenet in the contest, else own")
    parser.add_argument("--validation", action="store_true", help="judge by training images that are not trained on")
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--test-images", type=int, default=5_000)
    parser.add_argument("--batch", type=int, default=lightly_example.BATCH, help="of lightly; its example: %(default)s")
    parser.add_argument("--work", type=Path, help="folder of the images; default: in sslkit's cache")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/learning-DEVICE[-validation].json")
    parser.add_argument("--list", action="store_true", help="print the cells that are still to be measured, with times")
    parser.add_argument("--page", action="store_true", help="write the page and the chart; measure nothing")
    parser.add_argument("--docs", type=Path, default=Path("docs/results.md"), help="the page")
    parser.add_argument("--remark", nargs=2, metavar=("METHOD", "TEXT"), help="add a sentence to the table of methods")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def _listed(kind: Callable[[str], Any]) -> dict[str, Any]:
    return {"type": lambda text: [kind(word) for word in text.split(",") if word], "metavar": "A,B,..."}


def _cell(text: str) -> Cell:
    found = json.loads(text)
    return Cell(**found | {"words": tuple(found["words"])})


def _default_out(args: argparse.Namespace) -> Path:
    from sslkit.machine.devices import pick_device

    device = "cpu" if args.page else pick_device("auto").type
    return Path(f"benchmarks/results/learning-{device}{f'-{VALIDATION}' * args.validation}.json")


# --- the grid ---


def grid(args: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells that are asked for, each after its floors; contestants take turns within a seed."""
    cells = [cell for part in PARTS if args.part in (None, part) for cell in _PARTS[part](args)]
    with_floors = [each for cell in cells for each in (*floors_of(cell), cell)]
    yield from {cell.key: cell for cell in with_floors}.values()


def _contest(args: argparse.Namespace) -> Iterator[Cell]:
    methods = [method for method in args.methods or METHODS if method in METHODS]
    for seed in args.seeds:
        for method in methods:
            for network in args.networks or NETWORKS:
                for seconds in args.seconds or SECONDS:
                    for contestant in args.contestants:
                        words = tuple(args.words) if contestant == "sslkit" else ()
                        yield Cell(contestant, method, network, args.stem or "imagenet", seconds, seed, words)


def _methods(args: argparse.Namespace) -> Iterator[Cell]:
    if "sslkit" not in args.contestants:
        return
    for seed in args.seeds:
        for method in args.methods or all_methods():
            for network in args.networks or METHODS_NETWORKS.get(method, NETWORKS[:1]):
                for seconds in args.seconds or METHODS_SECONDS:
                    yield Cell("sslkit", method, network, args.stem or OWN, seconds, seed, tuple(args.words))


_PARTS = {"contest": _contest, "methods": _methods}


def all_methods() -> list[str]:
    """Return the names of all registered methods that train."""
    from sslkit import plugins

    return [name for name in plugins.names("methods") if name != "random"]


# --- a sitting ---


def _sit(args: argparse.Namespace, refuse: Callable[[str], Any]) -> list[str]:
    """Measure the cells that are not done yet; return the keys of those that failed."""
    if wrong := [word for word in args.words if "=" not in word]:
        refuse(f"{wrong[0]!r} is no key=value")
    if wrong := sorted(set(args.contestants) - set(CONTESTANTS)):
        refuse(f"there is no contestant {wrong[0]!r}; there are {', '.join(CONTESTANTS)}")
    if wrong := sorted(set(args.methods or ()) - set(all_methods())):
        refuse(f"there is no method {wrong[0]!r}; there are {', '.join(all_methods())}")
    if args.part == "contest" and (wrong := sorted(set(args.methods or ()) - set(METHODS))):
        refuse(f"the contest has {' and '.join(METHODS)}, not {wrong[0]!r}")
    report, data = read(args.out), _data(args)
    if report["data"] not in ({}, data):
        refuse(f"{args.out} holds results of {report['data']}, not of {data}; give another --out")
    todo = [cell for cell in grid(args) if cell.key not in report["cells"]]
    hours = sum(cell.seconds for cell in todo) / 3600
    print(f"{len(todo)} cells to measure, {hours:.1f} h of training", file=sys.stderr)
    if args.list:
        print("\n".join(cell.key for cell in todo))
        return []
    folder = _images(args)
    return [cell.key for number, cell in enumerate(todo, 1) if not _turn(cell, folder, args, f"{number}/{len(todo)}")]


def _data(args: argparse.Namespace) -> dict[str, Any]:
    split = VALIDATION if args.validation else "test"
    return {
        "name": "CIFAR-10",
        "images": args.images,
        "judged": args.test_images,
        "split": split,
        "lightly_batch": args.batch,
    }


def _images(args: argparse.Namespace) -> Path:
    from sslkit.machine.cache import cache_dir

    data = _data(args)
    work = args.work or cache_dir() / "benchmarks"
    folder: Path = work / f"cifar10-{data['images']}-{data['judged']}-{data['split']}"
    if not folder.exists():
        write_folder(args.cifar, folder, data["images"], data["judged"], data["split"])
    return folder


def _turn(cell: Cell, folder: Path, args: argparse.Namespace, number: str) -> bool:
    """Measure a cell in a process of its own and add it to the results; return False if it failed."""
    print(f"[{number}] {cell.key}", file=sys.stderr, flush=True)
    busy = os.getloadavg()[0]
    words = ["--measure", json.dumps(asdict(cell)), "--folder", str(folder), "--batch", str(args.batch)]
    try:
        found = take_turn(__file__, words)
    except subprocess.CalledProcessError as error:
        print(f"failed, exit status {error.returncode}: {cell.key}", file=sys.stderr)
        return False
    print({k: v for k, v in found.items() if k not in ("settings", "command")}, file=sys.stderr, flush=True)
    add(args.out, cell, found | {"load_before": busy}, _data(args))
    return True


def add(out: Path, cell: Cell, found: dict[str, Any], data: dict[str, Any]) -> None:
    """Add a result to the file, with versions and hardware, which cells of one machine share."""
    from sslkit.machine.environment import environment, package_version

    report = read(out)
    here = environment()
    here["versions"] |= {"lightly": package_version("lightly")}
    started, _ = here.pop("started"), here.pop("command")
    if here not in report["environments"]:
        report["environments"].append(here)
    found |= {"ended": started, "environment": report["environments"].index(here)}
    report["data"] = data
    report["cells"][cell.key] = asdict(cell) | found
    atomic.write_json(out, report)


def read(path: Path) -> Report:
    empty: Report = {"data": {}, "environments": [], "cells": {}, "remarks": {}}
    return empty | (json.loads(path.read_text(encoding="utf-8")) if path.exists() else {})


def _remark(path: Path, method: str, text: str) -> None:
    report = read(path)
    report["remarks"][method] = text
    atomic.write_json(path, report)


if __name__ == "__main__":
    main()
