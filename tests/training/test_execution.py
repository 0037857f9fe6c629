"""The executions of a network: which there are on a machine, and that every one of them computes the same."""

import copy
from dataclasses import replace

import pytest
import torch
from helpers.executions import CPU, CUDA, FIRST, HALF, MIXED, USUAL, built, config_of, stepped
from helpers.small_methods import PlainBackbone, make, without_batch_norm

from sslkit.augment.multi_view import MultiViewAugmentation
from sslkit.machine.precision import has_bf16, uncompiled
from sslkit.methods import RunInfo
from sslkit.training import execution
from sslkit.training.execution import Execution, usual
from sslkit.training.meter import Meter
from sslkit.training.setup import TrainingSetup
from sslkit.training.tune import candidates as tune_candidates
from sslkit.training.tune.candidates import compiled_candidates, eager_candidates

GENTLE = ["tune=off", "optimizer=sgd", "optimizer.lr=0.001"]
"""Adam's first steps make as much of a gradient that is rounding alone as of any other."""
DENSE = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3), torch.nn.Conv2d(4, 4, 3, groups=2), torch.nn.Conv2d(1, 2, 3))
DEPTHWISE = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, groups=4))


# --- candidates ---


@pytest.mark.parametrize("bf16", [True, False])
@pytest.mark.parametrize(
    ("words", "precisions", "layouts"),
    [
        ([], "both", [True, False]),
        (["precision=fp32"], ["fp32"], [True, False]),
        (["precision=bf16"], ["bf16"], [True, False]),
        (["channels_last=true"], "both", [True]),
        (["channels_last=false"], "both", [False]),
        (["precision=bf16", "channels_last=false"], ["bf16"], [False]),
    ],
)
def test_what_is_tried_on_the_cpu(monkeypatch, bf16, words, precisions, layouts):
    monkeypatch.setattr(tune_candidates, "has_bf16", lambda device: bf16)
    precisions = (["fp32", "bf16"] if bf16 else ["fp32"]) if precisions == "both" else precisions
    config = config_of(*words)
    first = Execution(precisions[0], layouts[0])
    others = [Execution(precision, layouts[0]) for precision in precisions[1:]]
    others += [Execution(precisions[0], layout) for layout in layouts[1:]]
    assert usual(config, CPU) == first
    assert eager_candidates(config, CPU, DENSE) == [first, *others]
    mixed = [
        replace(candidate, depthwise_fp32=True) for candidate in (first, *others) if candidate.precision == "bf16"
    ][:1]
    assert set(eager_candidates(config, CPU, DEPTHWISE)) == {first, *others, *mixed}
    assert compiled_candidates(config, CPU, FIRST) == [replace(FIRST, compile="default")]


@pytest.mark.parametrize(("word", "candidates"), [("true", [USUAL, MIXED]), ("false", [USUAL, HALF])])
def test_depthwise_convolutions_can_be_fixed(monkeypatch, word, candidates):
    monkeypatch.setattr(tune_candidates, "has_bf16", lambda device: True)
    words = ["channels_last=true", f"depthwise_fp32={word}"]
    assert eager_candidates(config_of(*words), CPU, DEPTHWISE) == candidates
    assert usual(config_of(*words, "precision=bf16"), CPU) == candidates[1]


@pytest.mark.parametrize("bf16", [True, False])
def test_what_is_tried_on_a_gpu(monkeypatch, bf16):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    config = config_of()
    first, other = ("bf16", "fp32") if bf16 else ("fp32", "bf16")
    expected = [Execution(first), *([Execution(other)] if bf16 else []), Execution(first, False)]
    assert eager_candidates(config, CUDA, DENSE) == expected
    assert set(eager_candidates(config, CUDA, DEPTHWISE)) == {*expected, *([MIXED] if bf16 else [])}
    assert [candidate.compile for candidate in compiled_candidates(config, CUDA, FIRST)] == ["default", "graphs"]
    assert eager_candidates(config_of("precision=fp16", "channels_last=true"), CUDA, DENSE) == [Execution("fp16")]


