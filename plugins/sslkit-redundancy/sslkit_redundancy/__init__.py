"""Redundancy-reduction methods: Barlow Twins and VICReg."""

from pathlib import Path
from typing import Any

from sslkit.config import register_folder
from sslkit.hookspecs import hookimpl


@hookimpl
def register_methods(register: Any) -> None:
    register("barlowtwins", "sslkit_redundancy.barlowtwins:BarlowTwins")
    register("vicreg", "sslkit_redundancy.vicreg:VICReg")


@hookimpl
def register_recipes(register: Any) -> None:
    register_folder(register, Path(__file__).parent / "recipes")
