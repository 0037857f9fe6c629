"""Optimizers against slow references, the schedule against its formula, state through safetensors."""

import json
import math

import pytest
import torch
from safetensors.torch import load, save
from timm.optim import Lars
from torch import Tensor, nn

from sslkit.config.run import Optimizer
from sslkit.training.optim import lars
from sslkit.training.optim.optimizer import known_optimizer, make_optimizer
from sslkit.training.optim.schedule import make_schedule, scaled_lr
from sslkit.training.optim.state import optimizer_tensors, restore_optimizer


def settings(**values: object) -> Optimizer:
    return Optimizer.model_validate(values)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 12, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 4),
    )
    return net.to(memory_format=torch.channels_last)


def train(net: nn.Module, optimizer: torch.optim.Optimizer, schedule, steps: range) -> None:
    for step in steps:
        schedule.set(step)
        images = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(step))
        net(images).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


# --- names ---


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars", "timm:lamb", "timm:lookahead_adamw"])
def test_known_names(name):
    assert known_optimizer(name) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("adamww", "did you mean 'adamw'"),
        ("lookahead", "there are: sgd"),
        ("timm:lamp", "did you mean 'lamb'"),
        ("timm:adahessian", "second-order"),
        ("timm:kron", "checkpoint"),
    ],
)
def test_unknown_names_get_help(name, words):
    assert words in known_optimizer(name)


# --- learning rate ---


@pytest.mark.parametrize(("scaling", "lr"), [("none", 0.3), ("linear", 0.6), ("sqrt", 0.3 * math.sqrt(512))])
def test_scaled_lr(scaling, lr):
    assert scaled_lr(settings(lr=0.3, lr_scaling=scaling), 512) == pytest.approx(lr)


def curve(optimizer_settings: Optimizer, steps: int, per_epoch: int, order=None) -> dict[int, float]:
    optimizer = make_optimizer(nn.Linear(2, 2), optimizer_settings, lr=0.5)
    schedule = make_schedule(optimizer, optimizer_settings, steps, per_epoch)
    rates = {step: schedule.set(step) for step in order or range(steps + 1)}
    assert all(group["lr"] == list(rates.values())[-1] for group in optimizer.param_groups)
    return rates


def test_warm_up_and_cosine():
    rates = curve(settings(warmup_epochs=2), steps=100, per_epoch=5)
    for step in range(10):
        assert rates[step] == pytest.approx(0.5 * (step + 1) / 11)
    for step in range(10, 101):
        assert rates[step] == pytest.approx(0.25 * (1 + math.cos(math.pi * (step - 10) / 90)))
    assert rates[10] == 0.5
    assert 0 < rates[99] < 1e-3
    assert rates[100] == 0


def test_warm_up_is_at_most_a_tenth_of_the_run():
    assert curve(settings(warmup_epochs=10), 50, 5)[5] == 0.5
    assert curve(settings(warmup_epochs=0), 50, 5)[0] == 0.5
    assert curve(settings(warmup_epochs=0.4), 50, 5)[2] == 0.5


