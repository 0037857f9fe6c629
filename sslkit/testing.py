"""Contract checks for the tests of plugin authors: one call checks a component as built-in ones are checked.

    from sslkit.testing import check_method

    def test_contract():
        check_method(MyMethod, temperature=0.2)

Each takes the component and its options, runs it on a few small images on the CPU, and raises AssertionError
with a sentence that says what the contract wants. None draws from or changes torch's global random numbers
for the caller.
"""

import copy
import inspect
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit import plugins
from sslkit.config import Choice, Config, Optimizer, RunConfig, config_class
from sslkit.methods.base import Batch, Method, RunInfo

__all__ = [
    "TinyBackbone",
    "check_augmentation",
    "check_backbone",
    "check_dataset",
    "check_evaluator",
    "check_method",
]

IMAGES = 8


class TinyBackbone(nn.Sequential):
    """Two convolutions: the quickest backbone, [N, 3, H, W] -> [N, 16]."""

    width = 16

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 8, 3, stride=4),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, self.width, 3, stride=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )


# --- methods ---


def check_method(
    method_class: type[Method],
    image_size: int = 32,
    backbone: str | Callable[[], nn.Module] | None = None,
    **options: Any,
) -> None:
    """Check a method: settings, a few steps on its own view recipe, and that its state_dict is complete.

    `backbone` is a registered name, or makes a module with `.width`; None: what the method's `defaults` name, else
    `TinyBackbone`.
    """
    _expect(issubclass(method_class, Method), "a method is a subclass of sslkit.methods.Method")
    config = _settings(method_class, options)
    _check_advice(method_class)
    backbone = backbone or method_class.defaults.get("backbone.name", TinyBackbone)
    with _seeded(0):
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
        _expect(section in RunConfig.model_fields, f"defaults: {key} is not a setting of a run")
        _expect(section != "optimizer" or field in Optimizer.model_fields, f"defaults: {key} is not a setting")
    advised = {k.partition(".")[2]: v for k, v in method_class.defaults.items() if k.startswith("optimizer.")}
    Optimizer.model_validate(advised)
    plugins.find("augmentations", method_class.augment)


def _make_method(
    method_class: type[Method], config: Config, image_size: int, backbone: str | Callable[[], nn.Module]
) -> Method:
    from sslkit.backbones import create_backbone

    if isinstance(backbone, str):
        made = create_backbone(method_class.trained_backbone(Choice(name=backbone)), image_size)
    else:
        made = backbone()
    return method_class(config, made, RunInfo(images=4 * IMAGES, classes=2, image_size=image_size))


