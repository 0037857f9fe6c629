"""Settings that fit the task: advice of origin `auto` for everything that neither a recipe nor the user has set.

docs/auto-settings.md explains the rules and the measurements that they rest on. General rules are here; methods and
augmentations add their own in a class method `fitted(task)`.
"""

from collections.abc import Callable
from typing import Any

from sslkit import plugins
from sslkit.backbones.activations import activation_bytes
from sslkit.config.base import Choice
from sslkit.config.layers import Layer
from sslkit.config.resolve import load_component, requested_choice
from sslkit.config.task import Fitted, Task
from sslkit.errors import UserError
from sslkit.machine.devices import pick_device
from sslkit.machine.memory import free_memory

ASSUMED_IMAGES, ASSUMED_SIZE = 50_000, 32
"""Taken where data cannot be counted before it is downloaded or decompressed."""
LARGEST_BATCH, SMALLEST_BATCH = 128, 16
BATCHES_PER_EPOCH = 8
STEPS, STEPS_ON_CUDA = 2_500, 25_000
"""Optimizer steps of a run whose epochs nobody has set."""
FEWEST_EPOCHS = 10
OTHER_BYTES = 1 << 30
"""Memory of a run besides activations: libraries, weights, optimizer, images of a batch; about a GiB as measured."""
MEMORY_SHARE = 0.75
"""Share of the free memory that a step may be expected to take."""
SMALL_STEP = 128 * 2 * 32**2
"""Pixels of all views of a step below which no network is expected to run out of memory."""


def fitted_advice(requested: dict[str, Any]) -> list[Layer]:
    """Return one layer per setting that follows from the task; its origin gives the reason.

    requested: the user's settings and the names of components, by dotted key. Batch size and epochs that the user has
    set are facts that the others follow from. Mistakes among them are reported where they are validated.
    """
    images, image_size, counted = _images(requested_choice("data", requested))
    batch_size = _set_by_user(requested, "batch_size") or batch_size_for(images, counted)
    epochs = _set_by_user(requested, "epochs") or epochs_for(images, batch_size.value, _steps(requested))
    if requested.get("budget") is not None:
        epochs = epochs._replace(reason="a guess, until the run has measured how many fit into the budget")
    task = Task(images, image_size, batch_size.value, epochs.value)
    advice = {"batch_size": batch_size, "epochs": epochs, **general(task), **_of_components(requested, task)}
    advice["micro_batch"] = _micro_batch(requested, image_size, advice["batch_size"].value)
    return [_names(requested), *(Layer(f"auto: {f.reason}", {key: f.value}) for key, f in advice.items())]


def general(task: Task) -> dict[str, Fitted]:
    """Return advice for the optimizer, whatever the method."""
    return {
        "optimizer.name": Fitted("adamw", "learns faster than LARS and SGD in few steps"),
        "optimizer.lr": Fitted(2e-3, "for AdamW, batches of up to 128"),
        "optimizer.weight_decay": Fitted(1e-4, "short runs need little"),
        "optimizer.warmup_epochs": Fitted(max(1.0, task.epochs / 20), "a twentieth of the run, one epoch at least"),
    }


def batch_size_for(images: int, counted: str = "") -> Fitted:
    """Return the largest power of two up to 128 that gives eight steps per epoch, 16 at least."""
    size = LARGEST_BATCH
    while size > SMALLEST_BATCH and images < size * BATCHES_PER_EPOCH:
        size //= 2
    return Fitted(
        max(2, min(size, images)), f"{counted or f'{images:,} images'}; many steps matter more than large batches"
    )


