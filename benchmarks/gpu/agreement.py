"""The same training step elsewhere or otherwise: on the device and on the CPU, in lower precision, compiled.

Losses and gradients of `train_step` are compared, which is the step of a run. Where two devices are compared, views are
made once, on the CPU, and what a method draws by itself comes from the CPU's generator.
"""

import json
import math
import statistics
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from sslkit_bench.contestants import StoredViews
from torch import Tensor

from benchmarks.gpu.draws import DrawsOnCPU
from benchmarks.gpu.settings import Result, Settings, Skipped
from sslkit import plugins
from sslkit.augment.multi_view import Kernels
from sslkit.config.components import config_class
from sslkit.config.resolve import resolve
from sslkit.machine.precision import exact_products
from sslkit.testing.examples import small_images
from sslkit.training.build import build
from sslkit.training.execution import Execution, multi_view_augmentations
from sslkit.training.setup import TrainingSetup
from sslkit.training.step import train_step
from sslkit.training.tune import AGREEMENT
from sslkit.training.tune.trials import stored_batch
from tests.helpers.small_methods import FEW_CROPS, OPTIONS

STEPS = 2
"""The second loss shows the update and what `after_step` did."""
UPDATES = {"optimizer.name": "sgd", "optimizer.lr_scaling": "none", "optimizer.warmup_epochs": 0}
"""Plain updates: those of Adam have the size of the rate, however small and uncertain the gradient is."""


# --- every method: the device against the CPU ---

FACTOR = 10.0
"""How many times further from float64 the device may be than the CPU is: the order of sums differs, no more."""
LEAST = {"first_loss": 1e-5, "second_loss": 1e-3, "gradient": 5e-3}
"""Relative differences from float64 that are always allowed. Gradient: Euclidean norm of all parameters together.

Rounding decides which of two equal values a max-pooling passes on, or whether a ReLU does: 1e-3 of a gradient at times.
"""


def methods(settings: Settings) -> list[str]:
    return plugins.names("methods")


def against_cpu(name: str, settings: Settings) -> Result:
    """Compare two steps of a method in fp32 with float64, on the device and on the CPU.

    How precise fp32 is depends on the method and its batch norm, so the CPU is the yardstick. Where the device is the
    CPU, it computes without oneDNN.
    """
    exact, cpu, device = (setup_of(name, place, settings) for place in ("cpu", "cpu", settings.device))
    exact.method.double()
    views = views_of(exact)
    expected = trace(exact, [view.double() for view in views], draws=DrawsOnCPU())
    usual = apart(trace(cpu, views, draws=DrawsOnCPU()), expected)
    with nullcontext() if settings.on_card else torch.backends.mkldnn.flags(enabled=False):
        found = trace(device, views, draws=DrawsOnCPU())
    differences = apart(found, expected)
    allowed = {key: max(FACTOR * usual[key], least) for key, least in LEAST.items()}
    return {
        "losses": found.losses,
        "losses_float64": expected.losses,
        "parameters": len(expected.gradients),
        "device_from_float64": differences,
        "cpu_from_float64": usual,
        "allowed": allowed,
        "passed": found.gradients.keys() == expected.gradients.keys() and within(differences, allowed),
    }


@dataclass
class Trace:
    """What is compared: losses of all steps, and the gradients of the first, in float64 on the CPU."""

    losses: list[float] = field(default_factory=list)
    gradients: dict[str, Tensor] = field(default_factory=dict)


def setup_of(
    name: str, device: str, settings: Settings, execution: Execution | None = None, **changes: Any
) -> TrainingSetup:
    """Build a run of a method on a few rendered images; `changes` are settings, with __ in place of a dot."""
    batch = settings.sized(16, 8)
    given = {
        "method": name,
        "backbone": settings.sized("resnet18", "squeezenet"),
        "backbone.stem": "imagenet",
        "device": device,
        "batch_size": batch,
        "epochs": 2,
        "data": "shapes",
        "data.n_train": 4 * batch,
        "data.n_test": 8,
        "data.image_size": 64,
        "loader": "resident",
        "precision": "fp32",
        "tune": "off",
        "compile": False,
        "evaluators": [],
        "optimizer.lr": 0.01,
        # Clipping to no effect: it frees the gradients that the optimizer gets from fp16's scale.
        "optimizer.clip_grad": 1e9,
        **UPDATES,
        **only_network(name),
        **settings.sized({}, small(name)),
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    # Text stands as it is, without quotes: it is taken as it is typed.
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}
    words = [f"{key}={text}" for key, text in texts.items() if given[key] is not None]
    return build(resolve(words).config, lambda text: None, execution)