def _make_batch(method_class: type[Method], image_size: int) -> Batch:
    recipe_class = plugins.find("augmentations", method_class.augment)
    recipe = recipe_class(config_class(recipe_class)(), image_size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    labels = torch.arange(IMAGES) % 2 if method_class.uses_labels else None
    return Batch(
        recipe(_images(image_size), torch.Generator().manual_seed(0)),
        torch.randperm(4 * IMAGES)[:IMAGES],
        labels,
    )


def _check_backbone_kept_once(method: Method) -> None:
    names = [n for n, m in method.named_modules(remove_duplicate=False) if m is method.backbone]
    _expect(isinstance(getattr(method.exported, "width", None), int), "exported must be a backbone, with its width")
    _expect(
        names == ["backbone"],
        f"the backbone must be registered once, as `backbone`, not as {names}: inside another module it is saved twice",
    )


def _check_embeddings(method: Method, batch: Batch) -> None:
    """Rows of different micro-batches and processes are concatenated, so each must belong to one image."""
    with _seeded(2), torch.no_grad():
        embedded = method.embed(batch)
    _expect(isinstance(embedded, dict) and bool(embedded), "embed must return a dict of tensors")
    for name, rows in embedded.items():
        _expect(
            isinstance(rows, Tensor) and rows.ndim > 0 and len(rows) == IMAGES,
            f"embed: {name} must have one row an image, [{IMAGES}, ...], the image first: use batch.by_image(...)",
        )


def _check_forward(method: Method, batch: Batch) -> None:
    before = [crops.clone() for crops in batch.crops]
    out = method(batch)
    same = all(torch.equal(a, b) for a, b in zip(before, batch.crops))
    _expect(same, "forward must not change the views in place")
    _expect(isinstance(out, dict) and "loss" in out, 'forward must return a dict with a "loss"')
    loss = out["loss"]
    _expect(loss.ndim == 0 and bool(loss.isfinite()), f"the loss must be a finite scalar, not {loss}")
    _expect(loss.requires_grad, "the loss must carry a graph to back-propagate through")
    for name, value in out.items():
        plain = isinstance(value, Tensor) and value.ndim == 0 and not value.requires_grad
        _expect(
            name == "loss" or plain,
            f"{name} is logged: it must be a detached scalar tensor",
        )
    loss.backward()
    _check_gradients(method)


def _check_gradients(module: nn.Module) -> None:
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    without = [name for name, p in trained.items() if p.grad is None]
    _expect(
        not without,
        f"every trainable parameter must get a gradient, but these get none: {', '.join(without)}; "
        "use them, or freeze them with requires_grad_(False)",
    )
    wild = [name for name, p in trained.items() if p.grad is not None and not p.grad.isfinite().all()]
    _expect(not wild, f"gradients must be finite, but are not for {', '.join(wild)}")


def _check_after_step(method: Method, batch: Batch) -> None:
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01)
    for progress in (0.0, 0.5, 1.0):
        optimizer.zero_grad()
        method(batch)["loss"].backward()
        optimizer.step()
        before = _trained(method)
        method.after_step(progress)
        changed = [name for name, value in _trained(method).items() if not torch.equal(value, before[name])]
        _expect(
            not changed,
            f"after_step must not change trainable parameters: {', '.join(changed)}",
        )


def _trained(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters() if p.requires_grad}


def _check_state_is_complete(method: Method, twin: Method, batch: Batch) -> None:
    """A twin that was built anew and given the state_dict must go on exactly as the method does."""
    method.zero_grad()
    _restore(method, twin)
    for progress in (0.5, 0.6):
        with _seeded(1):
            loss = method(batch)["loss"]
            method.after_step(progress)
        with _seeded(1):
            again = twin(batch)["loss"]
            twin.after_step(progress)
        _expect(
            torch.equal(loss, again),
            "a method restored from its state_dict must go on exactly as before, but its loss differs: keep "
            "every tensor that changes in a parameter or a registered buffer",
        )


def _restore(module: nn.Module, twin: nn.Module) -> None:
    """Through safetensors, as checkpoints go."""
    try:
        saved = save({name: value.contiguous() for name, value in module.state_dict().items()})
    except RuntimeError as error:
        raise AssertionError(
            f"state_dict must save to safetensors, where no two tensors may share memory: {error}"
        ) from error
    twin.load_state_dict(load(saved), strict=True)


# --- backbones ---


def check_backbone(backbone: str | Callable[..., nn.Module], image_size: int = 32, **options: Any) -> None:
    """Check a backbone, by its registered name or by its factory: features, gradients and weights."""
    with _seeded(0):
        net, twin = (_make_backbone(backbone, image_size, options) for _ in range(2))
        images = torch.randn(2, 3, image_size, image_size)
        _expect(net.training, "a factory must return the network in training mode")
        _check_features(net, images)
        _check_gradients_of(net, images)
        _restore(net, twin)
        same = torch.equal(net.eval()(images), twin.eval()(images))
        _expect(same, "a backbone restored from its state_dict must give the same features")


def _make_backbone(backbone: Any, image_size: int, options: dict[str, Any]) -> nn.Module:
    from sslkit.backbones import create_backbone

    if isinstance(backbone, str):
        return create_backbone(backbone, image_size, **options)
    config = config_class(backbone).model_validate(options)
    sized = "image_size" in inspect.signature(backbone).parameters
    return backbone(config, image_size=image_size) if sized else backbone(config)


