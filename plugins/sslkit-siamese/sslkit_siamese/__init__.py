"""Siamese methods that train one network on two views without a momentum encoder: SimSiam and NNCLR."""

from typing import Any

from sslkit.hookspecs import hookimpl


@hookimpl
def register_methods(register: Any) -> None:
    register("simsiam", "sslkit_siamese.simsiam:SimSiam")
    register("nnclr", "sslkit_siamese.nnclr:NNCLR")