def only_network(name: str) -> dict[str, Any]:
    """Return the settings of the network that a method asks for, if it does."""
    network = plugins.find("methods", name).defaults.get("backbone.name")
    return {"backbone": network, "backbone.stem": None} if network else {}


def small(name: str) -> dict[str, Any]:
    """Return settings that make a method's heads and number of views small."""
    options = {f"method.{key}": value for key, value in OPTIONS.get(name, {}).items()}
    crops = {f"augment.{key}": value for key, value in FEW_CROPS.get(name, {}).items() if key != "name"}
    return options | crops


def views_of(setup: TrainingSetup) -> list[Tensor]:
    """Return the views of the first batch, made on the setup's device."""
    views: list[Tensor] = setup.augmentation(stored_batch(setup, 0).images, torch.Generator().manual_seed(0))
    return views


def trace(
    setup: TrainingSetup,
    views: list[Tensor] | None = None,
    steps: int = STEPS,
    draws: AbstractContextManager[Any] | None = None,
) -> Trace:
    """Take steps on one batch, on `views` if they are given; return what happened."""
    if views is not None:
        setup = replace(setup, augmentation=StoredViews([view.to(setup.device) for view in views]))
    image_batch, seen = stored_batch(setup, 0), Trace()

    def keep(*_: Any) -> None:
        seen.gradients = seen.gradients or gradients(setup)

    setup.optimizer.register_step_pre_hook(keep)
    # A run allows TF32 on a card, which would hide everything smaller.
    with exact_products(), draws or nullcontext():
        for step in range(steps):
            setup.schedule.set(step)
            seen.losses.append(float(train_step(setup, [image_batch], step)["loss"]))
    return seen


def gradients(setup: TrainingSetup) -> dict[str, Tensor]:
    """Return copies of all gradients, in float64 on the CPU."""
    named = setup.method.named_parameters()
    return {name: p.grad.detach().double().cpu().contiguous() for name, p in named if p.grad is not None}


def apart(found: Trace, expected: Trace) -> dict[str, float]:
    """Return the relative differences of two traces of two steps."""
    first, second = (relative(a, b) for a, b in zip(found.losses, expected.losses))
    gradient = difference_of(found.gradients, expected.gradients)
    return {"first_loss": first, "second_loss": second, "gradient": gradient}


def within(differences: dict[str, float], allowed: dict[str, float]) -> bool:
    """Return True if no difference is above what is allowed, or not a number."""
    return all(differences[key] <= allowed[key] for key in allowed)


def relative(a: float, b: float) -> float:
    """Return the difference of two losses relative to the second, or as it is where that is below 1."""
    return abs(a - b) / max(abs(b), 1.0)


