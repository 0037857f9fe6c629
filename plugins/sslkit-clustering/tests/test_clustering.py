"""SwAV and DINO: against their papers, against lightly, and in two processes."""

import math
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from sslkit_clustering.assignments import sinkhorn, swapped_cross_entropy
from sslkit_clustering.dino import DINO
from sslkit_clustering.multicrop import DINOCrops, MultiCrop, SwAVCrops
from sslkit_clustering.swav import SwAV, code_health
from torch import nn
from torch.nn import functional as F

from sslkit import plugins
from sslkit.errors import UserError
from sslkit.methods import Batch, RunInfo
from sslkit.nn.momentum import momentum_encoder
from sslkit.testing import TinyBackbone, check_method, in_two_processes, steps_on

IMAGES, LARGE, SMALL = 6, 2, 3
SWAV = {"prototypes": 12, "hidden": 32, "dim": 16, "queue_length": 0, "freeze_prototypes": 0}
DINO_ = {"prototypes": 24, "hidden": 32, "bottleneck": 16, "freeze_last_layer": 0}


def make(method_class, **options):
    torch.manual_seed(0)
    small = SWAV if method_class is SwAV else DINO_
    info = RunInfo(images=100, classes=0, image_size=32)
    return method_class(method_class.Config(**small | options), TinyBackbone(), info)


def make_batch(images=IMAGES, large=LARGE, small=SMALL, seed=1):
    generator = torch.Generator().manual_seed(seed)
    crops = [torch.randn(n * images, 3, size, size, generator=generator) for n, size in ((large, 32), (small, 16)) if n]
    return Batch(crops, torch.arange(images))


# --- SwAV ---


def test_swav_predicts_the_codes_of_the_large_views():
    method, batch = make(SwAV), make_batch()
    twin = momentum_encoder(method)
    out = method(batch)
    z = twin.projector(torch.cat([twin.backbone(crops) for crops in batch.crops]))
    scores = (F.normalize(z, dim=1) @ F.normalize(twin.prototypes.weight, dim=1).T).view(LARGE + SMALL, IMAGES, 12)
    codes = [sinkhorn(scores[view]) for view in range(LARGE)]
    expected = swapped_cross_entropy(torch.stack(codes, 1), scores.transpose(0, 1), 0.1)
    torch.testing.assert_close(out["loss"].detach(), expected)
    assert 1 / 12 <= out["code_usage"] <= 1
    assert 0 <= out["code_entropy"] <= math.log(12)


def test_swav_s_queue_waits_and_then_counts():
    method = make(SwAV, queue_length=20, queue_start=0.5)
    twin = make(SwAV)
    for progress, filled in ((0.4, 0.0), (0.5, 0.0), (0.6, 0.3), (0.7, 0.6), (0.8, 0.9), (0.9, 1.0)):
        batch = make_batch(seed=int(100 * progress))
        out, alone = method(batch), twin(batch)
        assert out["queue_filled"].item() == pytest.approx(filled)
        assert torch.allclose(out["loss"], alone["loss"], rtol=1e-6) == (filled == 0)
        method.after_step(progress)
        twin.after_step(progress)


def test_swav_s_queues_keep_each_view_s_embeddings():
    method, batch = make(SwAV, queue_length=6, queue_start=0), make_batch()
    z = F.normalize(method.embed(batch)["z"].detach(), dim=2)
    method(batch)
    method.after_step(0.1)
    for view in range(2):
        torch.testing.assert_close(method.queues[view].rows, z[:, view], rtol=1e-4, atol=1e-5)


