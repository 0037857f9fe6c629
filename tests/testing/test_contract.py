"""The contract of every component that is registered here, and that its checks catch what breaks it."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from helpers.small_methods import OPTIONS
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from sslkit import plugins, testing
from sslkit.config.base import Config as Settings
from sslkit.data import CIFAR10, pack
from sslkit.errors import UserError
from sslkit.evaluation import Evaluator
from sslkit.methods import Method
from sslkit.nn.losses import full_precision


def registered(kind: str) -> list[str]:
    return [name for name in plugins.names(kind) if not name.endswith(":")]


@pytest.mark.parametrize("name", registered("methods"))
def test_method(name):
    testing.check_method(plugins.find("methods", name), **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", [*registered("backbones"), "timm:lcnet_050", "torchvision:shufflenet_v2_x0_5"])
def test_backbone(name):
    testing.check_backbone(name)


@pytest.mark.parametrize("name", registered("augmentations"))
def test_augmentation(name):
    testing.check_augmentation(plugins.find("augmentations", name))


QUICK = {
    "semi": {"steps": 20, "batch_size": 32},
    "finetune": {"steps": 60, "batch_size": 32, "lr": 0.4},
}
"""Settings of evaluators that train the whole network."""


@pytest.mark.parametrize("name", registered("evaluators"))
def test_evaluator(name):
    testing.check_evaluator(plugins.find("evaluators", name), **QUICK.get(name, {}))


@pytest.mark.parametrize("name", registered("datasets"))
def test_dataset(name, tmp_path):
    testing.check_dataset(plugins.find("datasets", name), **whereabouts(name, tmp_path))


def whereabouts(name: str, folder: Path) -> dict[str, Any]:
    """Options that bring a data set to hand, with the few files that it needs."""
    if name in FILES:
        FILES[name](folder)
        return {"root": folder}
    if name == "beton":
        shapes = plugins.find("datasets", "shapes")
        source = shapes(shapes.Config(n_train=4, image_size=32))
        pack(source.images("train"), folder / "shapes.beton", size=32, workers=1)
        return {"root": folder / "shapes.beton"}
    return {"n_train": 20, "n_test": 10, "image_size": 32} if name == "shapes" else {}


def write_folder(root: Path) -> None:
    for split in ("train", "test"):
        for number, label in enumerate(("cats", "dogs")):
            (root / split / label).mkdir(parents=True)
            Image.new("RGB", (40, 32), (90 * number, 50, 200)).save(root / split / label / "1.png")


def write_cifar(root: Path, files: tuple[str, ...], labels: int) -> None:
    for file in files:
        (root / file).write_bytes((bytes(labels) + bytes(3 * 32 * 32)) * 4)


def write_stl10(root: Path) -> None:
    for split in ("unlabeled", "train", "test"):
        (root / f"{split}_X.bin").write_bytes(bytes(4 * 3 * 96 * 96))
        (root / f"{split}_y.bin").write_bytes(bytes([1, 2, 3, 10]))


FILES: dict[str, Callable[[Path], None]] = {
    "folder": write_folder,
    "cifar10": partial(write_cifar, files=(*CIFAR10.train_files, *CIFAR10.test_files), labels=1),
    "cifar100": partial(write_cifar, files=("train.bin", "test.bin"), labels=2),
    "stl10": write_stl10,
}


# --- the checks catch what breaks the contract ---


class Good(Method):
    """The loss is the head's mean square."""

    class Config(Settings):
        width: int = Field(default=4, ge=1)
        """Width of the head."""

    augment = "none"

    def __init__(self, config: Any, backbone: nn.Module, info: Any) -> None:
        super().__init__(config, backbone, info)
        self.head = nn.Linear(16, config.width)

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return {"loss": self.head(self.backbone(batch.views)).square().mean()}


class Silent(Good):
    """A setting without help."""

    class Config(Settings):
        width: int = 4


class Misadvised(Good):
    """A recommended setting that no run has."""

    defaults: ClassVar[dict[str, Any]] = {"optimizer.speed": 1}


class Unused(Good):
    """A parameter that no gradient reaches."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.spare = nn.Linear(2, 2)


class Attached(Good):
    """A logged scalar with a graph."""

    def forward(self, batch: Any) -> dict[str, Tensor]:
        loss = super().forward(batch)["loss"]
        return {"loss": loss, "half": loss / 2}


class Forgetful(Good):
    """State that state_dict does not know."""

    bank = torch.zeros(())

    def forward(self, batch: Any) -> dict[str, Tensor]:
        loss = super().forward(batch)["loss"] + self.bank
        self.bank = loss.detach()
        return {"loss": loss}


class Meddling(Good):
    """Trainable weights changed outside the optimizer."""

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        self.head.weight.mul_(0.5)


class Twice(Good):
    """The backbone inside a second module."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.network = nn.Sequential(self.backbone, self.head)


