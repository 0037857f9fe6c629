"""Two processes against one: exchanges, gradients of every method, whole runs, and what happens when one dies."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from helpers.forked_command import Forked
from helpers.launched import wait_for, workers_of
from helpers.paths import PYTHONPATH
from helpers.small_methods import backbone_for, make, same, without_batch_norm
from safetensors.torch import load_file, save_file

from sslkit import plugins
from sslkit.config.resolve import resolve
from sslkit.machine import distributed
from sslkit.methods import Batch, Method, RunInfo
from sslkit.runs.run import Run
from sslkit.testing import in_two_processes
from sslkit.testing.processes import half
from sslkit.training import tune
from sslkit.training.build import build

IMAGES, SIZE, STEPS = 8, 32, 3
INFO = RunInfo(images=4 * IMAGES, classes=4, image_size=SIZE)


def test_alone_every_exchange_is_the_identity():
    rows = torch.randn(3, 2, requires_grad=True)
    assert distributed.gather(rows) is rows
    assert distributed.shared(rows) is rows
    assert distributed.mean(rows) is rows
    assert distributed.largest(7) == 7
    assert distributed.from_main("x") == "x"
    assert (distributed.rank(), distributed.world(), distributed.is_main()) == (0, 1, True)


def exchange(rank: int) -> None:
    rows = torch.arange(4.0).view(2, 2).add(10 * rank).requires_grad_()
    whole = distributed.gather(rows)
    assert torch.equal(whole, torch.tensor([[0.0, 1], [2, 3], [10, 11], [12, 13]]))
    # Each process asks something else of the rows; the gradient is the sum of both.
    weights = torch.arange(8.0).view(4, 2) + rank
    (whole * weights).sum().backward()
    everyone = 2 * torch.arange(8.0).view(4, 2) + 1
    assert torch.equal(rows.grad, everyone.chunk(2)[rank])
    assert distributed.shared(torch.tensor([float(rank)])) == 0
    assert distributed.mean(torch.tensor(float(rank))) == 0.5
    assert distributed.largest(rank) == 1
    assert distributed.from_main({"rank": rank}) == {"rank": 0}


def test_exchanges_between_two_processes():
    in_two_processes(exchange)


def main_is_first(rank: int, folder: str) -> None:
    file = Path(folder) / "done"
    with distributed.main_first():
        if rank == 0:
            time.sleep(0.3)
            file.touch()
        assert file.exists()


def test_the_first_process_goes_first(tmp_path):
    in_two_processes(main_is_first, str(tmp_path))


def tuned_with_a_failure(rank: int, folder: str) -> None:
    """What tune chooses where the step of one direction fails in the second process alone."""
    os.environ["SSLKIT_CACHE"] = folder
    tune.FEWEST_STEPS, tune.trials.TIMED_STEPS = 1, 1
    step = tune.trials.train_step

    def failing(setup, image_batches, number):
        if rank == 1 and setup.execution.channels_last:
            raise torch.OutOfMemoryError("out of memory here")
        return step(setup, image_batches, number)

    tune.trials.train_step = failing
    said: list[str] = []
    words = [*TINY, "method=simclr", "backbone=shufflenetv2", "precision=fp32", "compile=false", "report=false"]
    setup = build(resolve(words).config, said.append)
    assert str(setup.execution) == "fp32, channels first"
    if rank == 0:
        assert any("fp32, channels last" in line and "not possible here: out of memory here" in line for line in said)
    with distributed.alone():
        assert (distributed.rank(), distributed.world(), distributed.everyones(rank)) == (0, 1, [rank])
    assert distributed.everyones(rank) == [0, 1]


def test_a_candidate_that_fails_in_one_process_is_none_for_the_others(tmp_path):
    in_two_processes(tuned_with_a_failure, str(tmp_path))


# --- every method: two processes with half of the batch each, against one with all of it ---


def whole_batch(name: str) -> Batch:
    """Views of 8 images as the method's own augmentation makes them, and what else it asks for."""
    method, generator = plugins.find("methods", name), torch.Generator().manual_seed(1)
    augmentation_class = plugins.find("augmentations", method.augment)
    augmentation = augmentation_class(augmentation_class.Config(), SIZE, INFO.mean, INFO.std)
    images = torch.randint(0, 256, (IMAGES, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    labels = torch.arange(IMAGES) % 4 if method.uses_labels else None
    return Batch(augmentation(images, generator), torch.arange(IMAGES) + 5, labels)


def exact(name: str) -> Method:
    """The method in float64 without batch norm, the same wherever it is made."""
    torch.manual_seed(0)
    return without_batch_norm(make(name, backbone_for(name, SIZE), INFO)).double()


def in_double(batch: Batch) -> Batch:
    return Batch([crop.double() for crop in batch.crops], batch.indices, batch.labels)


def seed(step: int, rank: int) -> None:
    torch.manual_seed(100 * step + rank)


def on_whole_batch(method: Method, batch: Batch, step: int) -> torch.Tensor:
    """The loss one process has, drawing for each half what the process of that half draws."""
    if type(method).embed is Method.embed:
        losses = []
        for rank in (0, 1):
            seed(step, rank)
            losses.append(method(half(batch, rank))["loss"])
        return torch.stack(losses).mean()
    embedded = {}
    # The first half last, for draws within the loss are the first process's.
    for rank in (1, 0):
        seed(step, rank)
        embedded[rank] = method.embed(half(batch, rank))
    return method.loss({k: torch.cat([embedded[0][k], embedded[1][k]]) for k in embedded[0]})["loss"]


def three_steps(method: Method, loss_of) -> dict[str, torch.Tensor]:
    """Losses, gradients and, at the end, weights and buffers of three steps of SGD."""
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    seen = {}
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(step)
        loss.backward()
        seen[f"loss {step}"] = distributed.mean(loss.detach())
        seen |= {f"gradient {step} {n}": p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
        optimizer.step()
        method.after_step((step + 1) / STEPS)
    return seen | {f"state {k}": v.clone().contiguous() for k, v in method.state_dict().items()}


def together(rank: int, names: list[str], folder: str) -> None:
    for name in names:
        method, batch = exact(name), half(in_double(whole_batch(name)), rank)
        wrapped = torch.nn.parallel.DistributedDataParallel(method)

        def loss_of(step, wrapped=wrapped, batch=batch):
            seed(step, dist.get_rank())
            return wrapped(batch)["loss"]

        save_file(three_steps(method, loss_of), f"{folder}/{name}-{rank}.safetensors")


@pytest.fixture(scope="module")
def of_two(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(together, plugins.names("methods"), str(folder))
    return folder


@pytest.mark.parametrize("name", plugins.names("methods"))
def test_two_processes_do_what_one_does(name, of_two):
    batch, method = in_double(whole_batch(name)), exact(name)
    alone = three_steps(method, lambda step: on_whole_batch(method, batch, step))
    for rank in (0, 1):
        theirs = load_file(of_two / f"{name}-{rank}.safetensors")
        assert theirs.keys() == alone.keys()
        for key, value in alone.items():
            if value.is_floating_point():
                same(theirs[key], value)
            else:
                assert torch.equal(theirs[key], value), key


# --- whole runs ---

TINY = ["data=shapes", "data.n_train=32", "data.n_test=16", "data.image_size=32", "batch_size=8", "device=cpu"]
SMALL = ["method=simclr", "backbone=vit_tiny", "method.norm=false"]
PLAIN = ["augment=none", "augment.views=2", "optimizer.name=sgd", "optimizer.lr=0.05", "evaluators=[knn]", "epochs=2"]
LONG = ["epochs=300", "eval_every=0", "compile=false"]
"""Long enough to outlast a test and for both processes to tune; never compiled, however slow the steps are found."""
ENV = {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def with_two(tmp_path_factory):
    """A run of two processes, and what it printed."""
    folder = tmp_path_factory.mktemp("devices")
    status, out, err = finished(folder, "run", *TINY, *SMALL, *PLAIN, "devices=2", "out=run")
    assert status == 0, err
    return Run.open(folder / "run"), out


def test_devices_2_trains_as_one_process_does(tmp_path, with_two):
    status, _, err = finished(tmp_path, "run", *TINY, *SMALL, *PLAIN, "devices=1", "out=run")
    assert status == 0, err
    one, (two, printed) = Run.open(tmp_path / "run"), with_two
    assert (one.derived["processes"], two.derived["processes"]) == (1, 2)
    assert [m["step"] for m in two.metrics] == [m["step"] for m in one.metrics] == [4, 8]
    for mine, theirs in zip(one.metrics, two.metrics):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=1e-4)
    assert len(two.evaluations) == len(one.evaluations) == 2
    weights = [load_file(r.backbone_file) for r in (one, two)]
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-3, atol=1e-5)
    assert printed.count("pre-trained") == 1, "the outcome is printed once"


def test_resume_with_another_number_of_processes_says_so(tmp_path):
    words = ["run", *TINY, *SMALL, *PLAIN[:-1], "epochs=60", "checkpoint_every=1", "devices=2", "out=run"]
    running = Forked(tmp_path, *words, env=ENV)
    wait_for(tmp_path / "run/checkpoints/epoch-0002/state.json", running)
    running.send_signal(signal.SIGTERM)
    out = running.communicate(timeout=60)[1]
    assert running.returncode == 143, out
    assert "stopped; saved" in out

    # Shorter now, so that the test ends: what counts is where it goes on.
    config = tmp_path / "run/config.yaml"
    step = Run.open(tmp_path / "run").newest_checkpoint()[0].step
    config.write_text(config.read_text().replace("epochs: 60", f"epochs: {step // 4 + 1}"))
    status, _, err = finished(tmp_path, "resume", "run", "--devices", "1")
    assert status == 0, err
    assert "started with 2 processes, resuming with 1" in err
    assert f"resuming from step {step}" in err
    assert Run.open(tmp_path / "run").derived["processes"] == 1


def test_under_torchrun_by_hand(tmp_path):
    words = ["run", *TINY, *SMALL, *PLAIN, "out=run"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sslkit"]
    done = subprocess.run(
        [*torchrun, *words], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert Run.open(tmp_path / "run").derived["processes"] == 2
    assert done.stdout.count("pre-trained") == 1


def test_a_process_that_dies_ends_the_others_within_seconds(tmp_path):
    running = Forked(tmp_path, "run", *TINY, *SMALL, *PLAIN[:-1], *LONG, "devices=2", "out=run", env=ENV)
    wait_for(tmp_path / "run/metrics.jsonl", running)
    victim = next(pid for pid, rank in workers_of(running.pid) if rank == "1")
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    out = running.communicate(timeout=60)[1]
    assert time.monotonic() - began < 20
    assert running.returncode == 2
    assert "process 1 of 2 was killed by SIGKILL, and the others were stopped" in out
    assert "Traceback" not in out


def test_a_mistake_in_the_processes_leaves_no_run_behind(tmp_path):
    status, _, err = finished(tmp_path, "run", *TINY, *SMALL, *PLAIN, "devices=2", "out=run", "accumulate=100")
    assert status == 2
    assert err.count("one step takes batch_size × accumulate") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


def environment() -> dict[str, str]:
    return {**os.environ, **ENV, "PYTHONPATH": PYTHONPATH, "COLUMNS": "200"}


def finished(folder: Path, *words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `sslkit words...`."""
    running = Forked(folder, *words, env=ENV)
    out, err = running.communicate()
    return running.returncode, out, err


def test_metrics_are_means_over_the_processes(with_two):
    lines = (with_two[0].path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2, "one process writes"
    assert {"loss", "contrastive_accuracy", "images_per_second"} <= json.loads(lines[0]).keys()