def test_constant_schedule_warms_up_and_stays():
    rates = curve(settings(schedule="constant", warmup_epochs=1), 40, 4)
    assert [rates[s] for s in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert {rates[s] for s in range(4, 41)} == {0.5}


def test_rate_depends_on_the_step_alone():
    forwards = curve(settings(), 60, 3)
    assert curve(settings(), 60, 3, order=[59, 3, 31]) == {s: forwards[s] for s in (59, 3, 31)}


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_learn(steps):
    assert curve(settings(), steps, 1)[0] == 0.5


class TwoParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.predictor = nn.Linear(2, 3), nn.Linear(3, 3)


def groups_after(optimizer_settings: Optimizer, step: int, constant=()) -> dict[tuple[str, int], dict]:
    """The settings that each parameter has at `step` of 100, by its part and number of dimensions."""
    net = TwoParts()
    optimizer = make_optimizer(net, optimizer_settings, 0.5, constant)
    make_schedule(optimizer, optimizer_settings, 100, 10).set(step)
    owner = {id(p): (name.partition(".")[0], p.ndim) for name, p in net.named_parameters()}
    return {owner[id(p)]: group for group in optimizer.param_groups for p in group["params"]}


def test_a_constant_part_keeps_its_peak_while_the_others_fall():
    for step, expected in ((4, 0.5 * 5 / 11), (10, 0.5), (55, 0.5), (99, 0.5)):
        rates = groups_after(settings(), step, constant=("predictor",))
        assert rates["predictor", 2]["lr"] == rates["predictor", 1]["lr"] == pytest.approx(expected)
    assert rates["backbone", 2]["lr"] < 1e-3


@pytest.mark.parametrize("step", [0, 4, 50])
def test_exempt_parameters_may_have_a_rate_of_their_own(step):
    rates = groups_after(settings(lr=0.2, exempt_lr=0.0048), step)
    for part in ("backbone", "predictor"):
        assert rates[part, 1]["lr"] == pytest.approx(rates[part, 2]["lr"] * 0.0048 / 0.2)
        assert rates[part, 1]["weight_decay"] == 0


def test_weight_decay_follows_a_cosine():
    """DINO (Caron et al. 2021): from 0.04 to 0.4."""
    for step in (0, 25, 50, 100):
        decay = groups_after(settings(weight_decay=0.04, weight_decay_end=0.4), step)
        expected = 0.4 - 0.18 * (1 + math.cos(math.pi * step / 100))
        assert decay["backbone", 2]["weight_decay"] == pytest.approx(expected)
        assert decay["backbone", 1]["weight_decay"] == 0
    assert groups_after(settings(weight_decay=0.04), 50)["backbone", 2]["weight_decay"] == 0.04


# --- updates, value by value ---


def slow_lars(w: Tensor, grads: list[Tensor], lr: float, decay: float, momentum: float) -> Tensor:
    """You et al. 2017, Eq. 6 and Algorithm 1, at a constant rate; one-dimensional tensors are left to SGD."""
    velocity = torch.zeros_like(w)
    for g in grads:
        if w.ndim > 1:
            local = 0.001 * w.norm() / (g.norm() + decay * w.norm())
            velocity = momentum * velocity + lr * local * (g + decay * w)
        else:
            velocity = momentum * velocity + lr * g
        w = w - velocity
    return w


def slow_sgd(w: Tensor, grads: list[Tensor], lr: float, decay: float, momentum: float) -> Tensor:
    velocity = torch.zeros_like(w)
    for g in grads:
        velocity = momentum * velocity + g + (decay * w if w.ndim > 1 else 0)
        w = w - lr * velocity
    return w


def slow_adamw(w: Tensor, grads: list[Tensor], lr: float, decay: float, momentum: float) -> Tensor:
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w * (1 - lr * decay) if w.ndim > 1 else w
        w = w - lr * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return w


@pytest.mark.parametrize("decay", [0.0, 0.05])
@pytest.mark.parametrize(("name", "slow"), [("lars", slow_lars), ("sgd", slow_sgd), ("adamw", slow_adamw)])
def test_updates_are_the_papers(name, slow, decay):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4)).double()
    nn.init.normal_(net[1].weight)
    start = [p.detach().clone() for p in net.parameters()]
    grads = [[torch.randn_like(p) for p in start] for _ in range(4)]
    optimizer = make_optimizer(net, settings(name=name, weight_decay=decay, momentum=0.8), lr=0.1)
    for step in grads:
        for parameter, grad in zip(net.parameters(), step):
            parameter.grad = grad.clone()
        optimizer.step()
    for i, parameter in enumerate(net.parameters()):
        expected = slow(start[i], [step[i] for step in grads], lr=0.1, decay=decay, momentum=0.8)
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-6, atol=1e-9)


def test_frozen_parameters_are_left_out_and_biases_not_decayed():
    net = network()
    net[0].requires_grad_(False)
    groups = make_optimizer(net, settings(weight_decay=0.1), lr=0.1).param_groups
    assert sum(len(g["params"]) for g in groups) == len(list(net.parameters())) - 2
    assert {(p.ndim > 1, g["weight_decay"]) for g in groups for p in g["params"]} == {
        (True, 0.1),
        (False, 0.0),
    }


def test_betas_reach_adam_and_timm():
    given = settings(name="timm:nadamw", betas=(0.8, 0.95))
    assert make_optimizer(nn.Linear(2, 2), given, 0.1).param_groups[0]["betas"] == (0.8, 0.95)
    assert len(make_optimizer(nn.Linear(2, 2), settings(name="timm:adan"), 0.1).param_groups[0]["betas"]) == 3


# --- state ---

STATEFUL = [
    "sgd",
    "adam",
    "adamw",
    "lars",
    "timm:lamb",
    "timm:lookahead_radam",
    "timm:adafactorbv",
    "timm:muon",
]


