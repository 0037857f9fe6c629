"""Whether a GPU is to make the views by compiled code: only where that proves equal, faster, and worth compiling."""

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
"""Seconds that a run must spend on plain views before compiled ones, which cost less than a minute, are tried."""
TIMED = 3
"""Times that views are made for timing, after a first one."""
GREY_LEVEL = 1 / 255
"""How far a compiled view may lie from the plain one, where white is 1: what a uint8 image can show."""
STRAY_PIXELS = 1e-4
"""Share of the values that may lie farther: solarizing makes much of a difference in the last digit."""


def decide_compiled_views(
    setup: "TrainingSetup", steps: int, known: bool | None, log: Callable[[str], None]
) -> tuple[bool, bool | None]:
    """(whether this run compiles its views, whether compiled ones are known to be faster; None: not known)."""
    if not _can_be_compiled(setup):
        return False, known
    images = stored_batch(setup, 0).images[: setup.config.micro_batch]
    plain = _plain_seconds(setup, images)
    if distributed.from_main(plain * steps) < COMPILING_PAYS:
        return False, known
    if known is None:
        tried = [try_compiled(recipe, images) for recipe in multi_view_augmentations(setup.augmentation)]
        for recipe, (_, found) in zip(multi_view_augmentations(setup.augmentation), tried):
            log(f"views of {recipe.image_size} px: {found}")
        known = in_all([in_all(theirs) for theirs in distributed.everyones([faster for faster, _ in tried])])
    release(setup.device)
    return bool(known), known


def _can_be_compiled(setup: "TrainingSetup") -> bool:
    """The CPU has kernels of its own for them, which need no trial."""
    return setup.device.type == "cuda" and setup.config.kernels == "auto" and setup.config.compile is not False


def _plain_seconds(setup: "TrainingSetup", images: Tensor) -> float:
    """What making the views by plain operations takes; 0 where that fails, which the first step will report better."""
    try:
        return sum(_views_of(recipe, images)[1] for recipe in multi_view_augmentations(setup.augmentation))
    except RuntimeError:
        return 0.0


def in_all(answers: list[bool | None]) -> bool | None:
    """No where one of them is no, else unknown where one is, or where there is none."""
    if False in answers:
        return False
    return None if None in answers or not answers else True


def try_compiled(views: MultiViewAugmentation, images: Tensor) -> tuple[bool | None, str]:
    """(whether a recipe's compiled views are as good and faster, what was found, in words); they stay uncompiled.

    As good: views of uint8 `images` are the plain ones to a grey level. None: memory ran out, which may not be so
    another day.
    """
    try:
        expected, plain = _views_of(views, images)
        views.compile()
        _views_of(views, images)
        found, compiled = _views_of(views, images)
        others = _share_of_others(found, expected, views)
    except Exception as error:
        return None if is_out_of_memory(error) else False, f"cannot be compiled here: {in_one_line(error)}"
    finally:
        views.compile_no_longer()
    faster = others <= STRAY_PIXELS and compiled < MARGIN * plain
    figures = f"{plain * 1e3:.2f} ms plain, {compiled * 1e3:.2f} ms compiled"
    unlike = f", {100 * others:.2g} % of the pixels unlike" if others > STRAY_PIXELS else ""
    return faster, f"{figures}{unlike}: {'compiled' if faster else 'plain'}"


def _share_of_others(found: Tensor, expected: Tensor, views: MultiViewAugmentation) -> float:
    """Share of the values that are more than a grey level apart."""
    deviation = torch.tensor(views.std, device=found.device).view(3, 1, 1)
    return float(((found - expected).abs() * deviation > GREY_LEVEL).float().mean())


def _views_of(views: MultiViewAugmentation, images: Tensor) -> tuple[Tensor, float]:
    """The views from one seed, and the seconds that making them takes, at best."""
    times = []
    for _ in range(1 + TIMED):
        generator = torch.Generator(images.device).manual_seed(0)
        with Stopwatch(images.device) as watch:
            (made,) = views(images, generator)
        times.append(watch.seconds)
    return made, min(times[1:])
