"""Load weights from a file into a network, and report what does not fit."""

from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sslkit.errors import UserError

CLASSIFIERS = ("classifier", "fc", "head", "heads", "last_linear")
"""Names of the classifier in timm and torchvision models, which backbones do not have."""


def load_weights(net: nn.Module, path: str | Path) -> None:
    """Load a safetensors file of sslkit, timm or torchvision into `net`, strictly except for a classifier.

    Raises UserError naming the tensors that are missing, unknown or of another shape.
    """
    path = Path(path).expanduser()
    own = net.state_dict().keys()
    tensors = {k: v for k, v in read_tensors(path)[0].items() if k in own or not _is_classifier(net, k)}
    fill(net, tensors, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            # The file is no mapping and has to be read through `keys`.
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as safetensors ({error}); is it whole?") from error


def fill(net: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    if wrong := _differences(net, tensors):
        raise UserError(f"{path} does not fit this backbone: {'; '.join(wrong)}")
    net.load_state_dict(tensors, strict=False)


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
    differences = [_list("the file lacks", missing), _list("the network has no", unknown), "; ".join(shapes[:3])]
    if shapes and not missing and not unknown:
        stem = getattr(net, "stem_kind", "imagenet")
        differences.append(f"the stem here is {stem}; choose the file's with backbone.stem, or its image size")
    return [d for d in differences if d]


def _list(what: str, keys: list[str]) -> str:
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{what} {', '.join(keys[:3])}{more}" if keys else ""