@torch.no_grad()
def _check_features(net: nn.Module, images: Tensor) -> None:
    net.eval()
    features = net(images)
    shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
    _expect(
        isinstance(features, Tensor) and features.ndim == 2 and len(features) == len(images),
        f"a backbone must turn {len(images)} images into features [{len(images)}, width], not {shape}",
    )
    width = getattr(net, "width", features.shape[1])
    _expect(width == features.shape[1], f"width says {width}, but the features have {features.shape[1]} columns")
    _expect(bool(features.isfinite().all()), "features must be finite")
    _expect(
        torch.allclose(features[:1], net(images[:1]), rtol=1e-3, atol=1e-4),
        "in eval mode the features of an image must not depend on the others of its batch",
    )
    net.train()


def _check_gradients_of(net: nn.Module, images: Tensor) -> None:
    features = net(images)
    (features * torch.randn_like(features)).sum().backward()
    _check_gradients(net)


# --- augmentations ---


def check_augmentation(recipe_class: type[nn.Module], image_size: int = 32, **options: Any) -> None:
    """Check a view recipe: shapes, types, that its input stays, and that its generator decides all."""
    config = _settings(recipe_class, options)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    with _seeded(0):
        recipe = recipe_class(config, image_size, mean, std)
        plain = recipe_class(config, image_size, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        for size in (image_size, image_size + 8):
            images = _images(size)
            before = images.clone()
            crops = _views(recipe, images, seed=1)
            _check_crops(recipe, crops, image_size)
            _expect(torch.equal(images, before), "a recipe must not change its input in place")
            _check_draws(recipe, images, crops)
            _check_normalised(crops, _views(plain, images, seed=1), mean, std)


def _views(recipe: nn.Module, images: Tensor, seed: int) -> list[Tensor]:
    return recipe(images, torch.Generator().manual_seed(seed))


def _check_crops(recipe: Any, crops: list[Tensor], image_size: int) -> None:
    _expect(isinstance(crops, list) and len(crops) > 0, "a recipe must return a list, one tensor a resolution")
    shape = (recipe.n_views * IMAGES, 3, image_size, image_size)
    _expect(
        crops[0].shape == shape,
        f"the views must be [n_views·B, 3, S, S] = {shape}, not {tuple(crops[0].shape)}",
    )
    for crop in crops:
        whole = crop.ndim == 4 and crop.shape[1] == 3 and len(crop) % IMAGES == 0
        _expect(whole, f"every resolution must be [k·B, 3, h, w] for B={IMAGES}, not {tuple(crop.shape)}")
        _expect(crop.dtype == torch.float32, f"views must be float32, not {crop.dtype}")
        _expect(bool(crop.isfinite().all()), "views must be finite")
        layout = crop.is_contiguous(memory_format=torch.channels_last)
        _expect(layout, "views must be channels_last: .contiguous(memory_format=torch.channels_last)")
        _expect(not crop.requires_grad, "views must carry no graph")


def _check_draws(recipe: nn.Module, images: Tensor, crops: list[Tensor]) -> None:
    torch.manual_seed(99)
    again = _views(recipe, images, seed=1)
    _expect(
        all(torch.equal(a, b) for a, b in zip(crops, again)),
        "equal generators must give equal views: draw every random number from the generator that is passed",
    )


def _check_normalised(crops: list[Tensor], plain: list[Tensor], mean: tuple, std: tuple) -> None:
    m, s = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))
    right = all(torch.allclose(crop, (raw - m) / s, atol=1e-4) for crop, raw in zip(crops, plain))
    _expect(right, "views must be normalised last: (x - mean)/std of each channel, white being 1")


# --- evaluators ---