def test_imitated_bf16_is_not_tried(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert {candidate.precision for candidate in eager_candidates(config_of(), CUDA, DEPTHWISE)} == {"fp32"}
    assert usual(config_of(), CUDA).precision == "fp32"
    assert not has_bf16(CUDA)


@pytest.mark.parametrize(("word", "kind"), [("compile=true", "default"), ("compile=false", "no")])
def test_compile_can_be_fixed(word, kind):
    config = config_of(word)
    assert usual(config, CPU).compile == kind
    assert {candidate.compile for candidate in eager_candidates(config, CPU, DENSE)} == {"no"}, (
        "compiled once, when one is chosen"
    )
    assert compiled_candidates(config, CPU, USUAL) == []


def test_a_run_goes_on_where_what_it_was_begun_with_is_missing():
    candidate = Execution("bf16", compile="graphs", compiled_views=True)
    assert execution.possible_here(candidate, CUDA) == candidate
    assert execution.possible_here(candidate, CPU) == Execution("bf16", compile="default")


# --- every candidate computes the same ---


@pytest.mark.parametrize("last", [True, False])
def test_the_network_sees_the_layout_that_was_chosen(last):
    setup = built(f"channels_last={last}", "tune=off")
    seen: list[torch.Tensor] = []
    setup.method.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    stepped(setup)
    assert seen[0].is_contiguous() is not last
    assert seen[0].is_contiguous(memory_format=torch.channels_last) is last
    convolution = next(p for p in setup.method.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1)
    assert convolution.is_contiguous(memory_format=torch.channels_last) is last


def calm(candidate: Execution) -> TrainingSetup:
    """A run whose network has no batch norm, which on few small images makes much of little differences."""
    setup = built("tune=off")
    torch.manual_seed(0)
    info = RunInfo(len(setup.stores.pretrain), len(setup.stores.pretrain.classes), 32)
    setup.method = setup.trained = without_batch_norm(make("simclr", PlainBackbone(), info))
    setup.optimizer = torch.optim.SGD(setup.method.parameters(), lr=0.1)
    setup.execution = candidate
    candidate.apply(setup.method)
    return setup


def test_layouts_agree():
    one, other = (stepped(calm(candidate), 3) for candidate in (USUAL, FIRST))
    assert one == pytest.approx(other, rel=1e-4)
    assert one[0] != one[1]


def test_bf16_agrees_on_the_cpu():
    [one], [other] = (stepped(built(f"precision={precision}", "tune=off")) for precision in ("fp32", "bf16"))
    assert one == pytest.approx(other, rel=5e-2)
    assert one != other


def test_depthwise_convolutions_stay_out_of_autocast_on_request_in_copies_too():
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(8, 8, 3, groups=8))
    images = torch.randn(2, 4, 9, 9)
    types: list[torch.dtype] = []
    for module in network:
        module.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))

    def outcome(candidate: Execution, module: torch.nn.Module = network) -> torch.Tensor:
        types.clear()
        with candidate.context(CPU):
            return module(images)

    apply_to(network, MIXED)
    mixed = outcome(MIXED)
    assert types == [torch.bfloat16, torch.float32]
    exact = outcome(USUAL)
    torch.testing.assert_close(mixed, exact, rtol=5e-2, atol=5e-2)
    mixed.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in network.parameters())

    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin[1].weight.zero_()
        twin[1].bias.zero_()
    assert outcome(MIXED, twin).count_nonzero() == 0, "a copy computes with its own weights"
    assert twin.state_dict().keys() == network.state_dict().keys()
    apply_to(network, HALF)
    outcome(HALF)
    assert types == [torch.bfloat16, torch.bfloat16]


def apply_to(network: torch.nn.Module, candidate: Execution) -> None:
    method = torch.nn.Module()
    method.backbone = network
    candidate.apply(method)


def test_a_run_with_depthwise_convolutions_in_fp32_agrees_with_the_plain_one():
    plain, mixed = built("tune=off"), built("tune=off", "precision=bf16", "depthwise_fp32=true")
    assert mixed.execution == MIXED
    [one], [other] = stepped(plain), stepped(mixed)
    assert one == pytest.approx(other, rel=5e-2)
    assert one != other


@pytest.mark.parametrize("augment", ["simclr", "swav"])
def test_plain_kernels_reach_every_view_and_agree(augment):
    words = [f"method={augment}", f"augment={augment}", *GENTLE]
    auto, plain = (built(*words, f"kernels={kernels}") for kernels in ("auto", "plain"))
    views = [part for part in plain.augmentation.modules() if isinstance(part, MultiViewAugmentation)]
    assert len(views) == (2 if augment == "swav" else 1)
    assert {part.kernels for part in views} == {"plain"}
    (first, *later), (expected, *others) = stepped(auto, 3), stepped(plain, 3)
    assert first == pytest.approx(expected, rel=1e-4)
    # Batch norm over a few images magnifies the rounding of each step.
    assert later == pytest.approx(others, rel=1e-2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_depthwise_convolutions_in_fp32_compile():
    network = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(8, 8, 3, groups=8))
    images = torch.randn(2, 4, 9, 9)
    with MIXED.context(CPU):
        apply_to(network, MIXED)
        plain = network(images)
        apply_to(network, replace(MIXED, compile="default"))
        compiled = network(images)
    assert compiled.dtype == torch.float32
    torch.testing.assert_close(compiled, plain, rtol=2e-2, atol=2e-2)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_run_is_the_plain_one():
    plain, compiled = calm(USUAL), calm(replace(USUAL, compile="default"))
    network = compiled.method.backbone
    assert network._compiled_call_impl is not None
    expected, keys = stepped(plain, 3), plain.method.state_dict().keys()
    with Meter(network, CPU) as meter:
        assert stepped(compiled, 3) == pytest.approx(expected, rel=1e-4)
        assert meter._health()["feature_std"] > 0
    assert compiled.method.state_dict().keys() == keys
    twin = copy.deepcopy(network)
    assert twin._compiled_call_impl is None, "a copy is a plain network"
    images = torch.randn(5, 3, 40, 40)
    with uncompiled(), torch.no_grad():
        torch.testing.assert_close(network.eval()(images), twin.eval()(images))
    USUAL.apply(compiled.method)
    assert network._compiled_call_impl is None
