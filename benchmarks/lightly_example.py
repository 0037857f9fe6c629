"""lightly's own example code under a time limit: SimCLR and BYOL on images of 32 px.

lightly 1.6, examples/pytorch/simclr.py and byol.py: SGD at a constant 0.06 without momentum or decay, batch 256, its
transforms for 32 px without blur, its heads and losses, fp32. Adapted are the width of the network, the number of
workers, and the end: the time, not ten epochs. `ADAM` takes the place of SGD in a second variant.
"""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peer_contest import lightly_loader
from sslkit_bench import lightly_peer

BATCH = 256
SGD = {"lr": lightly_peer.LR}
ADAM = {"lr": 1e-3}
OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, float]]] = {
    "lightly": (torch.optim.SGD, SGD),
    "lightly-adam": (torch.optim.Adam, ADAM),
}
"""Contestant -> its optimizer."""
OPTIONS = {
    "simclr": SimpleNamespace(hidden=512, dim=128, temperature=0.5),
    "byol": SimpleNamespace(hidden=1024, dim=256, momentum=0.996),
}
"""Method -> sizes of the heads and further numbers of its example."""


def transform(method: str) -> Any:
    """Return the transform of the method's example."""
    if method == "simclr":
        from lightly.transforms import SimCLRTransform

        return SimCLRTransform(input_size=32, gaussian_blur=0.0)
    from lightly.transforms.byol_transform import BYOLTransform, BYOLView1Transform, BYOLView2Transform

    views = [kind(input_size=32, gaussian_blur=0.0) for kind in (BYOLView1Transform, BYOLView2Transform)]
    return BYOLTransform(*views)


def train(
    contestant: str,
    method: str,
    backbone: torch.nn.Module,
    folder: Path,
    seconds: float,
    device: torch.device,
    batch: int = BATCH,
) -> dict[str, Any]:
    """Train `backbone`, [N, 3, 32, 32] -> [N, backbone.width], in place until the time is over; return the timing.

    The time begins before the worker processes start, and a step that has begun is finished. Seed torch before.
    """
    loader = lightly_loader(folder / "train", transform(method), batch)
    if not len(loader):
        raise SystemExit(f"{folder / 'train'} holds fewer images than lightly's batch of {batch}")
    model = lightly_peer.MODELS[method](backbone, int(backbone.width), OPTIONS[method]).to(device).train()
    kind, settings = OPTIMIZERS[contestant]
    optimizer = kind(model.parameters(), **settings)
    steps, spent = _until(seconds, model, loader, optimizer, device)
    return {
        "seconds_trained": spent,
        "steps": steps,
        "epochs": steps / len(loader),
        "images_per_second": steps * batch / spent,
        "settings": {"batch_size": batch, "optimizer": {"name": kind.__name__.lower(), **settings}},
    }


def _until(
    seconds: float, model: Any, loader: Any, optimizer: torch.optim.Optimizer, device: torch.device
) -> tuple[int, float]:
    """Train until the time is over; return (number of steps, seconds spent)."""
    began, steps = time.perf_counter(), 0
    while True:
        set_momentum(model, time.perf_counter() - began, seconds)
        for _ in lightly_peer.train(model, loader, optimizer, device):
            steps += 1
            if (spent := time.perf_counter() - began) >= seconds:
                return steps, spent


def set_momentum(model: Any, spent: float, seconds: float) -> None:
    """Set the momentum of an epoch, which the example computes from epoch / epochs: here from the share of the time."""
    from lightly.utils.scheduler import cosine_schedule

    if isinstance(model, lightly_peer.BYOL):
        limit = round(1000 * seconds)
        model.momentum = cosine_schedule(min(round(1000 * spent), limit), limit, OPTIONS["byol"].momentum, 1)