def check_evaluator(evaluator_class: type, **options: Any) -> None:
    """Check an evaluator on three classes whose features and colours lie far apart: plain figures, the same each time.

    It is given a whole `Subject`: images, TinyBackbone, a projection head, a folder for pictures.
    """
    config = _settings(evaluator_class, options)
    with _seeded(0), tempfile.TemporaryDirectory() as folder:
        subject = _example_subject(Path(folder))
        before = copy.deepcopy(subject.features)
        weights = copy.deepcopy(subject.backbone.state_dict())
        evaluator = evaluator_class(config)
        state = torch.get_rng_state()
        results = evaluator(subject)
        untouched = torch.equal(state, torch.get_rng_state())
        again = evaluator_class(config)(subject)
        _check_attached(subject, Path(folder))
    _expect(
        untouched,
        "an evaluator must draw from its own torch.Generator: the run's random numbers go on after it",
    )
    _check_figures(results)
    first, second = (_repeatable(evaluator_class, figures) for figures in (results, again))
    _expect(first == second, f"an evaluator must give the same figures each time, not {first} and then {second}")
    for name in ("train_x", "train_y", "test_x", "test_y"):
        same = torch.equal(getattr(before, name), getattr(subject.features, name))
        _expect(same, f"an evaluator must not change {name}: others use it too")
    same = all(torch.equal(v, weights[k]) for k, v in subject.backbone.state_dict().items())
    _expect(same and subject.backbone.training, "an evaluator must leave the backbone as it was: train subject.fresh()")
    protocol = evaluator.protocol
    _expect(isinstance(protocol, str) and bool(protocol), "protocol must say in words how the figures came about")


def _repeatable(evaluator_class: type, figures: dict[str, float]) -> dict[str, float | None]:
    """The figures, without the values of those that may vary."""
    varies = getattr(evaluator_class, "varies", ())
    return {name: None if name.startswith(tuple(varies)) else value for name, value in figures.items()}


def _example_subject(folder: Path) -> Any:
    """Images of three colours, packed, and features in three clusters to judge beside them."""
    from sslkit.data import pack
    from sslkit.evaluators.base import Subject

    class Example(Subject):
        """The features are given, so that every evaluator can tell the classes apart."""

        features = _clusters()

    stores = [
        pack(_coloured(role, labels), folder / f"{role}.beton", size=24, mode="raw", workers=1)
        for role, labels in (("train", Example.features.train_y), ("test", Example.features.test_y))
    ]
    return Example(
        TinyBackbone(),
        *stores,
        image_size=24,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        device="cpu",
        initial=TinyBackbone,
        head=lambda: nn.Linear(TinyBackbone.width, 8),
        folder=folder,
    )


def _coloured(role: str, labels: Tensor) -> Any:
    from sslkit.data import ArrayImages

    noise = np.random.default_rng(len(labels)).integers(0, 100, (len(labels), 24, 24, 3))
    pixels = (noise + 150 * np.eye(3, dtype=np.int64)[labels][:, None, None]).astype(np.uint8)
    return ArrayImages(lambda: (pixels, labels.numpy()), role, ("red", "green", "blue"))


def _check_attached(subject: Any, folder: Path) -> None:
    for file in subject.files:
        _expect((folder / file["path"]).is_file(), f"{file['path']} was attached, but not written")
        _expect(bool(file["alt"].strip()), f"{file['path']} needs a text alternative")
    _expect(all(isinstance(note, str) and note for note in subject.notes), "notes must be sentences")


def _clusters() -> Any:
    from sslkit.evaluators.base import Features

    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    x = 4 * F.one_hot(labels, 16).float() + 0.5 * torch.randn(90, 16, generator=generator)
    return Features(train_x=x[:60], train_y=labels[:60], test_x=x[60:], test_y=labels[60:], classes=3)


def _check_figures(results: Any) -> None:
    from sslkit.evaluation import is_accuracy

    _expect(isinstance(results, dict) and len(results) > 0, "an evaluator must return a dict of figures")
    for name, value in results.items():
        figure = isinstance(name, str) and type(value) in (float, int) and math.isfinite(value)
        _expect(figure, f"{name} must be a plain finite number, not {value!r}: call float() on it")
    for name in [name for name in results if is_accuracy(name)]:
        _expect(0 <= results[name] <= 1, f"{name} must be a fraction from 0 to 1, not {results[name]}")
    if "top1" in results:
        _expect(
            results["top1"] > 0.9,
            f"top1 must be near 1 on classes that lie far apart, not {results['top1']}",
        )


# --- data sets ---