@pytest.mark.parametrize("name", STATEFUL)
def test_restored_training_goes_on_bit_for_bit(name):
    def fresh() -> tuple:
        net = network()
        optimizer = make_optimizer(net, settings(name=name), lr=0.01)
        return net, optimizer, make_schedule(optimizer, settings(name=name), 20, 2)

    whole, optimizer, schedule = fresh()
    train(whole, optimizer, schedule, range(12))

    first, optimizer, schedule = fresh()
    train(first, optimizer, schedule, range(7))
    tensors, rest = optimizer_tensors(optimizer)
    saved, words = save(tensors), json.dumps(rest)
    strides = {key: value["stride"] for key, value in rest["layouts"].items()}

    second, optimizer, schedule = fresh()
    second.load_state_dict(first.state_dict())
    restore_optimizer(optimizer, load(saved), json.loads(words))
    again, rest = optimizer_tensors(optimizer)
    assert {key: value["stride"] for key, value in rest["layouts"].items()} == strides
    assert tensors.keys() == again.keys()
    assert all(torch.equal(tensors[key], again[key]) for key in tensors)

    train(second, optimizer, schedule, range(7, 12))
    for one, other in zip(whole.state_dict().values(), second.state_dict().values()):
        assert torch.equal(one, other)


def test_restored_tensors_have_the_layout_of_their_parameters():
    net = network()
    optimizer = make_optimizer(net, settings(name="adamw"), 0.1)
    train(net, optimizer, make_schedule(optimizer, settings(), 9, 1), range(1))
    tensors, rest = optimizer_tensors(optimizer)
    other = network()
    restored = make_optimizer(other, settings(name="adamw"), 0.1)
    restore_optimizer(restored, tensors, rest)
    state = restored.state[other[0].weight]
    assert state["exp_avg"].stride() == other[0].weight.stride()
    assert state["exp_avg"].is_contiguous(memory_format=torch.channels_last)
    assert state["step"].shape == ()
    assert state["exp_avg"].data_ptr() != tensors["0.exp_avg"].data_ptr()


def test_state_of_another_network_is_refused():
    net = network()
    optimizer = make_optimizer(net, settings(), 0.1)
    train(net, optimizer, make_schedule(optimizer, settings(), 9, 1), range(1))
    with pytest.raises(ValueError, match="does not belong"):
        restore_optimizer(make_optimizer(nn.Linear(2, 2), settings(), 0.1), *optimizer_tensors(optimizer))


# --- the kernels that do it ---


def gradients(net: nn.Module, step: int) -> None:
    """Random ones, laid out in memory like the parameters, as autograd's are and fused kernels take for granted."""
    generator = torch.Generator().manual_seed(step)
    for parameter in net.parameters():
        drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        parameter.grad = torch.empty_like(parameter).copy_(drawn)


@pytest.mark.parametrize("block", [0, 200, 2**20])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_lars_is_that_of_timm_step_by_step(dtype, momentum, block, monkeypatch):
    """With decay and without, adapted and not; with zero weights, zero gradients, and some of them missing."""
    monkeypatch.setattr(lars, "BLOCK", block)
    nets = [network().to(dtype) for _ in range(2)]
    for net in nets:
        nn.init.zeros_(net[4].weight)

    def groups(net):
        parts = (net[0], net[3], net[4], net[7], net[1])
        each = ({"weight_decay": 0.02}, {"always_adapt": True}, {"weight_decay": 0.1}, {}, {"lr": 0.3})
        return [{"params": list(part.parameters()), **options} for part, options in zip(parts, each)]

    made = [cls(groups(net), lr=0.2, momentum=momentum) for cls, net in zip((lars.LARS, Lars), nets)]
    for step in range(6):
        for net, optimizer in zip(nets, made):
            gradients(net, step)
            if step == 2:
                net[0].weight.grad.zero_()
            if step != 3:
                net[3].weight.grad = None
            optimizer.step()
        for ours, theirs in zip(*(net.parameters() for net in nets)):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    assert not torch.equal(nets[0][3].weight, network().to(dtype)[3].weight)


def test_lars_computes_the_loss_of_its_closure():
    weight = nn.Parameter(torch.ones(2, 2))
    optimizer = lars.LARS([weight], lr=0.1)

    def closure():
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert weight[0, 0].item() == pytest.approx(1 - 0.1 * 2)


