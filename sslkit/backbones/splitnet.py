"""Two copies of a backbone as one: the first sees only lightness, the second only colour."""

from copy import deepcopy
from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from sslkit import plugins
from sslkit.backbones.build import create_backbone
from sslkit.backbones.settings import takes
from sslkit.config.components import BackboneConfig, config_class
from sslkit.errors import UserError
from sslkit.nn.colour import AB_LIMIT, rgb_to_lab


class SplitNet(nn.Module):
    """The network of a split-brain autoencoder (Zhang et al. 2017, arXiv:1611.09842) made of any backbone.

    [N, 3, H, W] normalised RGB -> [N, 2·width]: the features of L by `lightness`, then those of ab by
    `colour`. The paper halves the channels of each half; here each half is the whole backbone.
    """

    channel_mean: Tensor
    channel_std: Tensor

    def __init__(self, net: Any) -> None:
        """Build both halves from `net`, which becomes the lightness half; a copy of it becomes the colour half.

        `net` has `width`, as `create_backbone` sets it. Raises UserError if no convolution takes its three channels.
        """
        super().__init__()
        copy = deepcopy(net)
        self.lightness = _narrowed(net, 1)
        self.colour = _narrowed(copy, 2)
        self.width = 2 * net.width
        self.stem_kind = getattr(net, "stem_kind", "imagenet")
        self.register_buffer("channel_mean", torch.empty(3, 1, 1))
        self.register_buffer("channel_std", torch.empty(3, 1, 1))
        self.normalise_by((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def normalise_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Set the mean and deviation of the images' normalisation, where white is 1; ImageNet's by default."""
        self.channel_mean.copy_(torch.tensor(mean).view(3, 1, 1))
        self.channel_std.copy_(torch.tensor(std).view(3, 1, 1))

    def lab(self, images: Tensor) -> Tensor:
        """Convert normalised RGB to CIE Lab, [N, 3, H, W] both."""
        return rgb_to_lab(images * self.channel_std + self.channel_mean)

    def inputs(self, lab: Tensor) -> tuple[Tensor, Tensor]:
        """Split CIE Lab into the inputs of the halves: L as [N, 1, H, W] and ab as [N, 2, H, W], both within -1..1."""
        return lab[:, :1] / 50 - 1, lab[:, 1:] / AB_LIMIT

    def forward(self, images: Tensor) -> Tensor:
        lightness, colour = self.inputs(self.lab(images))
        return torch.cat([self.lightness(lightness), self.colour(colour)], dim=1)


class SplitConfig(BackboneConfig):
    """Settings of the backbone that is split."""

    model_config = ConfigDict(extra="allow")


@takes(SplitConfig)
def splitbrain(name: str, config: SplitConfig, image_size: int = 224) -> nn.Module:
    """Two copies of any backbone, for lightness and for colour: splitbrain:resnet18 (Zhang et al. 2017).

    `config` is passed on to the backbone called `name`, whose stem is adapted before it is split. Pretrained weights
    are those of a split backbone.
    """
    known = config_class(plugins.find("backbones", name)).model_fields
    options = config.model_dump(exclude_unset=True, exclude={"pretrained", "prefix"})
    # A backbone with its own settings may have no stem to choose.
    own = {key: value for key, value in options.items() if key in known or key != "stem"}
    return SplitNet(create_backbone(name, image_size, **own))


def _narrowed(net: nn.Module, channels: int) -> nn.Module:
    """Convert `net` to fewer input channels, in place; weights are scaled so that activations keep their variance.

    Networks that branch at the input have several convolutions of three channels.
    """
    stems = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.in_channels == 3 and m.groups == 1]
    if not stems:
        raise UserError("this backbone cannot be split: no convolution takes its three channels; choose another")
    for conv in stems:
        conv.in_channels = channels
        conv.weight = nn.Parameter(conv.weight.detach()[:, :channels].clone() * (3 / channels) ** 0.5)
    return net
