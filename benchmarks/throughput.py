"""Benchmark sslkit over methods, networks and image sizes: share of the bound, ratio to lightly, ratios of views.

    python benchmarks/throughput.py --small cifar10-2k.tar --large imagenette96.tar [options] [key=value]...

--small (32 px) and --large (96 px and up) are folders of images, or tar archives of such folders. Every cell of the
grid is one `sslkit bench` in a process of its own, with that command's protocol; further key=value words apply to all
cells. Results are added to OUT/throughput-cpu.json or throughput-cuda.json after each cell, so that a grid can be
measured in several sessions; a table (.md) with the targets that are met, and a chart (.svg) of all cells so far are
written next to it.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslkit_bench.contest import RATIOS
from sslkit_bench.show import bars, panels, svg_of

from sslkit.machine import atomic
from sslkit.runs.report.figures import PALETTE

NETWORKS = ("shufflenetv2", "mobilenetv3_large", "squeezenet", "resnet18")
METHODS = ("simclr", "byol")
BATCHES = {32: 512, 96: 256}
VIEWS, VIEWS_BATCH = (96, 224), 256

Cell = dict[str, Any]


@dataclass(frozen=True)
class Target:
    """The target value of a ratio, on one kind of device."""

    device: str
    ratio: str
    bound: float
    cells: tuple[str, ...] = ()
    """Names of cells, or substrings of names; (): all cells that have the ratio."""
    at_most: bool = False
    """True if `bound` is an upper bound, False if it is a lower one."""

    def concerns(self, name: str, cell: Cell) -> bool:
        fits = not self.cells or any(substring in name for substring in self.cells)
        return fits and cell["device"] == self.device and self.ratio in cell["ratios"]

    def met(self, value: float) -> bool:
        return value <= self.bound if self.at_most else value >= self.bound


TARGETS = (
    Target("cuda", "step/bound", 0.95),
    Target("cuda", "step/lightly", 5.0),
    Target("cuda", "views/kornia", 10.0),
    Target("cuda", "step/views", 0.10, ("resnet18",), at_most=True),
    Target("cpu", "step/bound", 0.93),
    Target("cpu", "step/lightly", 2.8, ("simclr-shufflenetv2-32",)),
    Target("cpu", "step/lightly", 1.9, ("simclr-shufflenetv2-96",)),
    Target("cpu", "step/lightly", 2.5, ("simclr-resnet18-96",)),
    Target("cpu", "views/kornia", 4.0),
)


def main() -> None:
    args = _arguments()
    cells: dict[str, Cell] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("SSLKIT_CACHE", f"{folder}/cache")
        for name, size, words in _grid(args):
            archive = args.small if size == 32 else args.large
            print(name, file=sys.stderr)
            cell = measure([*words, f"data={_unpacked(archive, Path(folder))}", *args.words], args, folder)
            file = args.out / f"throughput-{cell['device']}.json"
            cells = (json.loads(file.read_text()) if file.exists() else {}) | {name: cell}
            atomic.write_json(file, cells)
            atomic.write_text(file.with_suffix(".md"), as_markdown(cells))
            if _ratios(cells):
                atomic.write_text(file.with_suffix(".svg"), as_svg(cells))
    print(as_markdown(cells))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = {"type": lambda text: [word for word in text.split(",") if word], "metavar": "A,B,..."}
    parser.add_argument("--small", type=Path, required=True, help="images of 32 px")
    parser.add_argument("--large", type=Path, required=True, help="images of 96 px")
    parser.add_argument("--networks", default=NETWORKS, **listed)
    parser.add_argument("--methods", default=METHODS, **listed)
    parser.add_argument("--sizes", default=[*map(str, BATCHES)], **listed)
    parser.add_argument(
        "--views", default=[*map(str, VIEWS)], help="image sizes of measurements of views alone", **listed
    )
    parser.add_argument("--batch", type=int, help="batch size of all cells; default: 512 at 32 px, 256 above")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=600.0, help="per cell; see sslkit bench")
    parser.add_argument("--peers", default="lightly,kornia,torchvision")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("words", nargs="*", metavar="key=value")
    return parser.parse_intermixed_args()


def _grid(args: argparse.Namespace) -> Iterator[tuple[str, int, list[str]]]:
    """Yield (name, image size, words and options of sslkit bench) of each cell."""
    peers = [peer for peer in args.peers.split(",") if peer not in ("kornia", "torchvision")]
    for size in map(int, args.sizes):
        for method in args.methods:
            for network in args.networks:
                words = [f"method={method}", f"backbone={network}", f"data.image_size={size}"]
                words += [f"batch_size={args.batch or BATCHES[size]}", f"--peers={','.join(peers) or 'none'}"]
                yield f"{method}-{network}-{size}", size, words
    for size in map(int, args.views):
        words = ["method=simclr", f"data.image_size={size}", f"batch_size={args.batch or VIEWS_BATCH}"]
        yield f"views-{size}", size, [*words, "--only=views", f"--peers={args.peers}"]


def _unpacked(archive: Path, folder: Path) -> Path:
    """Return the folder of images; an archive is unpacked to `folder` first."""
    if archive.is_dir():
        return archive
    place = folder / archive.stem
    if not place.exists():
        with tarfile.open(archive) as tar:
            tar.extractall(place, filter="data")
    inside = list(place.iterdir())
    return inside[0] if len(inside) == 1 else place


def measure(words: list[str], args: argparse.Namespace, folder: str) -> Cell:
    """Return the result of one `sslkit bench`, without the paths of this machine's folders."""
    options = [f"--repeats={args.repeats}", f"--seconds={args.seconds}", "--json"]
    command = [sys.executable, "-m", "sslkit", "bench", *words, *options]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    output = done.stdout
    for place in (folder, args.small.parent, args.large.parent):
        output = output.replace(f"{place}/", "")
    cell: Cell = json.loads(output)
    return cell