def difference_of(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the Euclidean norm of the difference of all gradients over that of the expected ones."""
    a, b = flat(found, expected), flat(expected, expected)
    return float((a - b).norm() / (b.norm() if b.any() else 1))


def flat(gradients: dict[str, Tensor], order: dict[str, Tensor]) -> Tensor:
    """Return all gradients as one vector; one that is missing is 0."""
    parts = [gradients.get(name, torch.zeros_like(like)).flatten() for name, like in order.items()]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *parts])


# --- every method in half precision ---

HALF = ("bf16", "fp16")
SCALE = 2.0**10
"""Scale of the loss in fp16. A run starts higher, and skips updates until it has come down."""
COSINE = {"bf16": 0.5, "fp16": 0.9}
"""Smallest cosine between the gradients in half precision and in fp32; bf16 has 8 bits, and batch norm few images."""


def methods_in_half(settings: Settings) -> list[str]:
    names = settings.sized(methods(settings), ["byol"])
    return [f"{name} {precision}" for name in names for precision in HALF]


def half_precision(item: str, settings: Settings) -> Result:
    """Compare the first steps of a method in bf16 or fp16 with fp32, on the device itself."""
    name, precision = item.split()
    full = setup_of(name, settings.device, settings)
    views = views_of(full)
    expected = trace(full, views)
    other = setup_of(name, settings.device, settings, precision=precision)
    other.scaler = torch.amp.GradScaler(other.device.type, init_scale=SCALE, enabled=precision == "fp16")
    found = trace(other, views)
    finite = all(map(math.isfinite, found.losses))
    difference = relative(found.losses[0], expected.losses[0])
    cosine = gradient_cosine(found.gradients, expected.gradients)
    return {
        "losses": found.losses,
        "losses_fp32": expected.losses,
        "first_loss_differs_by": difference,
        "gradient_cosine": cosine,
        "allowed": {"first_loss": AGREEMENT[precision], "gradient_cosine": COSINE[precision]},
        "passed": finite and difference <= AGREEMENT[precision] and cosine >= COSINE[precision],
    }


def gradient_cosine(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Return the cosine between all gradients; 1 where both are 0."""
    a, b = flat(found, expected), flat(expected, expected)
    return float(a @ b / (a.norm() * b.norm())) if b.any() else float(not a.any())


# --- every way to execute the network ---

EXECUTIONS: dict[str, tuple[str, Execution]] = {
    "channels first": ("resnet18", Execution(channels_last=False)),
    "bf16, depthwise in fp32": ("mobilenetv3_large", Execution("bf16", depthwise_fp32=True)),
    "views compiled": ("resnet18", Execution(compiled_views=True)),
    "CUDA graphs": ("resnet18", Execution(compile="graphs")),
    "compiled": ("resnet18", Execution(compile="default")),
    "bf16, CUDA graphs, views compiled": ("resnet18", Execution("bf16", compile="graphs", compiled_views=True)),
}
"""Description -> (network, execution) that is compared with the plain one in fp32."""
GRAPH_STEPS = 6
"""The first steps compile and record a CUDA graph; the later ones replay it."""
DRIFT = 4
"""How much further apart the mean of all losses may be than the first, because weights drift apart."""


def executions(settings: Settings) -> list[str]:
    return list(EXECUTIONS)


def executed(item: str, settings: Settings) -> Result:
    """Compare the first steps of SimCLR in one execution with those in the plain one."""
    network, execution = EXECUTIONS[item]
    if (execution.compile != "no" or execution.compiled_views) and (settings.toy or not settings.on_card):
        raise Skipped("compiled for a card only, and not at toy size: compilation takes a minute")
    # A small rate, because differences of rounding grow from step to step.
    plain, other = (
        trace(
            setup_of("simclr", settings.device, settings, each, backbone=network, optimizer__lr=1e-3), steps=GRAPH_STEPS
        )
        for each in (Execution(), execution)
    )
    differences = [relative(a, b) for a, b in zip(other.losses, plain.losses)]
    allowed = AGREEMENT[execution.precision]
    return {
        "execution": str(execution),
        "losses": other.losses,
        "losses_plain": plain.losses,
        "differences": differences,
        "allowed": {"first_loss": allowed, "mean": DRIFT * allowed},
        "passed": differences[0] <= allowed and statistics.mean(differences) <= DRIFT * allowed,
    }


# --- every augmentation: the device against the CPU ---

VIEWS_SIZE, PIXEL, FEW = 48, 1e-3, 1e-3
"""Pixels of the images; difference, in deviations of a channel, that counts; share of values that may differ more.

Rounding moves a value across the threshold of solarize, or a hue across 0, now and then.
"""


def augmentations(settings: Settings) -> list[str]:
    return plugins.names("augmentations")


def views_against_cpu(name: str, settings: Settings) -> Result:
    """Compare views made on the device with those of plain operations on the CPU, from the same random numbers."""
    torch.manual_seed(0)
    images = small_images(VIEWS_SIZE)
    expected = views_of_augmentation(name, images, "plain")
    # As a run does; it is recorded and not judged.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    as_in_a_run = pixels_apart(views_of_augmentation(name, images.to(settings.device), "auto"), expected)
    with exact_products():
        found = pixels_apart(views_of_augmentation(name, images.to(settings.device), "auto"), expected)
    return {
        "views": [list(view.shape) for view in expected],
        "without_tf32": found,
        "as_in_a_run": as_in_a_run,
        "allowed": {"difference": PIXEL, "share_beyond": FEW},
        "passed": found["share_beyond"] <= FEW,
    }


def pixels_apart(found: list[Tensor], expected: list[Tensor]) -> dict[str, float]:
    """Return how far the values of views are from those of others: median, largest, share beyond PIXEL."""
    differences = torch.cat([(a.cpu() - b).abs().flatten() for a, b in zip(found, expected)])
    return {
        "median": float(differences.median()),
        "largest": float(differences.max()),
        "share_beyond": float((differences > PIXEL).float().mean()),
    }


def views_of_augmentation(name: str, images: Tensor, kernels: Kernels) -> list[Tensor]:
    """Return the views of images, uint8 [B, 3, H, W], by a registered augmentation in its default settings."""
    augmentation_class = plugins.find("augmentations", name)
    augmentation = augmentation_class(config_class(augmentation_class)(), VIEWS_SIZE, (0.5,) * 3, (0.25,) * 3)
    for multi_view in multi_view_augmentations(augmentation):
        multi_view.kernels = kernels
    views: list[Tensor] = augmentation.to(images.device)(images, torch.Generator().manual_seed(0))
    return views
