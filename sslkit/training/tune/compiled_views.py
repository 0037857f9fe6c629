"""Decide whether to compile the augmentation on a GPU: only if that proves equal, faster and worth the compilation."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sslkit.augment.multi_view import MultiViewAugmentation
from sslkit.errors import in_one_line
from sslkit.machine import distributed
from sslkit.machine.devices import release
from sslkit.machine.stopwatch import Stopwatch
from sslkit.training.execution import multi_view_augmentations
from sslkit.training.out_of_memory import is_out_of_memory
from sslkit.training.tune.timings import MARGIN
from sslkit.training.tune.trials import stored_batch

if TYPE_CHECKING:
    from sslkit.training.setup import TrainingSetup

COMPILING_PAYS = 120.0
"""Expected seconds that a run spends on uncompiled views beyond which compilation, of less than a minute, is tried."""
TIMED = 3
"""Timed repetitions of making the views, after one for warm-up."""
GREY_LEVEL = 1 / 255
"""Maximum difference of a compiled view from the uncompiled one, where white is 1: the resolution of uint8 images."""
STRAY_PIXELS = 1e-4
"""Share of the values that may differ by more, because solarization amplifies rounding errors at its threshold."""


def decide_compiled_views(
    setup: "TrainingSetup", steps: int, known: bool | None, log: Callable[[str], None]
) -> tuple[bool, bool | None]:
    """Return (compile, faster): compile is True if this run is to compile its views.

    faster: True or False if compiled views are known to be faster or not; None if unknown. known: the same, from
    earlier runs.
    """
    if not _can_be_compiled(setup):
        return False, known
    images = stored_batch(setup, 0).images[: setup.config.micro_batch]
    plain = _plain_seconds(setup, images)
    if distributed.from_main(plain * steps) < COMPILING_PAYS:
        return False, known
    if known is None:
        tried = [try_compiled(views, images) for views in multi_view_augmentations(setup.augmentation)]
        for views, (_, description) in zip(multi_view_augmentations(setup.augmentation), tried):
            log(f"views of {views.image_size} px: {description}")
        known = in_all([in_all(theirs) for theirs in distributed.everyones([faster for faster, _ in tried])])
    release(setup.device)
    return bool(known), known


def _can_be_compiled(setup: "TrainingSetup") -> bool:
    """Return True if the settings leave compilation open on a GPU; the CPU has kernels of its own for views."""
    return setup.device.type == "cuda" and setup.config.kernels == "auto" and setup.config.compile is not False


def _plain_seconds(setup: "TrainingSetup", images: Tensor) -> float:
    """Return the seconds that uncompiled views take; 0 if they fail, which the first training step reports better."""
    try:
        return sum(_views_of(views, images)[1] for views in multi_view_augmentations(setup.augmentation))
    except RuntimeError:
        return 0.0


def in_all(answers: list[bool | None]) -> bool | None:
    """Return False if any answer is False; otherwise None if any is None or there are none; otherwise True."""
    if False in answers:
        return False
    return None if None in answers or not answers else True


def try_compiled(views: MultiViewAugmentation, images: Tensor) -> tuple[bool | None, str]:
    """Return (True if compiled views are equal and faster, a description of the measurement).

    Equal means that the views of uint8 `images` agree with the uncompiled ones to a grey level. The first value is None
    if memory ran out, which may be temporary. `views` is uncompiled afterwards.
    """
    try:
        expected, plain = _views_of(views, images)
        views.compile()
        _views_of(views, images)
        actual, compiled = _views_of(views, images)
        different = _share_different(actual, expected, views)
    except Exception as error:
        return None if is_out_of_memory(error) else False, f"cannot be compiled here: {in_one_line(error)}"
    finally:
        views.compile_no_longer()
    faster = different <= STRAY_PIXELS and compiled < MARGIN * plain
    figures = f"{plain * 1e3:.2f} ms plain, {compiled * 1e3:.2f} ms compiled"
    unequal = f", {100 * different:.2g} % of the pixels differ" if different > STRAY_PIXELS else ""
    return faster, f"{figures}{unequal}: {'compiled' if faster else 'plain'}"


def _share_different(actual: Tensor, expected: Tensor, views: MultiViewAugmentation) -> float:
    """Return the share of the values that differ by more than a grey level."""
    deviation = torch.tensor(views.std, device=actual.device).view(3, 1, 1)
    return float(((actual - expected).abs() * deviation > GREY_LEVEL).float().mean())


def _views_of(views: MultiViewAugmentation, images: Tensor) -> tuple[Tensor, float]:
    """Return the views from a fixed seed, and the shortest time that making them took, in seconds."""
    times = []
    for _ in range(1 + TIMED):
        generator = torch.Generator(images.device).manual_seed(0)
        with Stopwatch(images.device) as watch:
            (made,) = views(images, generator)
        times.append(watch.seconds)
    return made, min(times[1:])
