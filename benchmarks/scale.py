"""Measure how costs grow with batch size, image size, number of images, classes and processes; for packing and kNN too.

    python benchmarks/scale.py [--only batch,size,...] [--device auto] [--small] [--out benchmarks/results]

Protocol: images of noise. A training step is SimCLR's on ShuffleNetV2 1.0x with its original stem, including data and
views, built as in a run, in the fastest uncompiled execution for each size: WARM steps, then the median of REPEATS.
Data sets larger than REAL images are simulated: the rows of a larger index refer to the same few images, so that order,
indices and labels cost the same as in a real data set of that size, but not the disk. Memory is the peak increase of
the process's memory, without mapped files, sampled every 5 ms. Every section runs in a process of its own. It takes
about 8 minutes on two cores; --small is for tests.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sslkit.machine import atomic

WARM, REPEATS = 1, 3
REAL, FEW = 2048, 96
"""Number of images that are really stored, in full and in small measurements."""
BATCH, SIDE = 256, 32
SIZES: dict[str, dict[str, list[int]]] = {
    "full": {
        "batch": [32, 64, 128, 256, 512, 1024],
        "size": [32, 64, 96, 128],
        "classes": [10, 100, 1000, 10_000],
        "data": [10**3, 10**4, 10**5, 10**6, 10**7],
        "processes": [1, 2],
        "packing": [10**3, 10**4, 10**5],
        "knn": [10**4, 10**5, 10**6],
    },
    "small": {
        "batch": [8, 16],
        "size": [32, 40],
        "classes": [3, 5],
        "data": [10**3, 10**4],
        "processes": [1],
        "packing": [30, 60],
        "knn": [500, 1000],
    },
}
KNN_WIDTH, KNN_QUERIES = 512, 512
LOADER_IMAGES = 200_000
"""Maximum number of images over which a loader alone is timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda words: words.split(","), default=list(SECTIONS), help=", ".join(SECTIONS))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for a test")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder")
    parser.add_argument("--part", choices=SECTIONS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        print(json.dumps(list(measure(args.part, args.device, args.small))))
        return
    if unknown := set(args.only) - set(SECTIONS):
        parser.error(f"there is no section {min(unknown)!r}; there are {', '.join(SECTIONS)}")
    from sslkit.machine.devices import pick_device

    path = args.out / f"scale-{pick_device(args.device).type}.json"
    report = compose(args.only, args.device, args.small, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(path, json.dumps(report, indent=1) + "\n")
    draw(report["parts"], path.with_suffix(".svg"))


def compose(sections: list[str], device: str, small: bool, path: Path) -> dict[str, Any]:
    """Measure the sections, and return the report, which keeps the other sections of an earlier report at `path`."""
    from sslkit.machine.environment import environment

    before = json.loads(path.read_text()) if path.exists() else {"parts": {}, "environment": {}}
    words = [sys.executable, __file__, "--device", device, *["--small"] * small]
    about = {k: v for k, v in environment().items() if k != "command"}
    for part in sections:
        done = subprocess.run([*words, "--part", part], check=True, stdout=subprocess.PIPE, text=True)
        before["parts"][part] = json.loads(done.stdout.splitlines()[-1])
        before["environment"][part] = about
    protocol = f"{__doc__.partition('Protocol: ')[2]} WARM={WARM}, REPEATS={REPEATS}, REAL={REAL}, seed 0."
    return {"protocol": " ".join(protocol.split()), **before}


@dataclass(frozen=True)
class Setting:
    """Settings shared by all sizes of a section."""

    folder: Path
    device: str
    batch: int = BATCH
    real: int = REAL
    tune: str = "always"


def measure(part: str, device: str, small: bool) -> Iterator[dict[str, Any]]:
    """Measure one section; yield one object per size."""
    with tempfile.TemporaryDirectory() as folder:
        setting = Setting(Path(folder), device, 16, FEW, "off") if small else Setting(Path(folder), device)
        for n in SIZES["small" if small else "full"][part]:
            found = SECTIONS[part](n, setting)
            print(part, n, found, file=sys.stderr)
            yield {"n": n} | found


# --- a training step ---


def by_batch(n: int, at: Setting) -> dict[str, float]:
    return {"images_per_second": speed(training(replace(at, batch=n)))}


def by_size(n: int, at: Setting) -> dict[str, float]:
    return {"images_per_second": speed(training(replace(at, batch=at.batch // 2), side=n))}


def by_classes(n: int, at: Setting) -> dict[str, float]:
    methods = ("simclr", "supervised")
    return {m: speed(training(at, method=m, classes=n)) for m in methods}


def by_data(n: int, at: Setting) -> dict[str, float]:
    """Measure a step, and each loader alone, with an index of n rows."""
    from sslkit.data import ffcv_missing, make_loader
    from sslkit.data.loaders.base import Kind

    setup = training(at)
    kinds: list[Kind] = ["torch"] if ffcv_missing() else ["torch", "ffcv"]
    found: dict[str, float] = {}
    for kind in kinds:
        # Warm up, so that memory of code that is loaded or compiled once does not count.
        next(make_loader(setup.stores.pretrain, batch_size=at.batch, seed=0, device=setup.device, kind=kind).epoch(0))
        with PeakMemory() as memory:
            store = setup.stores.pretrain.subset(np.arange(n) % len(setup.stores.pretrain))
            began = time.perf_counter()
            loader = make_loader(store, batch_size=at.batch, seed=0, device=setup.device, kind=kind)
            found |= {f"{kind}_{k}": v for k, v in _streamed(loader, began).items()}
        found[f"{kind}_mb"] = memory.peak / 1e6
        found[f"{kind}_step_images_per_second"] = speed(replace(setup, loader=loader))
    return found


def _streamed(loader: Any, began: float) -> dict[str, float]:
    """Return the seconds from `began` to the first batch, and images/s of the loader alone after it."""
    batches = chain.from_iterable(loader.epoch(epoch) for epoch in count())
    next(batches)
    first, seen = time.perf_counter(), 0
    for image_batch in islice(batches, LOADER_IMAGES // loader.order.batch_size):
        seen += len(image_batch.indices)
        if time.perf_counter() - first > 3:
            break
    return {"first_batch_seconds": first - began, "images_per_second": seen / (time.perf_counter() - first)}


def by_processes(n: int, at: Setting) -> dict[str, float]:
    """Measure images/s of whole runs, in the epochs after the first."""
    path, out = packed(at, SIDE, 10), at.folder / f"run{n}"
    words = [*_words("simclr", path, at), f"devices={n}", f"epochs={REPEATS + 1}", f"out={out}"]
    options = ["checkpoint_every=0", "eval_every=0", "evaluators=[]", "log_every=1000000"]
    subprocess.run([sys.executable, "-m", "sslkit", "run", *words, *options], check=True, stdout=sys.stderr)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {"images_per_second": statistics.median(line["images_per_second"] for line in lines[1:])}


def training(at: Setting, method: str = "simclr", side: int = SIDE, classes: int = 10) -> Any:
    """Return the setup of a run, built as in `sslkit run`."""
    from sslkit.config.resolve import resolve
    from sslkit.training.build import build

    words = [*_words(method, packed(at, side, classes), at), "epochs=100"]
    return build(resolve(words).config, lambda text: None)


def _words(method: str, path: Path, at: Setting) -> list[str]:
    network = ["backbone=shufflenetv2", "backbone.stem=imagenet"]
    return [
        f"method={method}",
        *network,
        f"data={path}",
        f"batch_size={at.batch}",
        f"device={at.device}",
        "seed=0",
        f"tune={at.tune}",
        "compile=false",
    ]


def packed(at: Setting, side: int, classes: int) -> Path:
    """Return a packed data set of noise images, with labels from 0 to classes - 1."""
    from sslkit.data import ArrayImages, pack

    path = at.folder / f"noise-{side}-{classes}.beton"
    if not path.exists():
        pixels = np.random.default_rng(0).integers(0, 256, (at.real, side, side, 3), np.uint8)
        labels = np.linspace(0, classes - 1, at.real).round().astype(np.int64)
        pack(ArrayImages(lambda: (pixels, labels), "noise"), path, size=side)
    return path


def speed(setup: Any) -> float:
    """Return the images per second of whole steps."""
    from sslkit.machine.devices import synchronize
    from sslkit.training.step import train_step

    batches = chain.from_iterable(setup.loader.epoch(epoch) for epoch in count())
    seconds = []
    for step in range(WARM + REPEATS):
        began = time.perf_counter()
        setup.schedule.set(step)
        train_step(setup, [next(batches)], step)
        synchronize(setup.device)
        seconds.append(time.perf_counter() - began)
    return setup.config.batch_size / statistics.median(seconds[WARM:])


# --- packing and kNN ---


def _cpu_seconds() -> float:
    """Return the CPU time in seconds of this process and of its finished child processes."""
    return sum(os.times()[:4])


def by_packing(n: int, at: Setting) -> dict[str, float]:
    """Measure packing of JPEG files of about 32 px in 100 folders, recompressed to `SIDE` px."""
    from sslkit.data import pack
    from sslkit.data.sources.folder import FileImages

    files = at.folder / str(n)
    _write_files(files, n)
    pack(FileImages(files / "00"), at.folder / "warm.beton", size=SIDE)
    with PeakMemory() as memory:
        images = FileImages(files)
        began, worked = time.perf_counter(), _cpu_seconds()
        pack(images, at.folder / f"{n}.beton", size=SIDE)
        seconds, worked = time.perf_counter() - began, _cpu_seconds() - worked
    return {"images_per_second": n / seconds, "cores": worked / seconds, "mb": memory.peak / 1e6}


def _write_files(folder: Path, n: int) -> None:
    rng = np.random.default_rng(0)
    bodies = []
    for side in range(SIDE, SIDE + 16):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(file, "JPEG")
        bodies.append(file.getvalue())
    for k in range(100):
        (folder / f"{k:02d}").mkdir(parents=True)
    for i in range(n):
        with open(f"{folder}/{i % 100:02d}/{i:07d}.jpg", "wb") as out:
            out.write(bodies[i % len(bodies)])


def by_knn(n: int, at: Setting) -> dict[str, float]:
    """Measure kNN on random features; memory is that beyond the features, of the CPU or, with CUDA, of the device."""
    from sslkit.evaluation import KNN
    from sslkit.machine.devices import pick_device

    where = pick_device(at.device)
    bank, queries = (torch.randn(rows, KNN_WIDTH, device=where) for rows in (n, KNN_QUERIES))
    labels = torch.arange(n, device=where) % 1000
    vote = KNN(KNN.Config()).predict
    vote(bank[:5000], labels[:5000], queries, 1000)
    with PeakMemory(where) as memory:
        began = time.perf_counter()
        vote(bank, labels, queries, 1000).cpu()
        seconds = time.perf_counter() - began
    return {"queries_per_second": KNN_QUERIES / seconds, "mb": memory.peak / 1e6}


class PeakMemory:
    """Context that measures `peak`: the maximum increase of memory inside the block, in bytes."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._cuda = device is not None and device.type == "cuda"
        self._over = threading.Event()
        self._sampler = threading.Thread(target=self._sample)

    def __enter__(self) -> "PeakMemory":
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        self._before = self._most = self._now()
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._sampler.join()
        self.peak = self._most - self._before

    def _sample(self) -> None:
        while not self._over.wait(0.005):
            self._most = max(self._most, self._now())
        self._most = max(self._most, self._now())

    def _now(self) -> int:
        if self._cuda:
            return torch.cuda.max_memory_allocated()
        status = Path("/proc/self/status").read_text()
        return int(status.partition("RssAnon:")[2].split()[0]) * 1024


SECTIONS: dict[str, Callable[[int, Setting], dict[str, float]]] = {
    "batch": by_batch,
    "size": by_size,
    "classes": by_classes,
    "data": by_data,
    "processes": by_processes,
    "packing": by_packing,
    "knn": by_knn,
}

# --- the chart ---

Panel = tuple[str, str, str, dict[str, str]]
STEP = "images/s of a step"
PANELS: list[Panel] = [
    ("batch", "images per batch", STEP, {"images_per_second": "SimCLR"}),
    ("size", "image side, px", STEP, {"images_per_second": "SimCLR"}),
    ("classes", "classes", STEP, {"simclr": "SimCLR", "supervised": "supervised"}),
    (
        "data",
        "images in the data set",
        STEP,
        {"torch_step_images_per_second": "loader=torch", "ffcv_step_images_per_second": "loader=ffcv"},
    ),
    (
        "data",
        "images in the data set",
        "images/s of the loader alone",
        {"torch_images_per_second": "loader=torch", "ffcv_images_per_second": "loader=ffcv"},
    ),
    (
        "data",
        "images in the data set",
        "seconds to the first batch",
        {"torch_first_batch_seconds": "loader=torch", "ffcv_first_batch_seconds": "loader=ffcv"},
    ),
    ("data", "images in the data set", "MB held by the loader", {"torch_mb": "loader=torch", "ffcv_mb": "loader=ffcv"}),
    ("processes", "processes", "images/s of a run", {"images_per_second": "SimCLR"}),
    ("packing", "files", "images/s packed", {"images_per_second": "32 px JPEG files"}),
    ("packing", "files", "MB held while packing", {"mb": "32 px JPEG files"}),
    ("knn", "training images", "queries/s of kNN", {"queries_per_second": f"{KNN_WIDTH} wide, k=200"}),
    ("knn", "training images", "MB held beside the features", {"mb": f"{KNN_WIDTH} wide, k=200"}),
]
COLOURS = ["#0072B2", "#D55E00"]


def draw(sections: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draw one small panel per measured quantity, with axes that start at zero."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [panel for panel in PANELS if panel[0] in sections]
    columns = min(4, len(shown))
    rows = -(-len(shown) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(3.4 * columns, 2.7 * rows), squeeze=False)
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, panel in zip(axes.flat, shown):
        _panel(axis, sections[panel[0]], panel)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)


def _panel(axis: Any, found: list[dict[str, float]], panel: Panel) -> None:
    part, across, up, names = panel
    for colour, (key, name) in zip(COLOURS, names.items()):
        if key in found[0]:
            axis.plot([f["n"] for f in found], [f[key] for f in found], "o-", color=colour, label=name, markersize=4)
    axis.set_xscale("linear" if part in ("size", "processes") else "log", **_base(part))
    axis.set_xticks([f["n"] for f in found], labels=[_short(f["n"]) for f in found])
    axis.minorticks_off()
    axis.set_ylim(0, 1.05 * axis.get_ylim()[1])
    axis.set_xlabel(across)
    axis.set_title(up, fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)


def _base(part: str) -> dict[str, int]:
    return {"base": 2} if part == "batch" else {}


def _short(n: float) -> str:
    power = round(np.log10(n))
    return f"$10^{power}$" if n == 10**power and power > 2 else f"{n:g}"


if __name__ == "__main__":
    main()
