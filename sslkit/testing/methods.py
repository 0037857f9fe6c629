"""The contract of a method."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sslkit import plugins
from sslkit.backbones import create_backbone
from sslkit.config.base import Choice, Config
from sslkit.config.components import config_class
from sslkit.config.run import Optimizer, RunConfig
from sslkit.config.task import Task
from sslkit.methods.base import Batch, Method, RunInfo
from sslkit.testing.contract import checked_settings, expect, seeded
from sslkit.testing.examples import IMAGES, TinyBackbone, small_images
from sslkit.testing.modules import check_gradients, restore


def check_method(
    method_class: type[Method],
    image_size: int = 32,
    backbone: str | Callable[[], nn.Module] | None = None,
    **options: Any,
) -> None:
    """Check a method: settings, a few steps on its own augmentation, and that its state_dict is complete.

    `backbone` is a registered name, or makes a module with `.width`; None: the one in the method's `defaults`, else
    `TinyBackbone`.
    """
    expect(issubclass(method_class, Method), "a method is a subclass of sslkit.methods.Method")
    config = checked_settings(method_class, options)
    _check_advice(method_class)
    backbone = backbone or method_class.defaults.get("backbone.name", TinyBackbone)
    with seeded(0):
        method = _make_method(method_class, config, image_size, backbone)
        twin = _make_method(method_class, config, image_size, backbone)
        batch = _make_batch(method_class, image_size)
        _check_backbone_kept_once(method)
        if method_class.embed is not Method.embed:
            _check_embeddings(method, batch)
        _check_forward(method, batch)
        _check_after_step(method, batch)
        _check_state_is_complete(method, twin, batch)


def _check_advice(method_class: type[Method]) -> None:
    for key in method_class.defaults:
        section, _, field = key.partition(".")
        expect(section in RunConfig.model_fields, f"defaults: {key} is not a setting of a run")
        expect(section != "optimizer" or field in Optimizer.model_fields, f"defaults: {key} is not a setting")
    advised = {k.partition(".")[2]: v for k, v in method_class.defaults.items() if k.startswith("optimizer.")}
    Optimizer.model_validate(advised)
    plugins.find("augmentations", method_class.augment)
    for images in (IMAGES, 10**6):
        _check_fitted(method_class, Task(images=images, image_size=32, batch_size=min(images, 128), epochs=10))


def _check_fitted(method_class: type[Method], task: Task) -> None:
    fitted = method_class.fitted(task)
    for key, advice in fitted.items():
        section = key.partition(".")[0]
        expect(section in RunConfig.model_fields, f"fitted: {key} is not a setting of a run")
        expect(bool(advice.reason), f"fitted: {key} has no reason, which --dry-run shows")
    for section, settings in (("method", config_class(method_class)), ("optimizer", Optimizer)):
        chosen = {k.partition(".")[2]: f.value for k, f in fitted.items() if k.startswith(f"{section}.")}
        settings.model_validate(chosen)


def _make_method(
    method_class: type[Method], config: Config, image_size: int, backbone: str | Callable[[], nn.Module]
) -> Method:
    if isinstance(backbone, str):
        net = create_backbone(method_class.trained_backbone(Choice(name=backbone)), image_size)
    else:
        net = backbone()
    return method_class(config, net, RunInfo(images=4 * IMAGES, classes=2, image_size=image_size))


def _make_batch(method_class: type[Method], image_size: int) -> Batch:
    augmentation_class = plugins.find("augmentations", method_class.augment)
    augmentation = augmentation_class(
        config_class(augmentation_class)(), image_size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    )
    labels = torch.arange(IMAGES) % 2 if method_class.uses_labels else None
    return Batch(
        augmentation(small_images(image_size), torch.Generator().manual_seed(0)),
        torch.randperm(4 * IMAGES)[:IMAGES],
        labels,
    )


def _check_backbone_kept_once(method: Method) -> None:
    names = [n for n, m in method.named_modules(remove_duplicate=False) if m is method.backbone]
    expect(isinstance(getattr(method.exported, "width", None), int), "exported must be a backbone, with its width")
    expect(
        names == ["backbone"],
        f"the backbone must be registered once, as `backbone`, not as {names}: inside another module it is saved twice",
    )


def _check_embeddings(method: Method, batch: Batch) -> None:
    """Check for one row per image, because rows of different micro-batches and processes are concatenated."""
    with seeded(2), torch.no_grad():
        embedded = method.embed(batch)
    expect(isinstance(embedded, dict) and bool(embedded), "embed must return a dict of tensors")
    for name, rows in embedded.items():
        expect(
            isinstance(rows, Tensor) and rows.ndim > 0 and len(rows) == IMAGES,
            f"embed: {name} must have one row per image, [{IMAGES}, ...], the image first: use batch.by_image(...)",
        )


def _check_forward(method: Method, batch: Batch) -> None:
    before = [crops.clone() for crops in batch.crops]
    out = method(batch)
    same = all(torch.equal(a, b) for a, b in zip(before, batch.crops))
    expect(same, "forward must not change the views in place")
    expect(isinstance(out, dict) and "loss" in out, 'forward must return a dict with a "loss"')
    loss = out["loss"]
    expect(loss.ndim == 0 and bool(loss.isfinite()), f"the loss must be a finite scalar, not {loss}")
    expect(loss.requires_grad, "the loss must carry a graph for back-propagation")
    for name, value in out.items():
        plain = isinstance(value, Tensor) and value.ndim == 0 and not value.requires_grad
        expect(
            name == "loss" or plain,
            f"{name} is logged: it must be a detached scalar tensor",
        )
    loss.backward()
    check_gradients(method)


def _check_after_step(method: Method, batch: Batch) -> None:
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01)
    for progress in (0.0, 0.5, 1.0):
        optimizer.zero_grad()
        method(batch)["loss"].backward()
        optimizer.step()
        before = _trained(method)
        method.after_step(progress)
        changed = [name for name, value in _trained(method).items() if not torch.equal(value, before[name])]
        expect(
            not changed,
            f"after_step must not change trainable parameters: {', '.join(changed)}",
        )


def _trained(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def _check_state_is_complete(method: Method, twin: Method, batch: Batch) -> None:
    """A new twin that loads the state_dict must continue exactly as the method does."""
    method.zero_grad()
    restore(method, twin)
    for progress in (0.5, 0.6):
        with seeded(1):
            loss = method(batch)["loss"]
            method.after_step(progress)
        with seeded(1):
            again = twin(batch)["loss"]
            twin.after_step(progress)
        expect(
            torch.equal(loss, again),
            "a method restored from its state_dict must continue exactly as before, but its loss differs: keep "
            "every tensor that changes in a parameter or a registered buffer",
        )
