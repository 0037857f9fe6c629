"""Parts that the contests with other libraries share: the images, turns in processes of their own, and the evaluation.

Both libraries read the same folder of PNG files, and both backbones are judged by sslkit's evaluators.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sslkit.machine import atomic

VALIDATION = "validation"
"""Split of the images that take the place of the test images when settings are chosen."""
SAME_K = 200
"""k of the second kNN, the field's usual number, beside the default."""


def write_folder(cifar: Path, folder: Path, images: int, test_images: int, split: str = "test") -> None:
    """Write images of CIFAR-10 as PNG files in class sub-folders of `folder`/train and `folder`/test, whole or not.

    cifar: folder of the official binary files. The first `images` training images are written to train/; the first
    `test_images` test images to test/, or for split="validation" the training images that follow those of train/.
    """
    from sslkit.data import CIFAR10

    source = CIFAR10(CIFAR10.Config(root=cifar))
    training = source.images("pretrain")
    parts = [("train", training, range(images))]
    if split == VALIDATION:
        parts.append(("test", training, range(images, images + test_images)))
    else:
        parts.append(("test", source.images("test"), range(test_images)))
    with atomic.replacing(folder) as temporary:
        for part, found, rows in parts:
            _write_part(found, rows, temporary / part)


def _write_part(found: Any, rows: range, folder: Path) -> None:
    if rows.stop > len(found):
        raise SystemExit(f"{folder.name}: {rows.stop} images are wanted, CIFAR_FOLDER has {len(found)}")
    for i in rows:
        path = folder / found.classes[found.labels[i]] / f"{i:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(found.load(i))).save(path)


def take_turn(script: str, words: list[str]) -> dict[str, Any]:
    """Run a script in a process of its own; return the JSON object in the last line of its output.

    Messages on stderr pass through. Raises subprocess.CalledProcessError if the script fails.
    """
    done = subprocess.run([sys.executable, script, *words], check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def lightly_loader(folder: Path, transform: Any, batch: int) -> torch.utils.data.DataLoader:
    """Return lightly's data loading as in its examples, with two worker processes for two cores.

    The workers persist between epochs, which its examples do not ask for and which makes it faster.
    """
    from lightly.data import LightlyDataset

    return torch.utils.data.DataLoader(
        LightlyDataset(str(folder), transform=transform),
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        num_workers=2,
        persistent_workers=True,
    )


def judge(backbone: torch.nn.Module, folder: Path, seed: int, device: torch.device) -> dict[str, Any]:
    """Return the top-1 accuracies of frozen features: kNN at the default k (with that k), kNN at k=200, linear; chance.

    folder: train/ and test/ with class sub-folders.
    """
    from sslkit.config.resolve import resolve
    from sslkit.data import open_stores
    from sslkit.evaluation.evaluate import evaluate
    from sslkit.runs.records import CHANCE

    # The batch size is irrelevant, because nothing is trained.
    config = resolve([f"data={folder}", "evaluators=[knn,linear]", "batch_size=2"]).config
    stores = open_stores(config.data, None, 0, log=lambda text: None)
    evaluators = _with_same_k(config.evaluators)
    records = evaluate(backbone.to(device), evaluators, stores, device, seed, floors={}, wanted_floors=(CHANCE,))
    knn, same_k, linear = list(records)
    return {
        "knn_top1": knn["top1"],
        "knn_protocol": knn["protocol"],
        f"knn_{SAME_K}_top1": same_k["top1"],
        "linear_top1": linear["top1"],
        "chance": knn["floors"][CHANCE],
    }


def _with_same_k(evaluators: tuple[Any, ...]) -> Iterator[Any]:
    for choice in evaluators:
        yield choice
        if choice.name == "knn":
            yield choice.model_copy(update={"options": choice.options.model_copy(update={"k": SAME_K})})
