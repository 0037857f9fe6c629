"""The type of a loaded backbone."""

from typing import Any

from torch import Tensor, nn

Triple = tuple[float, float, float]


class Backbone(nn.Module):
    """A pre-trained network and all that is needed to use it: float images [N, 3, H, W] -> features [N, width].

    Images are in 0..1, then normalised by `mean` and `std`. `net` is the plain network of torchvision or timm, and
    the keys of this module's state dict are the plain network's own, so both load each other's weights.
    """

    def __init__(
        self, net: nn.Module, *, name: str, width: int, stem: str, image_size: int, mean: Triple, std: Triple
    ) -> None:
        super().__init__()
        self.net = net
        self.name = name
        """Registered name of the backbone."""
        self.width = width
        """Length of a feature vector."""
        self.stem_kind = stem
        """imagenet or small."""
        self.image_size = image_size
        """Height and width of the images that it was pre-trained on, in pixels."""
        self.mean = mean
        """Mean of red, green and blue, 0 to 1, to subtract from images."""
        self.std = std
        """Standard deviation of red, green and blue, to divide images by."""
        self._register_state_dict_hook(_to_plain_keys)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_from_plain_keys)  # type: ignore[no-untyped-call]

    def forward(self, images: Tensor) -> Tensor:
        """Normalised float images [N, 3, H, W] -> features [N, width]."""
        features: Tensor = self.net(images)
        return features


def width_of(backbone: nn.Module) -> int:
    """Length of the feature vectors of a network that `create_backbone` built."""
    width: Any = backbone.width
    return int(width)


def _to_plain_keys(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    _rename(state, f"{prefix}net.", prefix)


def _from_plain_keys(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename(state, prefix, f"{prefix}net.")


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    for key in [key for key in state if key.startswith(old)]:
        state[new + key.removeprefix(old)] = state.pop(key)