def verdicts(cells: dict[str, Cell]) -> Iterator[tuple[str, Target, float]]:
    """Yield (name of a cell, target, value reached) for every target of a cell."""
    for target in TARGETS:
        for name, cell in cells.items():
            if target.concerns(name, cell):
                yield name, target, cell["ratios"][target.ratio]["median"]


def as_markdown(cells: dict[str, Cell]) -> str:
    """Return Markdown with the hardware, a table of all cells, and the targets, met or not."""
    hardware = dict.fromkeys(
        f"{c['device_name']}, torch {c['environment']['versions']['torch']}" for c in cells.values()
    )
    ratios = _ratios(cells)
    heading = ["cell", "batch", "images/s", "rounds", *ratios]
    lines = [f"Medians of paired rounds (quartiles). {'; '.join(hardware)}.", "", *_rows(heading, cells, ratios)]
    lines += ["", "| target | cell | reached | |", "|---|---|---:|---|"]
    for name, target, value in verdicts(cells):
        sign = "≤" if target.at_most else "≥"
        met = "met" if target.met(value) else "**not met**"
        lines.append(f"| {target.ratio} {sign} {target.bound:g} | {name} | {value:.3g} | {met} |")
    return "\n".join([*lines, ""])


def _rows(heading: list[str], cells: dict[str, Cell], ratios: list[str]) -> Iterator[str]:
    yield f"| {' | '.join(heading)} |"
    yield f"|---|{'---:|' * (len(heading) - 1)}"
    for name, cell in cells.items():
        main = cell["contestants"].get("step") or cell["contestants"]["views"]
        rate = main["images_per_second"]
        figures = [name, str(cell["batch_size"]), f"{rate['median']:.0f}", str(rate["n"])]
        figures += [_with_quartiles(cell["ratios"].get(ratio)) for ratio in ratios]
        yield f"| {' | '.join(figures)} |"


def _with_quartiles(ratio: Cell | None) -> str:
    return "" if ratio is None else f"{ratio['median']:.3g} ({ratio['q1']:.3g} to {ratio['q3']:.3g})"


def as_svg(cells: dict[str, Cell]) -> str:
    """Return an SVG with one panel per ratio, one bar per cell, and a line at each target."""
    found = {r: {n: c["ratios"][r] for n, c in cells.items() if r in c["ratios"]} for r in _ratios(cells)}
    heights = [len(summaries) + 1.2 for summaries in found.values()]
    figure, axes = panels(heights, "median and quartiles; a line is a target")
    for place, (ratio, summaries) in zip(axes, found.items()):
        bars(place, f"{ratio}: {RATIOS[ratio]}", summaries, "{:.3g}")
        for name, target, _ in verdicts(cells):
            if target.ratio == ratio:
                row = list(summaries).index(name)
                place.plot([target.bound] * 2, [row - 0.5, row + 0.5], color=PALETTE[1], linewidth=2)
    return svg_of(figure)


def _ratios(cells: dict[str, Cell]) -> list[str]:
    """Return the ratios that any cell has, in the order of `RATIOS`."""
    return [ratio for ratio in RATIOS if any(ratio in cell["ratios"] for cell in cells.values())]


if __name__ == "__main__":
    main()
