"""Images per second of the cells of `benchmarks/throughput.py`: the step against its bound, the views against kornia.

Cells without compilation, which takes a minute each; those of the views compile what a long run would.
"""

from sslkit_bench.clock import Protocol
from sslkit_bench.contest import bench
from sslkit_bench.peers import TRAINING
from sslkit_bench.peers import VIEWS as VIEWS_PEERS

from benchmarks.gpu.settings import Result, Settings
from benchmarks.throughput import BATCHES, METHODS, NETWORKS, VIEWS, VIEWS_BATCH, verdicts
from sslkit.training.preflight import resolve_new

REPEATS, SECONDS = 3, 20.0
"""Timed rounds of a cell, and seconds after which none begins."""
IMAGES = 2048
FIRST = ("simclr-resnet18-32", "simclr-mobilenetv3_large-96", "views-96")
"""The most telling cells; where there is time for these only, a further call measures the others."""


def items(settings: Settings) -> list[str]:
    cells = [*FIRST, *(f"{method}-{network}-{size}" for size in BATCHES for method in METHODS for network in NETWORKS)]
    views = [f"views-{size}" for size in VIEWS]
    return settings.sized(list(dict.fromkeys([*cells, *views])), ["simclr-shufflenetv2-32", "views-32"])


def measured(item: str, settings: Settings) -> Result:
    """Return the result of `sslkit bench` for a cell, with the targets that concern it."""
    only = "views" if item.startswith("views") else "training"
    size = int(item.rpartition("-")[2])
    peers = settings.sized(VIEWS_PEERS if only == "views" else TRAINING, ())
    protocol = Protocol(repeats=settings.sized(REPEATS, 1), seconds=SECONDS)
    cell = bench(resolve_new([*words_of(item, size), *of_size(size, item, settings)]), protocol, peers, only)
    targets = [
        {"ratio": target.ratio, "at_most" if target.at_most else "at_least": target.bound, "reached": reached,
         "met": target.met(reached)} for _, target, reached in verdicts({item: cell})
    ]  # fmt: skip
    return cell | {"targets": targets}


def words_of(item: str, size: int) -> list[str]:
    """Return the method, network and size of a cell as words of `sslkit bench`."""
    if item.startswith("views"):
        return ["method=simclr", f"data.image_size={size}"]
    method, network, _ = item.split("-")
    return [f"method={method}", f"backbone={network}", f"data.image_size={size}", "compile=false"]


def of_size(size: int, item: str, settings: Settings) -> list[str]:
    """Return words for the amount of work, and for rendered images, which need no files."""
    batch = VIEWS_BATCH if item.startswith("views") else BATCHES[size]
    words = [f"device={settings.device}", "data=shapes", "data.n_test=8"]
    if settings.toy:
        return [*words, "batch_size=8", "data.n_train=32", "backbone.stem=imagenet", "tune=off"]
    return [*words, f"batch_size={batch}", f"data.n_train={IMAGES}"]