def test_swav_with_a_queue_computes_codes_of_batch_and_queue():
    method = make(SwAV, queue_length=6, queue_start=0)
    method(make_batch(seed=1))
    method.after_step(0.1)
    batch = make_batch(seed=2)
    scores = method.prototypes(method.embed(batch)["z"]).detach()
    queued = torch.stack([method.prototypes(queue.rows) for queue in method.queues], dim=1).detach()
    codes = torch.stack([sinkhorn(torch.cat([scores[:, v], queued[:, v]]))[:IMAGES] for v in range(2)], dim=1)
    torch.testing.assert_close(
        method(batch)["loss"].detach(), swapped_cross_entropy(codes, scores), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(("method_class", "field"), [(SwAV, "freeze_prototypes"), (DINO, "freeze_last_layer")])
def test_prototypes_are_frozen_for_their_share_of_the_run(method_class, field):
    method = make(method_class, **{field: 0.1})
    for progress, frozen in ((0.05, True), (0.1, True), (0.15, False)):
        method.zero_grad()
        method(make_batch())["loss"].backward()
        assert (method.prototypes.weight.grad.norm() == 0) == frozen
        assert method.backbone[0].weight.grad.norm() > 0
        method.after_step(progress)


def test_code_health():
    collapsed = torch.eye(4)[torch.zeros(3, 2, dtype=torch.int64)]
    assert {k: v.item() for k, v in code_health(collapsed).items()} == {
        "code_usage": 0.25,
        "code_entropy": 0,
        "code_agreement": 1,
    }
    health = code_health(torch.eye(4)[torch.tensor([[0, 0], [1, 2], [1, 1], [2, 0]])])
    assert health["code_usage"] == 0.75
    assert health["code_agreement"] == 0.5
    assert code_health(torch.full((3, 2, 4), 0.25))["code_entropy"].item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("large", [1, 3])
def test_swav_needs_two_large_views(large):
    with pytest.raises(UserError, match=r"SwAV needs 2 views.*augment\.views=2"):
        make(SwAV)(make_batch(large=large))


def test_dino_needs_two_large_views():
    with pytest.raises(UserError, match=r"DINO needs 2 views.*augment\.views=2"):
        make(DINO)(make_batch(large=1))


# --- DINO ---


def test_teacher_temperature_rises_and_stays():
    method = make(DINO, warmup_teacher=0.2)
    for progress, expected in ((0, 0.04), (0.1, 0.055), (0.2, 0.07), (0.7, 0.07)):
        method.progress.fill_(progress)
        assert method.teacher_temperature().item() == pytest.approx(expected)


def test_centre_is_the_moving_average_of_the_teacher_s_outputs():
    method, means = make(DINO, momentum=1.0, centre_momentum=0.8), []
    for seed in range(4):
        # Two batches a step, as with accumulate=2.
        batches = [make_batch(seed=10 * seed + i) for i in range(2)]
        means.append(torch.stack([method.teacher(batch.views).mean(0) for batch in batches]).mean(0))
        for batch in batches:
            method(batch)
        method.after_step(0.1 * seed)
    expected = sum(0.2 * 0.8 ** (3 - i) * mean for i, mean in enumerate(means))
    torch.testing.assert_close(method.centre, expected)
    assert method(make_batch())["centre_norm"].item() == pytest.approx(expected.norm().item())


def test_the_teacher_takes_no_gradient_and_follows_after():
    method = make(DINO, momentum=0.9)
    start = [p.clone() for p in method.teacher.parameters()]
    method(make_batch())["loss"].backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    student = [*method.backbone.parameters(), *method.head.parameters(), *method.prototypes.parameters()]
    with torch.no_grad():
        for p in student:
            p.add_(1)
    method.after_step(0.5)
    momentum = 1 - 0.1 * 0.5
    for slow, before, fast in zip(method.teacher.parameters(), start, student, strict=True):
        torch.testing.assert_close(slow, momentum * before + (1 - momentum) * fast.detach())


def test_dino_logs_entropy_and_divergence():
    method, batch = (
        make(DINO, student_temperature=0.05, teacher_temperature=0.05, warmup_teacher_temperature=0.05),
        make_batch(),
    )
    out = method(batch)
    assert 0 < out["teacher_entropy"] < math.log(24)
    assert out["teacher_student_kl"] > 0
    torch.testing.assert_close(out["teacher_entropy"] + out["teacher_student_kl"], out["loss"].detach())
    # Student and teacher are equal at the start, so equal views leave nothing to learn.
    same = Batch([batch.views[:IMAGES].repeat(2, 1, 1, 1)], batch.indices)
    assert method(same)["teacher_student_kl"].item() == pytest.approx(0, abs=1e-4)


def test_dino_s_head():
    method = make(DINO)
    kinds = [type(layer).__name__ for layer in method.head]
    assert kinds == ["Linear", "GELU", "Linear", "GELU", "Linear"]
    assert method.head[0].bias.abs().max() == 0
    assert method.head[0].weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert "BatchNorm1d" in [type(layer).__name__ for layer in make(DINO, norm=True).head]


def test_lightly_agrees_on_dino():
    """Two steps, so that the centre has moved by the second."""
    lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    theirs = lightly.DINOLoss(output_dim=24, center_momentum=0.9)
    method = make(DINO, teacher_temperature=0.05, warmup_teacher_temperature=0.05, momentum=1.0).double()
    for seed in (1, 2):
        batch = make_batch(seed=seed)
        batch.crops = [crops.double() for crops in batch.crops]
        twin = momentum_encoder(method)
        teacher = batch.by_image(twin.teacher(batch.views)).unbind(1)
        student = batch.by_image(twin.prototypes(twin.head(torch.cat([twin.backbone(c) for c in batch.crops])))).unbind(
            1
        )
        expected = theirs(list(teacher), list(student), teacher_temp=0.05)
        torch.testing.assert_close(method(batch)["loss"].detach(), expected, rtol=1e-6, atol=0)
        method.after_step(seed / 10)
        torch.testing.assert_close(method.centre, theirs.center.flatten().double(), rtol=1e-6, atol=1e-9)


# --- both learn ---


@pytest.mark.parametrize(("method_class", "figure"), [(SwAV, "code_agreement"), (DINO, "teacher_student_kl")])
def test_a_few_steps_bring_crops_of_an_image_together(method_class, figure):
    method = make(method_class, momentum=0.9) if method_class is DINO else make(method_class)
    images = torch.rand(16, 3, 1, 1) * 4 - 2
    crops = [images.repeat(n, 1, size, size) + torch.randn(16 * n, 3, size, size) for n, size in ((2, 32), (3, 16))]
    batch = Batch(crops, torch.arange(16))
    optimizer = torch.optim.Adam(method.parameters(), 3e-3)
    first, out = steps_on(batch, method, optimizer, 60)
    if method_class is SwAV:
        assert out["loss"] < 0.7 * first["loss"]
        assert out[figure] > 0.8
        assert out["code_usage"] > 0.7
    else:
        assert out[figure] < 0.5 * first[figure]


# --- two processes ---


def plain_backbone():
    net = nn.Sequential(nn.Conv2d(3, 16, 5, stride=4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net.width = 16
    return net


def double_method(method_class, options):
    """In double precision, and with batch norm in evaluation mode: it alone sees each process's images apart."""
    torch.manual_seed(0)
    info = RunInfo(images=100, classes=0, image_size=32)
    return method_class(method_class.Config(**options), plain_backbone(), info).double().eval()


def steps(method, share, ranks):
    """Losses, gradients and state of three steps on this process's share of the images."""
    found = []
    for step in range(3):
        whole = make_batch(images=8, seed=step)
        crops = [c.double().unflatten(0, (-1, 8))[:, share].flatten(0, 1) for c in whole.crops]
        method.zero_grad()
        loss = method(Batch(crops, whole.indices[share]))["loss"]
        loss.backward()
        grads = {name: p.grad for name, p in method.named_parameters() if p.grad is not None}
        if ranks > 1:
            for grad in [loss.data, *grads.values()]:
                dist.all_reduce(grad)
                grad /= ranks
        with torch.no_grad():
            for name, p in method.named_parameters():
                if name in grads:
                    p -= 0.1 * grads[name]
        method.after_step(0.1 * (step + 1))
        found.append({"loss": loss.detach().clone()} | {name: grad.clone() for name, grad in grads.items()})
    return [*found, {name: value.clone() for name, value in method.state_dict().items()}]


BOTH = ((SwAV, SWAV | {"queue_length": 12, "queue_start": 0}), (DINO, DINO_))


def in_two(rank, folder):
    share = slice(4 * rank, 4 * rank + 4)
    torch.save([steps(double_method(*each), share, 2) for each in BOTH], f"{folder}/{rank}.pt")


def test_two_processes_do_as_one(tmp_path):
    """Losses, gradients, queues and centre."""
    in_two_processes(in_two, str(tmp_path))
    alone = [steps(double_method(*each), slice(0, 8), 1) for each in BOTH]
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt"), alone, rtol=1e-5, atol=1e-7)


# --- contracts ---


@pytest.mark.parametrize("queue_length", [0, 12])
def test_swav_contract(queue_length):
    check_method(SwAV, **SWAV | {"queue_length": queue_length})


@pytest.mark.parametrize(
    ("backbone", "size"), [(TinyBackbone, 32), ("vit_tiny", 32), ("vit_tiny", 96), ("squeezenet", 32)]
)
def test_dino_contract(backbone, size):
    check_method(DINO, image_size=size, backbone=backbone, **DINO_)


def test_registered_without_importing_torch():
    assert plugins.find("methods", "swav") is SwAV
    assert plugins.find("methods", "dino") is DINO
    names = {name: plugins.find("augmentations", name) for name in ("multicrop", "swav", "dino")}
    assert names == {"multicrop": MultiCrop, "swav": SwAVCrops, "dino": DINOCrops}
    code = "import sys, sslkit_clustering; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