def epochs_for(images: int, batch_size: int, steps: int = STEPS) -> Fitted:
    """Return the epochs that take about `steps` steps; ten epochs at least."""
    per_epoch = -(-images // batch_size)
    epochs = max(FEWEST_EPOCHS, round(steps / per_epoch))
    return Fitted(epochs, f"{epochs * per_epoch:,} steps of {batch_size} images")


def _micro_batch(requested: dict[str, Any], image_size: int, batch_size: int) -> Fitted:
    """Return micro-batches that fit into the free memory if the whole batch does not, else null."""
    if requested.get("devices", 1) != 1:
        return Fitted(None, "not worked out for several processes, whose shares of the memory are not known yet")
    augmentation = requested_choice("augment", requested | _names(requested).values)
    views = getattr(augmentation and augmentation.options, "views", 2)
    if batch_size * views * image_size**2 < SMALL_STEP:
        return Fitted(None, "not needed for small steps")
    free, view = _free_memory(requested), _view_bytes(requested, image_size)
    if not free or not view:
        return Fitted(None, "the memory that a step needs is not known")
    needed = (batch_size * views * view + OTHER_BYTES) / 2**30
    size = micro_batch_for(batch_size, views * view, int(MEMORY_SHARE * free) - OTHER_BYTES)
    reason = f"a batch of {batch_size} needs about {needed:.1f} GiB, {free / 2**30:.1f} are free"
    return Fitted(None if size == batch_size else size, reason)


def _view_bytes(requested: dict[str, Any], image_size: int) -> int | None:
    """Return the bytes of the activations of one view, None if they are not known."""
    method, backbone = load_component("method", requested), requested_choice("backbone", requested)
    if method is None or backbone is None:
        return None
    return activation_bytes(method.trained_backbone(backbone), image_size)


def micro_batch_for(batch_size: int, image_bytes: int, available: int) -> int:
    """Return the largest of batch_size, batch_size/2, /4 ... whose images fit into `available` bytes; at least 2."""
    size = batch_size
    while size % 2 == 0 and size > 2 and size * image_bytes > available:
        size //= 2
    return size


def _free_memory(requested: dict[str, Any]) -> int | None:
    try:
        return free_memory(pick_device(str(requested.get("device", "auto"))))
    except RuntimeError:
        return None


def _steps(requested: dict[str, Any]) -> int:
    try:
        device = pick_device(str(requested.get("device", "auto")))
    except RuntimeError:
        return STEPS
    return STEPS_ON_CUDA if device.type == "cuda" else STEPS


def _images(data: Choice | None) -> tuple[int, int, str]:
    """Return the number of images, the image size, and the number in words."""
    source = plugins.find("datasets", data.name)(data.options) if data else None
    count = _unless_mistaken(source.count) if source else None
    size = _unless_mistaken(source.image_size) if source and count else None
    if not count:
        return ASSUMED_IMAGES, size or ASSUMED_SIZE, f"{ASSUMED_IMAGES:,} images assumed, they are not counted yet"
    return count, size or ASSUMED_SIZE, ""


def _unless_mistaken(measure: Callable[[], int | None]) -> int | None:
    """Return None for what is reported as a mistake elsewhere."""
    try:
        return measure()
    except UserError:
        return None


def _set_by_user(requested: dict[str, Any], key: str) -> Fitted | None:
    value = requested.get(key)
    return Fitted(value, "set") if isinstance(value, int) and value > 0 else None


def _of_components(requested: dict[str, Any], task: Task) -> dict[str, Fitted]:
    """Return the advice of the method and of the augmentation that will be used."""
    augmentation = load_component("augment", _names(requested).values)
    own = {f"augment.{key}": fitted for key, fitted in _fitted(augmentation, task).items()}
    return own | _fitted(load_component("method", requested), task)


def _names(requested: dict[str, Any]) -> Layer:
    """Return the method, and the augmentation that the user, the data or the method names: advice is for these."""
    method = load_component("method", requested)
    augmentation = requested.get("augment.name") or getattr(method, "augment", "simclr")
    names = {"method.name": requested["method.name"], "augment.name": augmentation}
    return Layer(f"method {requested['method.name']}", names)


def _fitted(component: Any, task: Task) -> dict[str, Fitted]:
    return component.fitted(task) if hasattr(component, "fitted") else {}
