"""Optimizers against slow references, the schedule against its formula, state through safetensors."""

import json
import math

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from sslkit.config import Optimizer
from sslkit.optim import (
    known_optimizer,
    make_optimizer,
    make_schedule,
    optimizer_tensors,
    restore_optimizer,
    scaled_lr,
)


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
    with pytest.raises(ValueError, match="no place"):
        restore_optimizer(make_optimizer(nn.Linear(2, 2), settings(), 0.1), *optimizer_tensors(optimizer))
