"""Measure how well figures without labels foretell linear accuracy: rank correlation over short runs.

    python benchmarks/foretell.py CIFAR_FOLDER [--docs docs/evaluation.md] [--out benchmarks/results/foretell-cpu.json]

CIFAR_FOLDER contains the official binary files of CIFAR-10 (`.bin` or `.bin.xz`). Every finished run is added to the
file at once, and the same command goes on where it was stopped; --docs writes the table into a page that has a place
for it. It takes about 22 minutes on two cores that nobody else uses.

Protocol: each method of METHODS is trained with each of SETTINGS on ShuffleNetV2 1.0x with its original stem. Images
are TRAIN training images of CIFAR-10; a linear probe of the frozen features is trained on them with labels, and tested
on VALIDATION other training images, on which the evaluator `geometry` measures the figures too. The test images of
CIFAR-10 are not used. Spearman's rank correlation is between accuracy and the quality of a figure, which is higher
where the figure is better (`sslkit.runs.label_free`): 1 means that better figures always have the better accuracy.
Within a method it is the mean over methods of the correlation among their runs. The random network is measured too, but
is part of no correlation, and neither are runs that diverged.
"""

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import spearmanr

import sslkit
from sslkit.errors import UserError
from sslkit.machine import atomic
from sslkit.runs.label_free import LABEL_FREE, label_free

METHODS: dict[str, dict[str, Any]] = {
    "simclr": {"temperature": 0.5},
    "byol": {"momentum": 0.99, "hidden": 1024},
    "mocov2": {"queue": 4096},
    "barlowtwins": {"hidden": 1024, "dim": 1024},
    "vicreg": {"hidden": 1024, "dim": 1024},
    "dcl": {},
    "lejepa": {"hidden": 1024},
}
"""Settings of the methods: heads and queues that suit a few hundred steps on two cores."""
SETTINGS: dict[str, dict[str, Any]] = {
    "usual": {},
    "short": {"epochs": 1},
    "weak views": {"augment": {"name": "small", "crop": {"scale": [0.7, 1.0]}, "jitter": {"p": 0.2}}},
    "adamw": {"optimizer": {"name": "adamw", "lr": 1e-3, "lr_scaling": "none", "weight_decay": 1e-4, "clip_grad": 1.0}},
}
JUDGES = ["evaluators=[linear,geometry]", "evaluators.linear.solver=lbfgs", "evaluators.linear.l2=100"]
"""A penalty that keeps a probe of a thousand features from fitting its few thousand images by heart."""
RANDOM = "random"
"""Name of the measurement of the untrained network."""
EPOCHS, BATCH = 4, 64
TRAIN, VALIDATION = 8000, 2000
Z95 = 1.96
BEGIN, END = "<!-- foretell: begin -->", "<!-- foretell: end -->"
"""Lines of a page between which the table is written."""

