"""Every method on every backbone of the papers, small and large images: train, checkpoint, resume, evaluate."""

import shutil

import pytest
import torch
from helpers.small_methods import FEW_CROPS, NEEDS, OPTIONS
from safetensors.torch import load_file

import sslkit as library
from sslkit import plugins
from sslkit.runs.display import Display
from sslkit.training import engine

BACKBONES = [name for name in plugins.names("backbones") if not name.endswith(":")]
QUICK = {("shufflenetv2", 32), ("vit_tiny", 32)}
"""Run in the fast tests; the rest are marked slow."""


def fits(method: str, backbone: str) -> bool:
    return method not in NEEDS or backbone.startswith("vit")


def is_tried(row: int, column: int, size: int) -> bool:
    """All pairs on small images; on larger ones a fifth of them, in which every method and backbone takes part."""
    return size == 32 or (row + column) % 5 == 0


CASES = [
    pytest.param(method, backbone, size, marks=[] if (backbone, size) in QUICK else pytest.mark.slow)
    for size in (32, 80)
    for row, backbone in enumerate(BACKBONES)
    for column, method in enumerate(plugins.names("methods"))
    if fits(method, backbone) and (method in NEEDS or is_tried(row, column, size))
]


def test_every_method_and_backbone_is_tried_on_larger_images():
    large = [case.values for case in CASES if case.values[2] == 80]
    assert {backbone for _, backbone, _ in large} == set(BACKBONES)
    assert {method for method, _, _ in large} == set(plugins.names("methods"))


@pytest.mark.parametrize(("method", "backbone", "size"), CASES)
def test_two_steps_checkpoint_resume_evaluate(method, backbone, size, tmp_path):
    run = library.run(
        method={"name": method, **OPTIONS.get(method, {})},
        # With the small stem of 32 px the largest takes half of all the time; the others have it.
        backbone={"name": backbone} | ({"stem": "imagenet"} if backbone == "resnet50" else {}),
        augment=FEW_CROPS.get(method, plugins.find("methods", method).augment),
        data={"name": "shapes", "n_train": 4, "n_test": 2, "image_size": size},
        batch_size=4,
        epochs=2,
        checkpoint_every=1,
        evaluators=["knn"],
        device="cpu",
        loader="resident",
        out=tmp_path / "run",
        report=False,
        quiet=True,
    )
    assert [m["step"] for m in run.metrics] == [1, 2]
    assert [e["epoch"] for e in run.evaluations] == [0, 2]
    assert all(m["loss"] is not None for m in run.metrics)
    weights, checkpoint = load_file(run.backbone_file), load_file(run.checkpoints[-1] / "model.safetensors")

    shutil.rmtree(run.checkpoints[-1])
    run.backbone_file.unlink()
    engine.resume(run.path, Display(quiet=True))
    equal(load_file(run.backbone_file), weights)
    equal(load_file(run.checkpoints[-1] / "model.safetensors"), checkpoint)
    features = run.backbone()(torch.zeros(1, 3, size, size))
    assert features.shape == (1, run.derived["width"])


def equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key
