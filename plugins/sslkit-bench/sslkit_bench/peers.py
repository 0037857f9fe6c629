"""Select the peers, which are other libraries that take part, and the reasons why the others cannot."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch

from sslkit import plugins
from sslkit.data.loaders.base import ImageBatch
from sslkit.errors import UserError, in_one_line
from sslkit.machine.environment import package_version
from sslkit.training.setup import TrainingSetup
from sslkit_bench.clock import Contestant, NotTheSame

TRAINING = ("lightly",)
"""Peers that train."""
VIEWS = ("kornia", "torchvision")
"""Peers that only make views."""
INSTALL = {
    "lightly": 'pip install "sslkit-bench[lightly]"',
    "kornia": "pip install kornia",
    "torchvision": "pip install torchvision",
}


def chosen(names: str | None) -> tuple[str, ...]:
    """Parse the option `--peers`: names separated by commas; 'none': no peers; None: all peers.

    Raises UserError for an unknown name.
    """
    known = (*TRAINING, *VIEWS)
    if names is None:
        return known
    asked = [] if names == "none" else [name.strip() for name in names.split(",")]
    for name in asked:
        if name not in known:
            raise UserError(f"--peers: {name!r} is not a peer; {plugins.suggest(name, [*known, 'none'])}")
    return tuple(name for name in known if name in asked)


def find(
    names: Iterable[str], setup: TrainingSetup, image_batch: ImageBatch, folder: Path
) -> tuple[list[Contestant], dict[str, str]]:
    """Return (peers that can take part, {name of another one: reason}); images for them are written to `folder`."""
    makers: dict[str, Callable[[], Iterator[Contestant]]] = {
        "lightly": lambda: _lightly(setup, folder),
        "kornia": lambda: _kornia(setup, image_batch),
        "torchvision": lambda: _torchvision(setup, image_batch),
    }
    found: list[Contestant] = []
    absent: dict[str, str] = {}
    for name in names:
        if package_version(name) is None:
            absent[name] = f"not installed; install it with: {INSTALL[name]}"
            continue
        try:
            found += list(makers[name]())
        except NotTheSame as lack:
            absent[name] = str(lack)
        except Exception as error:
            absent[name] = f"failed: {in_one_line(error)}"
    return found, absent


def _lightly(setup: TrainingSetup, folder: Path) -> Iterator[Contestant]:
    from sslkit_bench.lightly_peer import Lightly, write_folder

    write_folder(setup, folder)
    yield Lightly(setup, folder)
    if setup.device.type == "cuda":
        yield Lightly(setup, folder, torch.bfloat16)


def _kornia(setup: TrainingSetup, image_batch: ImageBatch) -> Iterator[Contestant]:
    from sslkit_bench.views_peers import Kornia

    yield Kornia(setup, image_batch)


def _torchvision(setup: TrainingSetup, image_batch: ImageBatch) -> Iterator[Contestant]:
    from sslkit_bench.views_peers import Torchvision

    yield Torchvision(setup, image_batch)
