"""Load weights from a file into a network, and report what does not fit."""

import shlex
import sys
from collections.abc import Collection, Iterable
from pathlib import Path

from torch import Tensor, nn

from sslkit.errors import UserError
from sslkit.machine.files import UNREADABLE, reason
from sslkit.machine.tensors import read_tensors

CLASSIFIERS = ("classifier", "fc", "head", "heads", "last_linear")
"""Names of the classifier in timm and torchvision models, which backbones do not have."""


PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
"""First bytes of what torch.save writes: a zip archive with a pickle in it, or a pickle."""
CONVERT = (
    "{python} -c \"import torch, safetensors.torch as s; w = torch.load('{0}', weights_only=True, map_location='cpu'); "
    "w = w.get('state_dict', w); "
    "s.save_file({{k: v.clone().contiguous() for k, v in w.items()}}, '{1}')\""
)


def load_weights(net: nn.Module, path: str | Path, prefix: str | None = None) -> None:
    """Load a safetensors file of sslkit, timm or torchvision into `net`, strictly except for a classifier.

    prefix: what the names of the backbone's tensors begin with in the file, such as "module."; others are left out.
    Raises UserError naming the tensors that are missing, unknown, of another shape or of another kind of number.
    """
    path = Path(path).expanduser()
    own = net.state_dict().keys()
    tensors = _without_prefix(own, read_weights(path)[0], prefix or "", path)
    fill(net, {k: v for k, v in tensors.items() if k in own or not _is_classifier(net, k)}, path)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file and its header.

    Raises UserError for a damaged file, a pickle, and a file whose content has changed since it was written.
    """
    try:
        return read_tensors(path)
    except UNREADABLE as error:
        raise UserError(not_safetensors(path, error)) from error


def not_safetensors(path: Path, error: Exception) -> str:
    """Return a sentence that explains why a file cannot be read as safetensors, with its mend."""
    try:
        with path.open("rb") as file:
            pickled = file.read(4).startswith(PICKLES)
    except OSError:
        pickled = False
    if pickled:
        command = CONVERT.format(path, path.with_suffix(".safetensors"), python=shlex.quote(sys.executable))
        return (
            f"{path} cannot be read as safetensors: it is a pickle of torch.save, which can run any program that is "
            f"hidden in it, so sslkit reads none; convert it once with: {command}"
        )
    return f"{path} cannot be read as safetensors ({reason(error)}); is it whole?"


def fill(net: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    if wrong := _differences(net, tensors):
        raise UserError(f"{path} does not fit this backbone: {'; '.join(wrong)}")
    net.load_state_dict(tensors, strict=False)


def _without_prefix(own: Collection[str], tensors: dict[str, Tensor], prefix: str, path: Path) -> dict[str, Tensor]:
    found = _prefix(own, tensors)
    if not prefix and found:
        raise UserError(f"the names in {path} begin with {found!r}; strip that with backbone.prefix={found}")
    begun = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    if not begun:
        hint = f"those of the backbone begin with {found!r}" if found else "leave backbone.prefix out"
        raise UserError(f"no name in {path} begins with {prefix!r}; {hint}")
    return begun


def _prefix(own: Collection[str], names: Iterable[str]) -> str:
    """Return the beginning under which a file holds all of the network's own names that have parameters, or ""."""
    wanted = [key for key in own if not key.endswith("num_batches_tracked")]
    names = set(names)
    if not wanted or names >= set(wanted):
        return ""
    begins = (name.removesuffix(wanted[0]) for name in names if name.endswith(f".{wanted[0]}"))
    return next((begin for begin in sorted(begins) if names >= {begin + key for key in wanted}), "")


def _is_classifier(net: nn.Module, key: str) -> bool:
    """Return True if `key`, unknown to `net`, belongs to the removed classifier, which an identity has replaced."""
    module = net
    for part in key.split(".")[:-1]:
        if isinstance(module, nn.Identity) or not hasattr(module, part):
            break
        module = getattr(module, part)
    return isinstance(module, nn.Identity) or key.split(".")[0] in CLASSIFIERS


def _differences(net: nn.Module, tensors: dict[str, Tensor]) -> list[str]:
    """Describe the tensors that do not fit; empty if all do."""
    own = net.state_dict()
    missing = [k for k in own if k not in tensors and not k.endswith("num_batches_tracked")]
    unknown = [k for k in tensors if k not in own]
    shapes = [
        f"{k} is {list(tensors[k].shape)} in the file and {list(own[k].shape)} in the network"
        for k in own
        if k in tensors and tensors[k].shape != own[k].shape
    ]
    kinds = [k for k in own if k in tensors and _kind(tensors[k]) != _kind(own[k])]
    differences = [
        _list("the file lacks", missing),
        _list("the network has no", unknown),
        "; ".join(shapes[:3]),
        f"{kinds[0]} holds {tensors[kinds[0]].dtype} in place of {own[kinds[0]].dtype}" if kinds else "",
    ]
    if shapes and not missing and not unknown:
        stem = getattr(net, "stem_kind", "imagenet")
        differences.append(f"the stem here is {stem}; choose the file's with backbone.stem, or its image size")
    return [d for d in differences if d]


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    """Return what converting one tensor to another's dtype must not change; the precision may."""
    return tensor.is_floating_point(), tensor.is_complex()


def _list(what: str, keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{what} {', '.join(keys[:3])}{more}" if keys else ""
