"""MAE: a vision transformer learns by reconstructing the masked patches of an image."""

from typing import Any

from sslkit import hookimpl


@hookimpl
def register_methods(register: Any) -> None:
    register("mae", "sslkit_mim.mae:MAE")


@hookimpl
def register_augmentations(register: Any) -> None:
    register("mae", "sslkit_mim.augmentation:MAEAugmentation")
