"""One optimizer step: micro-batches give the gradient of the whole batch, in the memory of one of them."""

import copy
import gc

import pytest
import torch
from helpers.small_methods import OPTIONS, backbone_for, make, same, without_batch_norm

from sslkit import plugins
from sslkit.config.resolve import resolve
from sslkit.methods import Method, RunInfo
from sslkit.training.build import build
from sslkit.training.setup import TrainingSetup
from sslkit.training.step import _MicroBatches, train_step

COUPLED = [n for n in plugins.names("methods") if plugins.find("methods", n).embed is not Method.embed]
ALONE = [n for n in plugins.names("methods") if n not in COUPLED]
DATA = ["data=shapes", "data.n_train=32", "data.n_test=8", "data.image_size=32", "device=cpu"]


def setup_of(method: str, norm: bool = False, **settings: object) -> TrainingSetup:
    """A built run whose method is small and, without `norm`, free of batch norm; plain SGD shows the gradients."""
    words = [f"{key}={value}" for key, value in settings.items()]
    words += [f"method.{key}={value}" for key, value in OPTIONS.get(method, {}).items()]
    words += ["optimizer.clip_grad=null"]
    words += [] if "backbone" in settings else ["backbone=vit_tiny"]
    setup = build(resolve([f"method={method}", "evaluators=[]", *DATA, *words]).config, print)
    if not norm:
        torch.manual_seed(0)
        shapes = setup.stores.pretrain
        info = RunInfo(len(shapes), len(shapes.classes), 32)
        setup.method = setup.trained = without_batch_norm(make(method, backbone_for(method), info))
    setup.optimizer = torch.optim.SGD([p for p in setup.method.parameters() if p.requires_grad], lr=0.1)
    return setup


def gradients(setup: TrainingSetup, image_batches, **options) -> dict[str, torch.Tensor]:
    found = {}

    def keep():
        found.update({n: p.grad.clone() for n, p in setup.method.named_parameters() if p.grad is not None})

    setup.optimizer.step = keep
    torch.manual_seed(0)
    train_step(setup, image_batches, 0, **options)
    return found


def first_batches(setup: TrainingSetup, count: int = 1) -> list:
    batches = setup.loader.epoch(0)
    return [next(batches) for _ in range(count)]


@pytest.mark.parametrize("name", COUPLED)
def test_micro_batches_have_the_gradient_of_the_whole_batch(name):
    setup = setup_of(name, batch_size=16, micro_batch=4)
    image_batches, reference = first_batches(setup), copy.deepcopy(setup.method)
    ours = gradients(setup, image_batches)

    # All micro-batches in one graph: what micro-batches must equal, random draws included.
    micro_batches = _MicroBatches(setup, image_batches[0], 0, 0, 4)
    embedded = [reference.embed(micro_batches[i]) for i in range(4)]
    reference.loss({k: torch.cat([e[k] for e in embedded]) for k in embedded[0]})["loss"].backward()
    expected = {n: p.grad for n, p in reference.named_parameters() if p.grad is not None}
    assert ours.keys() == expected.keys()
    assert any(g.abs().max() > 0 for g in ours.values())
    for key in expected:
        same(ours[key], expected[key])


@pytest.mark.parametrize("name", [n for n in ALONE if n not in ("random",)])
def test_where_the_loss_is_a_mean_micro_batches_are_its_parts(name):
    setup = setup_of(name, batch_size=16, micro_batch=8)
    image_batches, reference = first_batches(setup), copy.deepcopy(setup.method)
    ours = gradients(setup, image_batches)
    micro_batches = _MicroBatches(setup, image_batches[0], 0, 0, 8)
    for i in range(2):
        (reference(micro_batches[i])["loss"] / 2).backward()
    for key, p in reference.named_parameters():
        if p.grad is not None:
            same(ours[key], p.grad)


def test_simclr_in_micro_batches_equals_one_batch_of_the_same_views():
    setup = setup_of("simclr", batch_size=16, augment="none")
    image_batches = first_batches(setup)
    whole, micro_batches = gradients(setup, image_batches), gradients(setup, image_batches, micro_batch=4)
    for key in whole:
        same(micro_batches[key], whole[key])


def test_accumulated_batches_are_averaged():
    setup = setup_of("simclr", batch_size=8, accumulate=2, augment="none")
    image_batches = first_batches(setup, 2)
    both = gradients(setup, image_batches)
    one, two = (gradients(setup, [image_batch]) for image_batch in image_batches)
    for key in both:
        same(both[key], (one[key] + two[key]) / 2)


def test_batch_norm_counts_every_image_once():
    setup = setup_of("mocov2", norm=True, batch_size=16, micro_batch=4, backbone="shufflenetv2")
    train_step(setup, first_batches(setup), 0)
    counts = {int(v) for k, v in setup.method.backbone.state_dict().items() if k.endswith("num_batches_tracked")}
    assert counts == {4}, "four micro-batches, each embedded twice and counted once"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["micro_batch=5"], "micro_batch: 5 does not divide batch_size=16"),
        (["devices=3"], "devices: batch_size=16 cannot be divided by 3"),
        (["devices=2", "micro_batch=3"], "micro_batch: 3 does not divide the 8 images of each process"),
    ],
)
def test_a_micro_batch_must_divide_the_batch(sslkit, words, message):
    done = sslkit("run", "batch_size=16", *DATA, *words)
    assert done.returncode == 2
    assert message in done.stderr


def peak_bytes(work) -> int:
    """The most that tensors took on the CPU while `work` ran, above what was there before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    now = most = 0
    for event in sorted(profile.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_batch_of_4096_in_micro_batches_of_128_takes_the_memory_of_128():
    words = ["data=shapes", "data.n_train=4096", "data.n_test=8", "data.image_size=32", "device=cpu", "evaluators=[]"]
    words += ["method=simclr", "backbone=shufflenetv2", "backbone.stem=imagenet"]
    words += ["optimizer.name=sgd", "optimizer.momentum=0"]
    # Too few steps for `tune` to try other executions, of which each size might be given another.
    words += ["epochs=1"]
    peaks = {}
    for size in (128, 4096):
        setup = build(resolve([*words, f"batch_size={size}", "micro_batch=128"]).config, print)
        image_batches = first_batches(setup)
        gc.collect()
        peaks[size] = peak_bytes(lambda setup=setup, image_batches=image_batches: train_step(setup, image_batches, 0))
        del setup, image_batches
    embeddings = 4096 * 2 * 128 * 4
    assert peaks[4096] < 1.3 * peaks[128] + 2 * embeddings, {k: f"{v / 2**20:.0f} MiB" for k, v in peaks.items()}
