"""Siamese methods that train one network on two views without a momentum encoder: SimSiam and NNCLR."""

from pathlib import Path
from typing import Any

from sslkit.config import register_folder
from sslkit.hookspecs import hookimpl


@hookimpl
def register_methods(register: Any) -> None:
    register("simsiam", "sslkit_siamese.simsiam:SimSiam")
    register("nnclr", "sslkit_siamese.nnclr:NNCLR")


@hookimpl
def register_recipes(register: Any) -> None:
    register_folder(register, Path(__file__).parent / "recipes")
