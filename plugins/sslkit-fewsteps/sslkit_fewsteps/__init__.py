"""Methods made for few training steps or small batches: EMP-SSL, LeJEPA and decoupled contrastive learning."""

from pathlib import Path
from typing import Any

from sslkit.config import register_folder
from sslkit.hookspecs import hookimpl


@hookimpl
def register_methods(register: Any) -> None:
    register("empssl", "sslkit_fewsteps.empssl:EMPSSL")
    register("lejepa", "sslkit_fewsteps.lejepa:LeJEPA")
    register("dcl", "sslkit_fewsteps.dcl:DCL")
    register("dclw", "sslkit_fewsteps.dcl:DCLW")


@hookimpl
def register_augmentations(register: Any) -> None:
    register("empssl", "sslkit_fewsteps.augmentations:PatchAugmentation")
    register("lejepa", "sslkit_fewsteps.augmentations:LeJEPAAugmentation")


@hookimpl
def register_recipes(register: Any) -> None:
    register_folder(register, Path(__file__).parent / "recipes")
