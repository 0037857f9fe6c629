"""Compare sslkit with lightly: images/s, and kNN accuracy after the same wall time. SimCLR, ShuffleNetV2, 32 px.

    python benchmarks/peers.py CIFAR_FOLDER [--seconds 240] [--out benchmarks/results/peers-cpu.json]

CIFAR_FOLDER contains the official binary files of CIFAR-10 (`.bin` or `.bin.xz`). Both contestants get the same 10,000
images as a folder of PNG files, the same network with its original stem, batch size, loss, temperature, head, optimizer
and schedule; each uses its own transforms and loading, lightly with two workers. They take turns in separate processes.
Both backbones are evaluated by the same kNN, trained on the training images and tested on the test images.

Protocol: (1) speed: ROUNDS turns of 2 epochs each; the first epoch is warm-up; median of images/s over the second;
(2) accuracy: each trains as many epochs as its speed allows in `--seconds`, with a whole cosine schedule and one seed.
Needs `pip install lightly`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sslkit import hookimpl
from sslkit.machine import atomic

IMAGES = 10_000
TEST_IMAGES = 5_000
BATCH = 256
ROUNDS = 3
SPEED_EPOCHS = 2
LR = 0.12
WEIGHT_DECAY = 5e-4
TEMPERATURE = 0.5
HIDDEN, DIM = 1024, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar", type=Path)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/peers-cpu.json"))
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--judge", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        result, backbone = CONTESTANTS[args.contestant](args.cifar, args.epochs, args.seed)
        print(json.dumps(result | (judge(backbone, args.cifar) if args.judge else {})))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_folder(args.cifar, Path(folder))
        report = compete(Path(folder), args.seconds, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(args.out, report)
    print(json.dumps(report, indent=2))


def write_folder(cifar: Path, folder: Path) -> None:
    """Write the first images of both splits as PNG files in class sub-folders, which both libraries can read."""
    from sslkit.data import CIFAR10

    source = CIFAR10(CIFAR10.Config(root=cifar))
    for role, split, count in (("pretrain", "train", IMAGES), ("test", "test", TEST_IMAGES)):
        images = source.images(role)
        for i in range(count):
            path = folder / split / images.classes[images.labels[i]] / f"{i:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(images.load(i))).save(path)


def compete(folder: Path, seconds: float, seed: int) -> dict:
    """Measure speed in turns, then accuracy after the same time; return the report."""
    from sslkit.machine.environment import environment, package_version

    speeds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(ROUNDS):
        for name in CONTESTANTS:
            speeds[name].append(_turn(name, folder, SPEED_EPOCHS, seed)["images_per_second"])
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    pairs = [a / b for a, b in zip(speeds["sslkit"], speeds["lightly"])]
    results = {
        name: _turn(name, folder, max(2, round(medians[name] * seconds / IMAGES)), seed, "--judge")
        for name in CONTESTANTS
    }
    return {
        "what": "SimCLR, ShuffleNetV2 1.0x (original stem), CIFAR-10, 32 px, fp32",
        "protocol": f"{IMAGES} training images, batch {BATCH}, SGD lr {LR}, {ROUNDS} rounds in turns, median; "
        f"then one whole schedule of {seconds:.0f} s each, kNN k=200 T=0.1, {IMAGES} -> {TEST_IMAGES} images",
        "seed": seed,
        "images_per_second": speeds,
        "median_images_per_second": medians,
        "ratio_by_round": pairs,
        "ratio_median": statistics.median(pairs),
        "same_wall_time": results,
        "lightly": package_version("lightly"),
        "environment": {k: v for k, v in environment().items() if k != "command"},
    }


def _turn(name: str, folder: Path, epochs: int, seed: int, *more: str) -> dict:
    words = [
        sys.executable,
        __file__,
        str(folder),
        "--contestant",
        name,
        "--epochs",
        str(epochs),
        "--seed",
        str(seed),
    ]
    done = subprocess.run([*words, *more], check=True, capture_output=True, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(name, {k: round(v, 4) for k, v in result.items()}, file=sys.stderr)
    return result


def sslkit(folder: Path, epochs: int, seed: int) -> tuple[dict, torch.nn.Module]:
    """Train with `sslkit.run`, as a user would; return (timing, backbone)."""
    import sslkit as library
    from sslkit.plugins import host

    clock = EpochClock()
    host().manager.register(clock)
    with tempfile.TemporaryDirectory() as out:
        run = library.run(
            method={"name": "simclr", "temperature": TEMPERATURE, "hidden": HIDDEN, "dim": DIM},
            backbone={"name": "shufflenetv2", "stem": "imagenet"},
            data=folder,
            augment="small",
            optimizer={
                "name": "sgd",
                "lr": LR,
                "lr_scaling": "none",
                "weight_decay": WEIGHT_DECAY,
                "warmup_epochs": 0,
            },
            epochs=epochs,
            batch_size=BATCH,
            device="cpu",
            precision="fp32",
            seed=seed,
            log_every=10**9,
            eval_every=0,
            evaluators=[],
            checkpoint_every=0,
            out=f"{out}/run",
            quiet=True,
        )
        return _timing(clock.began, clock.ends, epochs), run.backbone()


class EpochClock:
    """A plugin that records the time at which each epoch's metrics are logged."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.ends: list[float] = []

    @hookimpl
    def run_logged(self) -> None:
        self.ends.append(time.perf_counter())


def lightly(folder: Path, epochs: int, seed: int) -> tuple[dict, torch.nn.Module]:
    """Train with lightly's transform, data set, head and loss, as in its examples; return (timing, backbone)."""
    import torchvision
    from lightly.data import LightlyDataset
    from lightly.transforms import SimCLRTransform
    from sslkit_bench import lightly_peer

    from sslkit.methods.simclr import SimCLR

    torch.manual_seed(seed)
    transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)
    loader = torch.utils.data.DataLoader(
        LightlyDataset(str(folder / "train"), transform=transform),
        batch_size=BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
    )
    backbone = torchvision.models.shufflenet_v2_x1_0()
    backbone.fc = torch.nn.Identity()
    model = lightly_peer.SimCLR(backbone, 1024, SimCLR.Config(temperature=TEMPERATURE, hidden=HIDDEN, dim=DIM))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    began, ends = time.perf_counter(), []
    for _ in range(epochs):
        for _loss in lightly_peer.train(model, loader, optimizer, torch.device("cpu")):
            schedule.step()
        ends.append(time.perf_counter())
    return _timing(began, ends, epochs), backbone


def _timing(began: float, ends: list[float], epochs: int) -> dict:
    images = IMAGES // BATCH * BATCH * (epochs - 1)
    return {
        "epochs": epochs,
        "images_per_second": images / (ends[-1] - ends[0]),
        "seconds": ends[-1] - began,
    }


def judge(backbone: torch.nn.Module, folder: Path) -> dict:
    """Return the kNN accuracy of a backbone, with the same evaluator for both contestants."""
    from sslkit.config.resolve import resolve
    from sslkit.data import open_stores
    from sslkit.evaluation.evaluate import evaluate

    # The batch size is irrelevant, because nothing is trained.
    config = resolve([f"data={folder}", "evaluators=[knn]", "batch_size=2"]).config
    stores = open_stores(config.data, None, 0, log=lambda text: None)
    record = next(evaluate(backbone, config.evaluators, stores, torch.device("cpu"), 0))
    return {"knn_top1": record["top1"]}


CONTESTANTS = {"lightly": lightly, "sslkit": sslkit}

if __name__ == "__main__":
    main()
