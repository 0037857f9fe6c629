"""SwAV and DINO, and the multi-crop augmentations that both use."""

from pathlib import Path
from typing import Any

from sslkit import hookimpl
from sslkit.config import register_folder


@hookimpl
def register_methods(register: Any) -> None:
    register("swav", "sslkit_clustering.swav:SwAV")
    register("dino", "sslkit_clustering.dino:DINO")


@hookimpl
def register_augmentations(register: Any) -> None:
    register("multicrop", "sslkit_clustering.multicrop:MultiCrop")
    register("swav", "sslkit_clustering.multicrop:SwAVCrops")
    register("dino", "sslkit_clustering.multicrop:DINOCrops")


@hookimpl
def register_recipes(register: Any) -> None:
    register_folder(register, Path(__file__).parent / "recipes")