Runs = dict[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path)
    parser.add_argument("--methods", default=list(METHODS), type=lambda words: words.split(","), help=",".join(METHODS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/foretell-cpu.json"))
    parser.add_argument("--docs", type=Path, help="page into which the table is written")
    args = parser.parse_args()
    report = measure(args.cifar, args.methods, args.out)
    print(as_markdown(report))
    if args.docs:
        write_table(args.docs, as_markdown(report))


def measure(cifar: Path, methods: list[str], out: Path) -> dict[str, Any]:
    """Measure the runs that are missing in the file, add each to it, and return the whole report.

    Raises SystemExit if the file was measured with another protocol.
    """
    from sslkit.machine.environment import environment

    sizes = {"epochs": EPOCHS, "batch_size": BATCH, "train": TRAIN, "validation": VALIDATION}
    about = {"protocol": _protocol(), "sizes": sizes, "methods": METHODS, "settings": SETTINGS}
    report: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {**about, "environments": {}, "runs": {}}
    if {key: report.get(key) for key in about} != about:
        raise SystemExit(f"{out} was measured with another protocol; move it, or choose another --out")
    here = environment()
    missing = [(name, settings) for name, settings in jobs(methods) if name not in report["runs"]]
    with tempfile.TemporaryDirectory() as folder:
        if missing:
            write_folder(cifar, Path(folder) / "images")
        for number, (name, settings) in enumerate(missing, 1):
            report["runs"][name] = found = run(settings, Path(folder)) | {"environment": here["started"]}
            report["environments"][here["started"]] = here
            report["correlations"] = correlations(report["runs"])
            out.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(out, report)
            result = found["failed"] if "failed" in found else f"{found['linear']:.3f}"
            print(f"{number}/{len(missing)} {name}: {result}, {found['seconds']:.0f} s", flush=True)
    return report


def _protocol() -> str:
    return " ".join((__doc__ or "").partition("Protocol: ")[2].split())


def jobs(methods: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (name, settings that differ from the common ones) of the random network and of every run."""
    yield RANDOM, {"method": {"name": RANDOM}, "epochs": 1}
    for method in methods:
        for name, settings in SETTINGS.items():
            yield f"{method}, {name}", {"method": {"name": method, **METHODS[method]}, **settings}


def write_folder(cifar: Path, folder: Path) -> None:
    """Write training images of CIFAR-10 as PNG files in class sub-folders of train/ and val/."""
    from sslkit.data import CIFAR10

    images = CIFAR10(CIFAR10.Config(root=cifar)).images("pretrain")
    for i in range(TRAIN + VALIDATION):
        split = "train" if i < TRAIN else "val"
        path = folder / split / images.classes[images.labels[i]] / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(images.load(i))).save(path)


def run(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train and judge one run; return its linear accuracy, its figures without labels, and seconds for both.

    A run that diverges has its error message as `failed` in their place.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        try:
            found = judge(sslkit.run(**(common(folder, out) | settings)).path)
        except UserError as error:
            found = {"failed": str(error)}
    return {"settings": settings, "seconds": round(time.monotonic() - began, 1), **found}


def common(folder: Path, out: str) -> dict[str, Any]:
    """Return the settings that all runs share, as keywords of `sslkit.run`."""
    return {
        "backbone": {"name": "shufflenetv2", "stem": "imagenet"},
        "data": {"name": "folder", "root": str(folder / "images"), "image_size": 32, "cache": str(folder / "cache")},
        "augment": {"name": "small"},
        "optimizer": {"name": "sgd", "lr": 0.06, "lr_scaling": "none", "weight_decay": 5e-4, "clip_grad": 1.0},
        "evaluators": [],
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "device": "cpu",
        "seed": 0,
        "compile": False,
        "checkpoint_every": 0,
        "report": False,
        "out": f"{out}/run",
        "quiet": True,
    }


def judge(path: Path) -> dict[str, Any]:
    """Return the figures of a finished run, measured without floors, which cost more than they would tell here."""
    from sslkit.evaluation.targets import open_target
    from sslkit.runs.display import Display

    target = open_target(path, JUDGES, Display(quiet=True))
    linear, geometry = target.records(target.evaluators, floors=None)
    protocols = {record["evaluator"]: record["protocol"] for record in (linear, geometry)}
    return {"linear": linear["top1"], "figures": label_free(geometry), "protocols": protocols}


def correlations(runs: Runs) -> dict[str, dict[str, Any]]:
    """Return, for each figure, its correlation with linear accuracy over all runs and within methods.

    None where there are too few runs: three over all, three of a method; also where all values are equal.
    """
    return {figure: _correlation(figure, _judged(runs)) for figure in LABEL_FREE}


def _judged(runs: Runs) -> Runs:
    """Return the runs that were trained to their end."""
    return {name: found for name, found in runs.items() if name != RANDOM and "failed" not in found}


def _correlation(figure: str, runs: Runs) -> dict[str, Any]:
    by_method: dict[str, Runs] = {}
    for name, found in runs.items():
        by_method.setdefault(found["settings"]["method"]["name"], {})[name] = found
    own = {method: rho for method, some in by_method.items() if (rho := spearman(figure, some)) is not None}
    rho = spearman(figure, runs)
    return {
        "n": len(runs),
        "spearman": rho,
        "interval": None if rho is None else interval(rho, len(runs)),
        "within": own,
        "within_mean": statistics.mean(own.values()) if own else None,
    }


def spearman(figure: str, runs: Runs) -> float | None:
    """Return Spearman's rank correlation of linear accuracy with the quality of a figure; None if undefined."""
    quality = [LABEL_FREE[figure].quality(found["figures"][figure]) for found in runs.values()]
    accuracy = [found["linear"] for found in runs.values()]
    if len(quality) < 3 or len(set(quality)) == 1 or len(set(accuracy)) == 1:
        return None
    return float(spearmanr(quality, accuracy).statistic)


def interval(rho: float, n: int) -> tuple[float, float] | None:
    """Return the 95 % interval of a rank correlation over n runs (Bonett and Wright 2000); None below four runs."""
    if n < 4:
        return None
    reach = Z95 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    centre = math.atanh(max(-1 + 1e-9, min(1 - 1e-9, rho)))
    return math.tanh(centre - reach), math.tanh(centre + reach)


def as_markdown(report: dict[str, Any]) -> str:
    """Return the correlations as a table, with the range of accuracies that they order."""
    found, runs = report["correlations"], report["runs"]
    accuracies = [one["linear"] for one in _judged(runs).values()]
    if not accuracies:
        return "No run was measured.\n"
    untrained = f"; the random network: {100 * runs[RANDOM]['linear']:.1f} %" if RANDOM in runs else ""
    failed = sum("failed" in one for one in runs.values())
    untrained += f"; {failed} more runs diverged" if failed else ""
    size = f"{len(accuracies)} runs, linear accuracy {100 * min(accuracies):.1f} to {100 * max(accuracies):.1f} %"
    lines = [
        f"{size}{untrained}.",
        "",
        "| figure | better | rank correlation with accuracy (95 % interval) | mean within a method (lowest, highest) |",
        "|---|---|---|---|",
        *(_line(figure, found[figure]) for figure in LABEL_FREE),
    ]
    return "\n".join(lines) + "\n"


def _line(figure: str, found: dict[str, Any]) -> str:
    about, own = LABEL_FREE[figure], list(found["within"].values())
    ends = found["interval"]
    over_all = "" if found["spearman"] is None else f"{found['spearman']:.2f}"
    over_all += f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
    within = f"{found['within_mean']:.2f} ({min(own):.2f}, {max(own):.2f}); methods: {len(own)}" if own else ""
    return f"| {about.title} (`{figure}`) | {about.better} | {over_all} | {within} |"


def write_table(page: Path, table: str) -> None:
    """Replace the text between the marks of a page. Raises SystemExit if it has none."""
    text = page.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{page} has no place for the table: lines {BEGIN} and {END}")
    before, after = text.partition(BEGIN)[0], text.partition(END)[2]
    atomic.write_text(page, f"{before}{BEGIN}\n{table}{END}{after}")


if __name__ == "__main__":
    main()