def test_state_of_timms_lars_goes_on_in_ours():
    """Checkpoints of sslkit before it had a LARS of its own."""
    chosen = settings(name="lars", weight_decay=0.01)
    nets = [network() for _ in range(2)]
    ours = make_optimizer(nets[0], chosen, 0.3)
    keys = ("params", "weight_decay", "always_adapt", "constant_lr")
    groups = [{k: group[k] for k in keys} for group in make_optimizer(nets[1], chosen, 0.3).param_groups]
    theirs = Lars(groups, lr=0.3, momentum=0.9, trust_coeff=1e-3)
    for step in range(3):
        gradients(nets[1], step)
        theirs.step()
    tensors, rest = optimizer_tensors(theirs)
    nets[0].load_state_dict(nets[1].state_dict())
    restore_optimizer(ours, load(save(tensors)), json.loads(json.dumps(rest)))
    for net, optimizer in zip(nets, (ours, theirs)):
        gradients(net, 9)
        optimizer.step()
    for one, other in zip(*(net.parameters() for net in nets)):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert optimizer_tensors(ours)[0].keys() == tensors.keys()


PLAIN = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@pytest.mark.parametrize("name", PLAIN)
def test_a_parameter_whose_gradient_comes_late(name):
    """SwAV and DINO hold their prototypes still at first; torch's fused SGD fails on that by itself."""
    fused, plain = network(), network()
    optimizer = make_optimizer(fused, settings(name=name, weight_decay=0.0), 0.1)
    assert optimizer.defaults["fused"]
    options = {"momentum": 0.9} if name == "sgd" else {}
    reference = PLAIN[name](plain.parameters(), lr=0.1, weight_decay=0.0, foreach=False, **options)
    for step in range(4):
        for net, one in ((fused, optimizer), (plain, reference)):
            gradients(net, step)
            if step < 2:
                net[7].weight.grad = None
            one.step()
    for one, other in zip(fused.parameters(), plain.parameters()):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_fused_kernels_agree_with_a_loop_on_real_gradients(name):
    """Convolutions of every kind in channels_last, gradients in two micro-batches; in double precision, because a
    bias before batch norm has a gradient of mere rounding, which Adam brings to full size.
    """
    fused, plain = network().double(), network().double()
    options = {"momentum": 0.9} if name == "sgd" else {}
    one = make_optimizer(fused, settings(name=name, weight_decay=0.0), 0.01)
    other = PLAIN[name](plain.parameters(), lr=0.01, weight_decay=0.0, foreach=False, **options)
    for step in range(3):
        for net, optimizer in ((fused, one), (plain, other)):
            for micro in range(2):
                images = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(2 * step + micro))
                net(images.double().contiguous(memory_format=torch.channels_last)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    for a, b in zip(fused.parameters(), plain.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*PLAIN, "lars"])
@pytest.mark.parametrize("unscale", [False, True])
def test_a_gradient_scaler_unscales_and_skips_what_overflowed(name, unscale):
    """fp16: fused kernels divide by the scale themselves, and must skip by themselves what is not finite."""
    scaled, plain = network().float(), network().float()
    one, other = (make_optimizer(net, settings(name=name), 0.1) for net in (scaled, plain))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        gradients(scaled, step)
        for parameter in scaled.parameters():
            # What backward gives of a loss that the scaler has multiplied.
            parameter.grad *= scaler.scale(torch.ones(()))
        if step in (0, 2):
            scaled[0].weight.grad[0, 0, 0, 0] = math.inf
        else:
            gradients(plain, step)
            other.step()
        if unscale:
            scaler.unscale_(one)
        scaler.step(one)
        scaler.update()
    assert scaler.get_scale() == 256
    for a, b in zip(scaled.parameters(), plain.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PLAIN)
def test_a_checkpoint_does_not_choose_the_kernels(name):
    """Else a run that was saved before, or elsewhere, would go on without fused ones and a scaler not know it."""
    net = network()
    options = {"momentum": 0.9} if name == "sgd" else {}
    old = PLAIN[name](make_optimizer(net, settings(name=name), 0.1).param_groups, lr=0.1, **options)
    for group in old.param_groups:
        group.update(fused=None, foreach=None)
    gradients(net, 0)
    old.step()
    tensors, rest = optimizer_tensors(old)
    assert not any(key.endswith(("fused", "foreach")) for key in rest["plain"])
    rest["plain"] |= {f"group{i}.fused": None for i in range(len(old.param_groups))}
    new = make_optimizer(net, settings(name=name), 0.1)
    restore_optimizer(new, tensors, rest)
    assert all(group["fused"] for group in new.param_groups)
    gradients(net, 1)
    new.step()
