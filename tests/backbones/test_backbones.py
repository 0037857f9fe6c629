"""Backbones: native keys, measured width, the small stem, weights on disk."""

import copy
import resource
import subprocess
import sys
from types import ModuleType

import pytest
import timm
import torch
import torchvision
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models.shufflenetv2 import InvertedResidual

from sslkit import plugins
from sslkit.backbones import BackboneConfig, create_backbone, load_backbone, load_weights, save_backbone, takes
from sslkit.backbones.shuffle import OnePassResidual
from sslkit.backbones.stems import dry_run, reductions, total_stride
from sslkit.config.base import Choice
from sslkit.errors import UserError
from sslkit.hookspecs import hookimpl

PLAIN = {
    "shufflenetv2": (torchvision.models.shufflenet_v2_x1_0, {"fc.weight", "fc.bias"}, 1024),
    "squeezenet": (torchvision.models.squeezenet1_1, {"classifier.1.weight", "classifier.1.bias"}, 512),
    "mobilenetv2": ("mobilenetv2_100", {"classifier.weight", "classifier.bias"}, 1280),
    "mobilenetv3_small": ("mobilenetv3_small_100", {"classifier.weight", "classifier.bias"}, 1024),
    "mobilenetv3_large": ("mobilenetv3_large_100", {"classifier.weight", "classifier.bias"}, 1280),
    "efficientnet_lite0": ("efficientnet_lite0", {"classifier.weight", "classifier.bias"}, 1280),
    "resnet18": ("resnet18", {"fc.weight", "fc.bias"}, 512),
    "resnet50": ("resnet50", {"fc.weight", "fc.bias"}, 2048),
    "vit_tiny": ("vit_tiny_patch16_224", {"head.weight", "head.bias"}, 192),
}
SHORT = sorted(PLAIN)
SIZES = (32, 36, 64, 96)
HEADER = {"image_size": 32, "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 1 / 3)}


def plain_model(name):
    maker = PLAIN[name][0]
    return (timm.create_model(maker) if isinstance(maker, str) else maker(weights=None)).eval()


def penultimate(name, model, images):
    """Features as the plain model's authors define them."""
    if name == "squeezenet":
        return model.features(images).mean((2, 3))
    if name == "shufflenetv2":
        model.fc = nn.Identity()
        return model(images)
    return model.forward_head(model.forward_features(images), pre_logits=True)


def randomise_statistics(net):
    """Fresh batch statistics are 0 and 1 everywhere: two networks would agree without sharing any."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.2)


def test_listed_without_torch():
    code = (
        "import sys; from sslkit import plugins; import sslkit.backbones as b; b.BackboneConfig();"
        "assert all(c.summary for c in plugins.components('backbones'));"
        "print(*plugins.names('backbones')); assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) >= {*SHORT, "timm:", "torchvision:"}


@pytest.mark.parametrize("name", SHORT)
def test_weights_load_into_the_plain_model_and_give_its_features(name):
    net = create_backbone(name, 224)
    randomise_statistics(net)
    plain = plain_model(name)
    loaded = plain.load_state_dict(net.state_dict(), strict=False)
    assert set(loaded.missing_keys) == PLAIN[name][1]
    assert loaded.unexpected_keys == []
    assert not any(isinstance(m, nn.Dropout) and m.p > 0 for m in net.modules()), "the classifier's dropout is left"
    assert net.training
    assert (net.width, net.stem_kind) == (PLAIN[name][2], "imagenet")
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        features = net.eval()(images)
        assert features.shape == (1, net.width)
        torch.testing.assert_close(features, penultimate(name, plain, images))


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize(("asked", "stem", "divisor"), [("auto", "small", 4), ("medium", "medium", 2)])
def test_a_stem_divides_the_total_stride_and_keeps_the_keys(name, asked, stem, divisor):
    torch.manual_seed(0)
    plain = create_backbone(name, 32, stem="imagenet")
    net = create_backbone(name, 32, stem=asked)
    assert (plain.stem_kind, net.stem_kind) == ("imagenet", stem)
    before = 16 if name in ("squeezenet", "vit_tiny") else 32
    assert (total_stride(plain, 32), total_stride(net, 32)) == (before, before // divisor)
    own, native = net.state_dict(), plain.state_dict()
    assert list(own) == list(native)
    reshaped = {k for k in own if own[k].shape != native[k].shape}
    expected = {"resnet18": {"conv1.weight"}, "resnet50": {"conv1.weight"}}
    assert reshaped == expected.get(name, {"patch_embed.proj.weight", "pos_embed"} if name == "vit_tiny" else set())
    net(torch.rand(2, 3, 32, 32)).square().sum().backward()
    assert [k for k, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    first = next(p for p in net.parameters() if p.ndim == 4)
    assert first.grad.abs().max() > 0


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("stem", ["imagenet", "small"])
def test_resolution_before_pooling(name, stem):
    for size in SIZES:
        net = create_backbone(name, size, stem=stem)
        seen = last_map(net, size)
        assert dry_run(net, size).shape == (1, net.width)
        if stem == "small":
            # Each halving rounds up; SqueezeNet's third is of an odd kernel without padding, rounded up too.
            stride = 4 if name in ("squeezenet", "vit_tiny") else 8
            assert seen == (size // 4) ** 2 if name == "vit_tiny" else seen == -(-size // stride)


def last_map(net, size):
    """Height of the last feature map before global pooling; of a ViT, the number of patches."""
    sizes = []
    pooled = (nn.AdaptiveAvgPool2d, timm.layers.SelectAdaptivePool2d)

    def note(module, inputs, output):
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output.shape[-1] > 1:
            sizes.append(output.shape[-1])

    if hasattr(net, "patch_embed"):
        return net.patch_embed(torch.zeros(1, 3, size, size)).flatten(1, -2).shape[1]
    handles = [m.register_forward_hook(note) for m in net.modules() if not isinstance(m, pooled)]
    dry_run(net, size)
    for handle in handles:
        handle.remove()
    return sizes[-1]


def test_resnet_small_stem_is_that_of_the_simclr_paper():
    net = create_backbone("resnet18", 32)
    assert (net.conv1.kernel_size, net.conv1.stride, net.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(net.maxpool, nn.Identity)
    assert net.conv1.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.1)


def test_mobile_networks_keep_the_weights_of_the_strided_convolutions():
    torch.manual_seed(3)
    plain = create_backbone("mobilenetv2", 32, stem="imagenet")
    torch.manual_seed(3)
    net = create_backbone("mobilenetv2", 32)
    assert [r.modules for r in reductions(plain, 64)][:2] == [["conv_stem"], ["blocks.1.0.conv_dw"]]
    assert net.blocks[1][0].conv_dw.stride == (1, 1)
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), net.state_dict().values()))


def test_both_branches_of_a_reduction_change_together():
    modules = [r.modules for r in reductions(create_backbone("shufflenetv2", 224), 64)]
    assert modules[0] == ["conv1.0"]
    assert modules[1] == ["maxpool"]
    assert set(modules[2]) == {"stage2.0.branch1.0", "stage2.0.branch2.3"}


@pytest.mark.parametrize("name", ["timm:convnext_atto", "timm:resnet10t", "torchvision:regnet_y_400mf"])
def test_small_stem_of_any_network(name):
    net = create_backbone(name, 32)
    assert net.stem_kind == "small"
    assert total_stride(net, 32) == 8
    assert dry_run(net, 32).shape == (1, net.width)


def test_a_network_that_starts_with_a_quarter_of_the_resolution_cannot_have_the_medium_stem():
    with pytest.raises(UserError, match=r"convnext_atto cannot have the medium stem .*; use backbone\.stem=imagenet"):
        create_backbone("timm:convnext_atto", 32, stem="medium")


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("name", ["shufflenetv2", "torchvision:shufflenet_v2_x0_5"])
def test_shuffling_in_one_pass_is_torchvisions_to_the_bit_and_keeps_the_layout(name, layout):
    net = create_backbone(name, 64).to(memory_format=layout)
    halving, plain = [module for module in net.modules() if isinstance(module, InvertedResidual)][:2]
    x = torch.randn(2, 24, 9, 9).to(memory_format=layout)
    for unit in (halving, plain):
        assert type(unit) is OnePassResidual
        y = unit(x)
        assert y.is_contiguous(memory_format=layout)
        theirs = copy.deepcopy(unit)
        theirs.__class__ = InvertedResidual
        assert torch.equal(theirs(x), y)
        x = y.detach()


def test_auto_ends_at_64_px():
    assert create_backbone("shufflenetv2", 64).stem_kind == "small"
    assert create_backbone("shufflenetv2", 65).stem_kind == "imagenet"
    assert create_backbone("shufflenetv2", 96, stem="small").stem_kind == "small"


@pytest.mark.parametrize("name", ["vit_tiny", "timm:vit_tiny_patch16_224", "timm:deit_tiny_patch16_224"])
def test_vit_takes_other_sizes_than_it_was_built_for(name):
    net = create_backbone(name, 96)
    assert net.pos_embed.shape[1] == 36 + 1
    assert net(torch.rand(2, 3, 50, 50)).shape == (2, 192)


def test_making_a_backbone_depends_on_the_seed_alone():
    def weights(seed):
        torch.manual_seed(seed)
        return create_backbone("resnet18", 32).state_dict()["conv1.weight"]

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_measuring_leaves_statistics_and_modes_alone():
    net = create_backbone("shufflenetv2", 32)
    assert all(m.training for m in net.modules())
    assert all(not b.any() for k, b in net.named_buffers() if k.endswith(("running_mean", "num_batches_tracked")))
    net.maxpool.eval()
    dry_run(net, 32)
    assert (net.training, net.maxpool.training) == (True, False)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("resnet81", {}, "did you mean 'resnet18'"),
        ("timm:resnet81", {}, "timm has no model called 'resnet81'; did you mean"),
        ("timm:hf-hub:someone/something", {}, "timm has no model"),
        ("torchvision:shufflenet_v2_x1", {}, "shufflenet_v2_x1_0"),
        ("torchvision:fasterrcnn_resnet50_fpn", {}, "no classification model"),
        ("resnet18", {"steam": "small"}, "steam"),
        ("resnet18", {"stem": "tiny"}, "stem: input should be 'auto', 'imagenet', 'medium' or 'small'"),
        ("resnet18", {"pretrained": "nowhere.safetensors"}, "is not a file"),
        ("torchvision:vit_b_32", {"stem": "small", "image_size": 64}, "use backbone.stem=imagenet"),
        ("timm:mixer_s32_224", {"image_size": 96}, "cannot take images of 96 px"),
    ],
)
def test_mistakes_are_named(name, options, words):
    with pytest.raises(UserError, match=words.replace("(", "\\(")):
        create_backbone(name, **options)


class Tiny(nn.Module):
    def __init__(self, channels, flat=True):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, stride=2)
        self.flat = flat

    def forward(self, images):
        out = self.conv(images)
        return out.mean((2, 3)) if self.flat else out


@pytest.fixture
def registered():
    """Register throw-away backbones through the hook, as a plugin does."""
    plugin = ModuleType("throwaway")

    class MyConfig(BackboneConfig):
        channels: int = 5

    @takes(MyConfig)
    def tiny(config):
        return Tiny(config.channels)

    def flat(config):
        return Tiny(4, flat=False)

    @hookimpl
    def register_backbones(register):
        register("tiny_net", tiny)
        register("maps", flat)

    plugin.register_backbones = register_backbones
    host = plugins.host()
    host.manager.register(plugin, "throwaway")
    host.distributions["throwaway"] = "throwaway"
    old, host.catalogs["backbones"] = host.catalogs["backbones"], plugins._collect(host, "backbones")
    yield
    host.catalogs["backbones"] = old
    host.manager.unregister(plugin)


def test_a_plugin_backbone_with_its_own_config(registered, tmp_path):
    net = create_backbone("tiny_net", 32, channels=7)
    assert (net.width, net.stem_kind) == (7, "imagenet"), "auto leaves a network for small images alone"
    with pytest.raises(UserError, match=r"halvings that divide it by 4\).*use backbone\.stem=imagenet"):
        create_backbone("tiny_net", 32, stem="small")
    config = {"backbone": {"name": "tiny_net", "channels": 7, "stem": "auto", "pretrained": None}}
    save_backbone(net, tmp_path / "b.safetensors", name="tiny_net", config=config, **HEADER)
    assert load_backbone(tmp_path / "b.safetensors").width == 7


def test_a_backbone_that_does_not_pool_is_refused(registered):
    with pytest.raises(UserError, match=r"gives a tensor of shape \[1, 4, 15, 15\]"):
        create_backbone("maps", 32)


@pytest.mark.parametrize("name", ["shufflenetv2", "resnet18", "vit_tiny"])
def test_file_round_trip_bit_for_bit(name, tmp_path):
    path = tmp_path / "backbone.safetensors"
    net = create_backbone(Choice(name=name, options=BackboneConfig()), 32).to(memory_format=torch.channels_last)
    randomise_statistics(net)
    config = {"backbone": {"name": name, "stem": "auto", "pretrained": "gone.safetensors"}, "epochs": 3}
    save_backbone(net, path, name=name, config=config, **HEADER)
    torch.manual_seed(5)
    expected_draw = torch.rand(1)
    torch.manual_seed(5)
    loaded = load_backbone(path)
    assert torch.equal(torch.rand(1), expected_draw)
    assert (loaded.name, loaded.image_size, loaded.mean, loaded.std) == (
        name,
        32,
        HEADER["mean"],
        HEADER["std"],
    )
    assert (loaded.width, loaded.stem_kind, loaded.training) == (net.width, "small", False)
    state = loaded.state_dict()
    assert list(state) == list(net.state_dict())
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    assert {k: header[k] for k in ("format", "name", "stem", "width")} == {
        "format": "sslkit",
        "name": name,
        "stem": "small",
        "width": str(net.width),
    }
    assert [p.name for p in tmp_path.iterdir()] == ["backbone.safetensors"]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "b.safetensors"
    net = create_backbone("shufflenetv2", 32)
    save_backbone(net, path, name="shufflenetv2", **HEADER)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises((OSError, SafetensorError)):
            save_backbone(create_backbone("shufflenetv2", 32), path, name="shufflenetv2", **HEADER)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_plain_weights_are_taken_without_their_classifier(tmp_path):
    for name in ("shufflenetv2", "squeezenet", "mobilenetv3_small", "vit_tiny"):
        plain = plain_model(name)
        save_file(plain.state_dict(), tmp_path / "plain.safetensors")
        net = create_backbone(name, 224, pretrained=tmp_path / "plain.safetensors")
        assert all(torch.equal(plain.state_dict()[k], v) for k, v in net.state_dict().items())


def test_own_file_is_taken_as_pretrained(tmp_path):
    net = create_backbone("shufflenetv2", 32)
    save_backbone(net, tmp_path / "b.safetensors", name="shufflenetv2", **HEADER)
    again = create_backbone("shufflenetv2", 64, pretrained=str(tmp_path / "b.safetensors"))
    assert torch.equal(again.conv1[0].weight, net.conv1[0].weight)


def test_weights_that_do_not_fit_are_described_in_words(tmp_path):
    path = tmp_path / "plain.safetensors"
    state = create_backbone("resnet18", 224).state_dict()
    save_file(state, path)
    with pytest.raises(UserError, match=r"conv1.weight is \[64, 3, 7, 7\] in the file and \[64, 3, 3, 3\]"):
        create_backbone("resnet18", 32, pretrained=path)
    with pytest.raises(UserError, match=r"the file lacks .* and \d+ more; the network has no "):
        create_backbone("shufflenetv2", 32, pretrained=path)
    net = create_backbone("resnet18", 224)
    save_file({k: v for k, v in state.items() if k != "layer1.0.bn1.bias"}, path)
    with pytest.raises(UserError, match=r"the file lacks layer1.0.bn1.bias"):
        load_weights(net, path)
    save_file(state | {"layer9.weight": torch.zeros(2)}, path)
    with pytest.raises(UserError, match=r"the network has no layer9.weight"):
        load_weights(net, path)


def test_foreign_and_damaged_files_are_refused(tmp_path):
    path = tmp_path / "b.safetensors"
    net = create_backbone("shufflenetv2", 32)
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone(path)
    save_file(net.state_dict(), path)
    with pytest.raises(UserError, match="not written by sslkit"):
        load_backbone(path)
    save_backbone(net, path, name="shufflenetv2", **HEADER)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_backbone(path)
    path.write_bytes(b"\x80\x04 a pickle, perhaps")
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load_backbone(path)
    save_file(net.state_dict(), path, {"format": "sslkit", "name": "shufflenetv2", "mean": "[1"})
    with pytest.raises(UserError, match="damaged header"):
        load_backbone(path)
    save_backbone(net, path, name="resnet18", **HEADER)
    with pytest.raises(UserError, match="does not fit"):
        load_backbone(path)
    save_backbone(net, path, name="gone", **HEADER)
    with pytest.raises(UserError, match="no backbone is called 'gone'"):
        load_backbone(path)
    assert set(load_file(path)) == set(net.state_dict())
