"""Every hook that a plugin can implement, and the two markers.

A plugin is a module named in the entry-point group `sslkit`; it decorates functions with `hookimpl` and gives
them the names below. `register(name, thing)` takes the object itself or a `"module:Name"` string, which is
imported only when that name is used.
"""

from collections.abc import Callable
from typing import Any

import pluggy

Register = Callable[[str, Any], None]
"""register(name, thing): `thing` may be a string "module:Name"."""

hookspec = pluggy.HookspecMarker("sslkit")
hookimpl = pluggy.HookimplMarker("sslkit")


@hookspec
def register_methods(register: Register) -> None:
    """Offer methods: register("byol", BYOL), a subclass of sslkit.methods.Method."""


@hookspec
def register_backbones(register: Register) -> None:
    """Offer backbones: register("mynet", factory); factory(config) -> nn.Module without classifier.

    A factory with a keyword `image_size` is passed the image size. A name that ends in ":" binds what follows it:
    register("hub:", factory); factory(rest, config) -> nn.Module.
    """


@hookspec
def register_augmentations(register: Register) -> None:
    """Offer augmentations: register("simclr", SimCLRAugmentation), a subclass of sslkit.augment.Augmentation."""


@hookspec
def register_evaluators(register: Register) -> None:
    """Offer evaluators: register("knn", KNN), a subclass of sslkit.evaluation.Evaluator."""


@hookspec
def register_datasets(register: Register) -> None:
    """Offer data sets: register("cifar10", CIFAR10), a subclass of sslkit.data.Source."""


@hookspec
def register_trackers(register: Register) -> None:
    """Offer trackers: register("tensorboard", TensorBoard), a subclass of sslkit.runs.trackers.Tracker."""


@hookspec
def register_recipes(register: Register) -> None:
    """Offer recipes: register("smith2026-table3", path), the path of a YAML file; register_folder(register, folder) of
    sslkit.config offers every YAML file of a folder under its name."""


@hookspec
def register_commands(cli: Any) -> None:
    """Add click commands to the `sslkit` group: @cli.command() def mine(): ..."""


@hookspec
def run_started(run: Any) -> None:
    """Called when a run is built and its directory exists, before the first step."""


@hookspec
def run_logged(run: Any, step: int, metrics: dict[str, float]) -> None:
    """Called with new metrics, already plain floats: once per logging interval and evaluation, never once per step."""


@hookspec
def run_finished(run: Any, error: BaseException | None) -> None:
    """Called when the run has ended; error is None, or the exception that ended it."""
