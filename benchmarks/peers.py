"""Compare the images/s of sslkit and lightly over whole epochs. SimCLR, ShuffleNetV2, 32 px.

    python benchmarks/peers.py CIFAR_FOLDER [--out benchmarks/results/peers-cpu.json]

CIFAR_FOLDER contains the official binary files of CIFAR-10 (`.bin` or `.bin.xz`). Both contestants get the same 10,000
images as a folder of PNG files, the same network with its original stem, batch size, loss, temperature, head, optimizer
and schedule; each uses its own transforms and loading, lightly with two workers. They take turns in separate processes.

Protocol: ROUNDS turns of 2 epochs each; the first epoch is warm-up; median of images/s over the second. What each
learns in the same time, with settings of its own, is measured by `learning.py`. Needs `pip install lightly`.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from peer_contest import lightly_loader, take_turn, write_folder

from sslkit import hookimpl
from sslkit.machine import atomic

IMAGES = 10_000
TEST_IMAGES = 100
"""Not evaluated: they make the folder the pair of train/ and test/ that users have."""
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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/peers-cpu.json"))
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--epochs", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contestant:
        print(json.dumps(CONTESTANTS[args.contestant](args.cifar, args.epochs, args.seed)))
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "cifar10"
        write_folder(args.cifar, folder, IMAGES, TEST_IMAGES)
        report = compete(folder, args.seed)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_json(args.out, report)
    print(json.dumps(report, indent=2))


def compete(folder: Path, seed: int) -> dict:
    """Measure speed in turns; return the report."""
    from sslkit.machine.environment import environment, package_version

    speeds: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    for _ in range(ROUNDS):
        for name in CONTESTANTS:
            speeds[name].append(_turn(name, folder, seed)["images_per_second"])
    pairs = [a / b for a, b in zip(speeds["sslkit"], speeds["lightly"])]
    return {
        "what": "SimCLR, ShuffleNetV2 1.0x (original stem), CIFAR-10, 32 px, fp32",
        "protocol": f"{IMAGES} training images, batch {BATCH}, SGD lr {LR}, {ROUNDS} rounds in turns, median",
        "seed": seed,
        "images_per_second": speeds,
        "median_images_per_second": {name: statistics.median(values) for name, values in speeds.items()},
        "ratio_by_round": pairs,
        "ratio_median": statistics.median(pairs),
        "lightly": package_version("lightly"),
        "environment": {k: v for k, v in environment().items() if k != "command"},
    }


def _turn(name: str, folder: Path, seed: int) -> dict:
    words = [str(folder), "--contestant", name, "--epochs", str(SPEED_EPOCHS), "--seed", str(seed)]
    result = take_turn(__file__, words)
    print(name, {k: round(v, 4) for k, v in result.items()}, file=sys.stderr)
    return result


def sslkit(folder: Path, epochs: int, seed: int) -> dict:
    """Train with `sslkit.run`, as a user would; return the timing."""
    import sslkit as library
    from sslkit.plugins import host

    clock = EpochClock()
    host().manager.register(clock)
    with tempfile.TemporaryDirectory() as out:
        library.run(
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
    return _timing(clock.began, clock.ends, epochs)


class EpochClock:
    """A plugin that records the time at which each epoch's metrics are logged."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.ends: list[float] = []

    @hookimpl
    def run_logged(self) -> None:
        self.ends.append(time.perf_counter())


def lightly(folder: Path, epochs: int, seed: int) -> dict:
    """Train with lightly's transform, data set, head and loss, as in its examples; return the timing."""
    import torchvision
    from lightly.transforms import SimCLRTransform
    from sslkit_bench import lightly_peer

    from sslkit.methods.simclr import SimCLR

    torch.manual_seed(seed)
    transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)
    loader = lightly_loader(folder / "train", transform, BATCH)
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
    return _timing(began, ends, epochs)


def _timing(began: float, ends: list[float], epochs: int) -> dict:
    images = IMAGES // BATCH * BATCH * (epochs - 1)
    return {
        "epochs": epochs,
        "images_per_second": images / (ends[-1] - ends[0]),
        "seconds": ends[-1] - began,
    }


CONTESTANTS = {"lightly": lightly, "sslkit": sslkit}

if __name__ == "__main__":
    main()
