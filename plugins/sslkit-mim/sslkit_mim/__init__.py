"""MAE: a vision transformer learns by reconstructing the masked patches of an image."""

from pathlib import Path
from typing import Any

from sslkit import hookimpl
from sslkit.config import register_folder


@hookimpl
def register_methods(register: Any) -> None:
    register("mae", "sslkit_mim.mae:MAE")


@hookimpl
def register_augmentations(register: Any) -> None:
    register("mae", "sslkit_mim.augmentation:MAEAugmentation")


@hookimpl
def register_recipes(register: Any) -> None:
    register_folder(register, Path(__file__).parent / "recipes")
