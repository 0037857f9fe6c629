"""Backbones by short name, and any model of timm or torchvision: plain networks, random weights, no classifier.

Parameter keys are those of the plain model. Nothing is ever downloaded.
"""

from difflib import get_close_matches
from typing import Any

from torch import nn

from sslkit.backbones.stems import is_token_net, set_tokens
from sslkit.config.components import BackboneConfig
from sslkit.errors import UserError


def shufflenetv2(config: BackboneConfig) -> nn.Module:
    """ShuffleNetV2 1.0× of torchvision: 1.3 M parameters, width 1024 (Ma et al. 2018)."""
    return torchvision_model("shufflenet_v2_x1_0", config)


def squeezenet(config: BackboneConfig) -> nn.Module:
    """SqueezeNet 1.1 of torchvision: 0.7 M parameters, width 512 (Iandola et al. 2016)."""
    return torchvision_model("squeezenet1_1", config)


def mobilenetv2(config: BackboneConfig) -> nn.Module:
    """MobileNetV2 1.0× of timm: 2.2 M parameters, width 1280 (Sandler et al. 2018)."""
    return timm_model("mobilenetv2_100", config)


def mobilenetv3_small(config: BackboneConfig) -> nn.Module:
    """MobileNetV3-Small 1.0× of timm: 1.5 M parameters, width 1024 (Howard et al. 2019)."""
    return timm_model("mobilenetv3_small_100", config)


def mobilenetv3_large(config: BackboneConfig) -> nn.Module:
    """MobileNetV3-Large 1.0× of timm: 4.2 M parameters, width 1280 (Howard et al. 2019)."""
    return timm_model("mobilenetv3_large_100", config)


def efficientnet_lite0(config: BackboneConfig) -> nn.Module:
    """EfficientNet-Lite0 of timm: 3.4 M parameters, width 1280 (after Tan and Le 2019)."""
    return timm_model("efficientnet_lite0", config)


def resnet18(config: BackboneConfig) -> nn.Module:
    """ResNet-18 of timm: 11.2 M parameters, width 512 (He et al. 2016)."""
    return timm_model("resnet18", config)


def resnet50(config: BackboneConfig) -> nn.Module:
    """ResNet-50 of timm: 23.5 M parameters, width 2048 (He et al. 2016)."""
    return timm_model("resnet50", config)


def vit_tiny(config: BackboneConfig, image_size: int = 224) -> nn.Module:
    """ViT-Ti/16 of timm, for any image size: 5.5 M parameters, width 192 (Touvron et al. 2021)."""
    return timm_model("vit_tiny_patch16_224", config, image_size)


ANY_SIZE = ("timm.models.vision_transformer", "timm.models.deit")
"""Modules of timm whose transformers can take images of any size, such as the small views of multi-crop."""


def timm_model(name: str, config: BackboneConfig, image_size: int = 224, **options: Any) -> nn.Module:
    """Any model of timm by its name, with random weights: timm:mobilenetv4_conv_small.

    `options` are passed to timm.create_model. Vision transformers are built for `image_size` (pixels); the plain ones
    take other sizes too, whose sides are padded to multiples of a patch.
    """
    import timm  # Importing timm takes seconds, and torchvision's networks do not need it.

    if not timm.is_model(name):
        hint = _close(name, timm.list_models(), "timm.list_models()")
        raise UserError(f"timm has no model called {name!r}; {hint}")
    if timm.model_entrypoint(name).__module__ in ANY_SIZE:
        options = {"dynamic_img_size": True, "dynamic_img_pad": True, **options}
    net = timm.create_model(name, num_classes=0, **options)
    if is_token_net(net):
        set_tokens(net, image_size)
    return net


def torchvision_model(name: str, config: BackboneConfig, image_size: int = 224) -> nn.Module:
    """Any classification model of torchvision by its name, with random weights: torchvision:regnet_y_400mf.

    The last linear layer (SqueezeNet: convolution) and the dropout before it become identities. torchvision's
    vision transformers are built for `image_size` (pixels).
    """
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        hint = _close(name, known, "torchvision.models.list_models(module=torchvision.models)")
        raise UserError(f"torchvision has no classification model called {name!r}; {hint}")
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    elif name.startswith("vit_"):
        options = {"image_size": image_size}
    net = models.get_model(name, weights=None, **options)
    _remove_classifier(net)
    if name.startswith("shufflenet"):
        from sslkit.backbones.shuffle import shuffle_in_one_pass

        shuffle_in_one_pass(net)
    module: nn.Module = net
    return module


def _remove_classifier(net: nn.Module) -> None:
    names = [name for name, _ in net.named_modules()]
    last = max(i for i, name in enumerate(names) if isinstance(net.get_submodule(name), nn.Linear | nn.Conv2d))
    net.set_submodule(names[last], nn.Identity())
    if isinstance(net.get_submodule(names[last - 1]), nn.Dropout):
        net.set_submodule(names[last - 1], nn.Identity())


def _close(name: str, known: list[str], all_names: str) -> str:
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else f"{all_names} lists them all"
