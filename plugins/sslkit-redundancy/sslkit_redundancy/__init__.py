"""Redundancy-reduction methods: Barlow Twins and VICReg."""

from typing import Any

from sslkit.hookspecs import hookimpl


@hookimpl
def register_methods(register: Any) -> None:
    register("barlowtwins", "sslkit_redundancy.barlowtwins:BarlowTwins")
    register("vicreg", "sslkit_redundancy.vicreg:VICReg")