def check_dataset(source_class: type, **options: Any) -> None:
    """Check a data set that is at hand (`options` say where): images, labels, names, fingerprints."""
    config = _settings(source_class, options)
    mistakes = list(config.check())
    _expect(not mistakes, f"check() finds mistakes in these options: {'; '.join(mistakes)}")
    source: Any = source_class(config)
    _expect(source.claims(Path("no/such/path")) is False, "claims(path) must say False of what it does not read")
    pretrain, train, test = (source.images(role) for role in ("pretrain", "train", "test"))
    _expect(pretrain is not None, 'images("pretrain") must give the images to pre-train on')
    _expect(source.count() in (None, len(pretrain)), f"count() says {source.count()} of {len(pretrain)} images")
    again: Any = source_class(config)
    for role, images in (("pretrain", pretrain), ("train", train), ("test", test)):
        if images is not None:
            _check_images(role, images)
            same = images.fingerprint() == again.images(role).fingerprint()
            _expect(same, f"{role}: the fingerprint of unchanged images must stay the same")
    for role, images in (("train", train), ("test", test)):
        _expect(images is None or images.labels is not None, f"the {role} images must be labelled, or None")
    if train is not None and test is not None:
        _expect(train.classes == test.classes, "train and test must have the same classes in the same order")
    _check_data_advice(source)


def _check_images(role: str, images: Any) -> None:
    _expect(len(images) > 0, f"{role}: there must be images; give None where the data has none")
    _expect(isinstance(images.fingerprint(), str), f"{role}: the fingerprint must be a string")
    for index in {0, len(images) // 2, len(images) - 1}:
        name = images.name(index)
        _expect(isinstance(name, str) and bool(name), f"{role}: name({index}) must be a word for messages")
        pixels = np.asarray(images.load(index))
        _expect(
            pixels.dtype == np.uint8 and pixels.ndim in (2, 3) and min(pixels.shape[:2]) > 0,
            f"{role}: load() must give a PIL image or uint8 [H, W, 3], not {pixels.dtype} {pixels.shape}",
        )
    if images.labels is not None:
        _check_labels(role, images)


def _check_labels(role: str, images: Any) -> None:
    labels = np.asarray(images.labels)
    _expect(labels.dtype == np.int64, f"{role}: labels must be int64, not {labels.dtype}")
    _expect(labels.shape == (len(images),), f"{role}: {labels.shape} labels for {len(images)} images")
    fits = labels.min() >= -1 and labels.max() < len(images.classes)
    _expect(fits, f"{role}: labels must be numbers of the {len(images.classes)} classes, or -1 where unknown")
    _expect(all(isinstance(c, str) for c in images.classes), f"{role}: classes must be names")


def _check_data_advice(source: Any) -> None:
    for key in source.defaults:
        _expect(key.partition(".")[0] in RunConfig.model_fields, f"defaults: {key} is not a setting of a run")


# --- common ---


def _settings(component: Any, options: dict[str, Any]) -> Any:
    """The component's validated settings, after checking that users can be told what they mean."""
    name = component.__name__
    _expect(
        bool(inspect.getdoc(component)),
        f"{name} needs a docstring: its first line is what `sslkit list` prints",
    )
    cls = getattr(component, "Config", None)
    proper = isinstance(cls, type) and issubclass(cls, Config)
    _expect(proper, f"{name}.Config must be a subclass of sslkit.Config")
    silent = [field for field, info in config_class(component).model_fields.items() if not info.description]
    _expect(not silent, f"{name}.Config: write a string under {', '.join(silent)}; it is the help that users see")
    config = config_class(component).model_validate(options)
    plain = json.loads(json.dumps(config.model_dump(mode="json")))
    _expect(
        config_class(component).model_validate(plain) == config,
        f"{name}.Config must survive JSON: a run's settings are written to its config.yaml and read back",
    )
    return config


def _images(size: int) -> Tensor:
    """uint8 [IMAGES, 3, size, size], channels_last as loaders give them: gradients with some noise."""
    ramp = torch.linspace(0, 200, size)
    images = (ramp[:, None] * torch.rand(IMAGES, 3, 1, 1) + ramp * torch.rand(IMAGES, 3, 1, 1)) / 2
    noisy = images + 30 * torch.rand(IMAGES, 3, size, size)
    return noisy.to(torch.uint8).contiguous(memory_format=torch.channels_last)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _expect(condition: bool, contract: str) -> None:
    if not condition:
        raise AssertionError(contract)
