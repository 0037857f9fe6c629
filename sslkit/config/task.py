"""Settings that follow from the task: its images, their size, and the number of steps that can be taken."""

from dataclasses import dataclass
from typing import Any, NamedTuple

SHORT = 50_000
"""Steps below which a run is short: papers take about 100,000 for CIFAR-10, and more for ImageNet."""


class Fitted(NamedTuple):
    """A value of a setting that follows from the task, with the fact that it follows from."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Task:
    """Facts about a run that settings can follow from."""

    images: int
    """Number of images to pre-train on."""
    image_size: int
    """Height and width of a view, in pixels."""
    batch_size: int
    """Images per loss."""
    epochs: int
    """Passes over the images."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch, the last incomplete batch included."""
        return -(-self.images // self.batch_size)

    @property
    def steps(self) -> int:
        """Optimizer steps of the run."""
        return self.steps_per_epoch * self.epochs

    @property
    def small(self) -> bool:
        """True for images of up to 64 pixels, such as CIFAR's."""
        return self.image_size <= 64

    @property
    def short(self) -> bool:
        """True for runs of half the steps that papers' settings are made for, or fewer."""
        return self.steps < SHORT

    def when_short(self, value: Any, otherwise: Any) -> Fitted:
        """Return `value` for a short run, else the paper's value."""
        if self.short:
            return Fitted(value, f"{self.steps:,} steps are few")
        return Fitted(otherwise, f"the paper's, for {self.steps:,} steps")

    def prototypes(self, most: int) -> Fitted:
        """Return a number of prototypes of which each can have thirty images, between 16 and `most`."""
        return Fitted(min(most, max(16, self.images // 30)), f"one for thirty of {self.images:,} images")

    def momentum(self, longest: float) -> Fitted:
        """Return the momentum of a slow copy of the network: it averages a twelfth of the run, at most as `longest`.

        A target that averages over more steps than the run has stays close to its random initialisation.
        """
        value = round(max(0.9, 1 - 12 / max(self.steps, 1)), 4)
        if value >= longest:
            return Fitted(longest, f"the paper's, for {self.steps:,} steps")
        return Fitted(value, f"averages a twelfth of {self.steps:,} steps")

    def queue(self, longest: int, share: int = 4) -> Fitted:
        """Return the length of a queue of embeddings: a power of two, at most one `share`-th of the images."""
        length = self.batch_size
        while length * 2 <= min(longest, self.images // share):
            length *= 2
        return Fitted(length, f"at most 1/{share} of {self.images:,} images")
