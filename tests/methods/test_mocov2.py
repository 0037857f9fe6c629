"""MoCo v2 against Algorithm 1: queries, keys, the queue between them, and batch norm that does not give keys away."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from sslkit.config.run import Optimizer
from sslkit.errors import UserError
from sslkit.methods import Batch, MoCoV2, RunInfo
from sslkit.nn import losses
from sslkit.nn.momentum import momentum_encoder
from sslkit.testing import TinyBackbone, check_method, in_two_processes

INFO = RunInfo(images=100, classes=0, image_size=32)


def make(**options: object) -> MoCoV2:
    torch.manual_seed(0)
    method = MoCoV2(MoCoV2.Config(**{"queue": 20, "dim": 8, **options}), TinyBackbone(), INFO)
    with torch.no_grad():
        for p in method.key_encoder.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return method


def batch(images: int = 6, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch([torch.randn(2 * images, 3, 32, 32, generator=generator)], torch.arange(images))


def queries(method: MoCoV2, views: Tensor) -> Tensor:
    return method.head(method.backbone(views))


def test_loss_is_info_nce_of_one_view_against_the_queue():
    method, views = make(temperature=0.3), batch()
    reference = momentum_encoder(method)
    x0, x1 = views.views.chunk(2)
    expected = losses.info_nce(queries(reference, x0), reference.key_encoder(x1), reference.queue.rows, 0.3)
    out = method(views)
    torch.testing.assert_close(out["loss"].detach(), expected)
    assert out["queue_filled"] == 0
    for mine, theirs in zip(method.buffers(), reference.buffers()):
        torch.testing.assert_close(mine, theirs)


def test_symmetric_is_the_sum_of_both_directions_and_keeps_both_keys():
    method, views = make(symmetric=True), batch()
    reference = momentum_encoder(method)
    directions = [views.views.chunk(2), views.views.chunk(2)[::-1]]
    pairs = [(queries(reference, x), reference.key_encoder(y)) for x, y in directions]
    expected = sum(losses.info_nce(q, k, reference.queue.rows) for q, k in pairs)
    torch.testing.assert_close(method(views)["loss"].detach(), expected)
    method.after_step(0.5)
    assert method.queue.pushed == 12


def test_keys_enter_the_queue_after_the_step():
    method, views = make(), batch()
    before = method.queue.rows.clone()
    keys = F.normalize(momentum_encoder(method).key_encoder(views.views.chunk(2)[1]), dim=1)
    method(views)
    assert torch.equal(method.queue.rows, before)
    method.after_step(0.5)
    torch.testing.assert_close(method.queue.rows, torch.cat([keys, before[6:]]))
    out = method(views)
    assert out["queue_filled"].item() == pytest.approx(6 / 20)
    assert out["queue_age"] == 0


def test_keys_of_all_forward_passes_of_a_step_enter_once():
    method = make()
    for seed in (1, 2):
        method(batch(seed=seed))
    method.after_step(0.5)
    assert method.queue.pushed == 12
    assert method.queue.ages.max() == 1
    method(batch())
    method.after_step(0.6)
    assert method.queue.pushed == 18


def test_key_encoder_after_k_steps():
    method = make(momentum=0.9)
    start = [p.detach().clone() for p in method.key_encoder.parameters()]
    for _ in range(5):
        method(batch())
        method.after_step(0.5)
    online = [*method.backbone.parameters(), *method.head.parameters()]
    for slow, before, fast in zip(method.key_encoder.parameters(), start, online):
        torch.testing.assert_close(slow, 0.9**5 * before + (1 - 0.9**5) * fast.detach())


def test_gradient_reaches_the_query_encoder_alone():
    method = make()
    method(batch())["loss"].backward()
    assert all(p.grad is None for p in method.key_encoder.parameters())
    assert all(p.grad.abs().sum() > 0 for p in method.head.parameters())
    assert sum(m is method.backbone for _, m in method.named_modules(remove_duplicate=False)) == 1


def test_key_encoder_starts_as_a_copy():
    method = MoCoV2(MoCoV2.Config(queue=4), TinyBackbone(), INFO)
    online = [*method.backbone.parameters(), *method.head.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(method.key_encoder.parameters(), online, strict=True))


def test_batch_norm_in_groups_sees_keys_in_another_order():
    method, views = make(bn_splits=2), batch()
    reference = momentum_encoder(method)
    x0, x1 = views.views.chunk(2)
    torch.manual_seed(3)
    order = torch.randperm(6)
    torch.manual_seed(3)
    embedded = method.embed(views)
    q = torch.cat([queries(reference, group) for group in (x0[:3], x0[3:])])
    torch.testing.assert_close(embedded["q"][:, 0].detach(), q)
    groups = [reference.key_encoder(x1[order[:3]]), reference.key_encoder(x1[order[3:]])]
    k = torch.empty(6, 8)
    k[order] = torch.cat(groups)
    torch.testing.assert_close(embedded["k"][:, 0], k)


def test_groups_need_two_images():
    with pytest.raises(UserError, match=r"bn_splits=4 needs 8 images"):
        make(bn_splits=4)(batch())


def test_papers_settings():
    assert MoCoV2.augment == "mocov2"
    optimizer = Optimizer(**{key.removeprefix("optimizer."): value for key, value in MoCoV2.defaults.items()})
    assert (optimizer.name, optimizer.lr, optimizer.lr_scaling) == ("sgd", 0.03, "linear")
    assert (optimizer.weight_decay, optimizer.momentum, optimizer.schedule) == (1e-4, 0.9, "cosine")
    assert optimizer.warmup_epochs == 0
    method = MoCoV2(MoCoV2.Config(), TinyBackbone(), INFO)
    assert method.queue.rows.shape == (65536, 128)
    assert (method.config.momentum, method.config.temperature) == (0.999, 0.2)
    assert [type(layer) for layer in method.head] == [nn.Linear, nn.ReLU, nn.Linear]
    assert method.head[0].out_features == TinyBackbone.width
    assert method.head[2].bias is not None
    assert not method.sync_batchnorm


@pytest.mark.parametrize(
    "options", [{"queue": 50}, {"queue": 5}, {"queue": 30, "symmetric": True, "hidden": 9}, {"bn_splits": 2}]
)
def test_contract(options):
    check_method(MoCoV2, **options)


def test_learns_to_find_keys_among_earlier_images():
    torch.manual_seed(0)
    method = MoCoV2(MoCoV2.Config(queue=64, dim=16, momentum=0.99), TinyBackbone(), INFO)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.05, momentum=0.9)
    log = []
    for _ in range(150):
        images = torch.randn(16, 3, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
        views = Batch([torch.cat([images, images + 0.5 * torch.randn_like(images)])], torch.arange(16))
        out = method(views)
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        method.after_step(0.5)
        log.append({name: value.item() for name, value in out.items()})
    assert log[-1]["queue_filled"] == 1
    assert log[-1]["queue_age"] == 1.5

    def late(name: str) -> float:
        return sum(entry[name] for entry in log[-10:]) / 10

    assert late("loss") < 3 < log[10]["loss"]
    assert late("contrastive_accuracy") > 10 / 65
    assert late("positive_similarity") > late("negative_similarity") + 0.4


# --- two processes ---


def test_two_processes_shuffle_keys_and_share_one_queue():
    in_two_processes(_one_of_two)


def _one_of_two(rank: int) -> None:
    method, views = make(), batch(seed=rank)
    second = views.views.chunk(2)[1]
    torch.manual_seed(rank)  # the permutation must be the first process's nevertheless
    alone = momentum_encoder(method).key_encoder(second)
    shuffled = method.embed(views)["k"][:, 0]
    assert not torch.allclose(shuffled, alone), "batch norm must see other images than this process's"

    method = make()
    method.key_encoder.eval()
    torch.testing.assert_close(method.embed(views)["k"][:, 0], method.key_encoder(second))

    out = method(views)
    method.after_step(0.5)
    assert method.queue.pushed == 12
    for tensor in (out["loss"].detach(), method.queue.rows):
        both = [torch.empty_like(tensor) for _ in range(2)]
        dist.all_gather(both, tensor)
        assert torch.equal(*both), "both processes must see the same queue and the same loss"