class InPlace(Good):
    """Views changed in place."""

    def forward(self, batch: Any) -> dict[str, Tensor]:
        batch.crops[0].mul_(2)
        return super().forward(batch)


class Labelled(Good):
    """Labels used without asking for them."""

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return {"loss": super().forward(batch)["loss"] * batch.labels.sum()}


def test_a_good_method_passes_with_its_options():
    testing.check_method(Good, width=3)
    Labelled.uses_labels = True
    testing.check_method(Labelled)
    Labelled.uses_labels = False


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (Silent, "help that users see"),
        (Misadvised, "optimizer.speed is not a setting"),
        (Unused, "spare.weight"),
        (Attached, "half is logged"),
        (Forgetful, "registered buffer"),
        (Meddling, "after_step must not change trainable parameters: head.weight"),
        (Twice, "registered once"),
        (InPlace, "in place"),
    ],
)
def test_a_broken_method_is_described(broken, words):
    with pytest.raises(AssertionError, match=words):
        testing.check_method(broken)


def test_labels_are_withheld_from_a_method_that_does_not_ask():
    with pytest.raises(AttributeError, match="sum"):
        testing.check_method(Labelled)


def test_the_checks_leave_random_numbers_alone():
    before = torch.get_rng_state()
    testing.check_method(Good)
    assert torch.equal(before, torch.get_rng_state())


def unpooled(config: Any) -> nn.Module:
    """A backbone that forgets to pool."""
    return nn.Conv2d(3, 4, 3)


def test_a_broken_backbone_is_described():
    with pytest.raises(AssertionError, match=r"features \[2, width\], not \[2, 4, 30, 30\]"):
        testing.check_backbone(unpooled)
    testing.check_backbone(lambda config: testing.TinyBackbone())


class Careless(nn.Module):
    """Draws from torch's global generator."""

    class Config(Settings):
        pass

    n_views = 2

    def __init__(self, config: Any, image_size: int, mean: Any, std: Any) -> None:
        super().__init__()
        self.size = image_size

    def forward(self, images: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        views = images[..., : self.size, : self.size].float().repeat(2, 1, 1, 1)
        return [views.add(torch.rand(())).contiguous(memory_format=torch.channels_last)]


def test_a_broken_augmentation_is_described():
    with pytest.raises(AssertionError, match="from the generator that is passed"):
        testing.check_augmentation(Careless)


class Guess(Evaluator):
    """Guesses the first class."""

    protocol = "always class 0"

    def __call__(self, subject: Any) -> dict[str, Any]:
        return {"top1": (subject.features.test_y == 0).float().mean()}


def test_a_broken_evaluator_is_described():
    with pytest.raises(AssertionError, match="plain finite number"):
        testing.check_evaluator(Guess)


class Peeks(Evaluator):
    """Says that it needs no labels, and looks at them."""

    protocol = "the number of labelled images"
    needs_labels = False

    def __call__(self, subject: Any) -> dict[str, float]:
        return {"labelled": len(subject.features.test_y)}


def test_an_evaluator_that_needs_no_labels_is_given_none():
    with pytest.raises(UserError, match="no labels to evaluate with"):
        testing.check_evaluator(Peeks)


def test_a_broken_dataset_is_described():
    shapes = plugins.find("datasets", "shapes")

    class Unlabelled(shapes):
        """Train images without labels."""

        def images(self, role: Any) -> Any:
            images = super().images(role)
            images.labels = None
            return images

    with pytest.raises(AssertionError, match="must be labelled"):
        testing.check_dataset(Unlabelled, n_train=5, n_test=5)


def exact_only(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T).mean()


def rounded(a: Tensor, b: Tensor) -> Tensor:
    return full_precision(a @ b.T).square().mean()


def always_single(a: Tensor, b: Tensor) -> Tensor:
    return (a.float() * b.float()).mean()


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        (exact_only, "under autocast a loss must be float32, not torch.bfloat16"),
        (lambda a, b: (a * b).mean(), "of half inputs"),
        (rounded, "as exact as float32"),
        (always_single, "float64 must stay"),
    ],
)
def test_an_imprecise_loss_is_described(loss, words):
    generator = torch.Generator().manual_seed(0)
    with pytest.raises(AssertionError, match=words):
        testing.check_precision(loss, *torch.randn(2, 8, 16, generator=generator, dtype=torch.float64))


def rank_one_fails(rank: int, word: str) -> None:
    if rank == 1:
        raise ValueError(word)


def test_what_one_of_two_processes_raises_is_raised():
    with pytest.raises(Exception, match="ValueError: trouble"):
        testing.in_two_processes(rank_one_fails, "trouble")
