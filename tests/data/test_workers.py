"""How many cores decode: the choice, what is said of it, and that no batch depends on it."""

import json
import shutil
from dataclasses import asdict
from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file

import sslkit
from sslkit.config.resolve import resolve
from sslkit.data import Shapes, make_loader, pack
from sslkit.data.loaders import ffcv, workers
from sslkit.errors import UserError
from sslkit.machine.environment import core_count
from sslkit.runs.display import Display
from sslkit.training.build import build
from sslkit.training.engine import resume
from sslkit.training.tune.timings import Timing, key_of, remembered_in

needs_ffcv = pytest.mark.skipif(find_spec("ffcv") is None, reason="FFCV is not installed")
STREAMING = ["torch", pytest.param("ffcv", marks=needs_ffcv)]
WORDS = [
    "method=simclr", "method.hidden=16", "method.dim=8", "backbone=shufflenetv2", "data=shapes", "data.n_train=64",
    "data.n_test=16", "data.image_size=32", "batch_size=16", "device=cpu", "evaluators=[]", "loader=torch", "epochs=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    images = Shapes(Shapes.Config(n_train=90, image_size=40)).images("pretrain")
    return pack(images, tmp_path_factory.mktemp("store") / "a.beton", size=112)


@pytest.fixture
def four_cores(monkeypatch):
    monkeypatch.setattr(workers, "core_count", lambda: 4)


def loader(store, kind="torch", number="auto"):
    return make_loader(store, batch_size=16, seed=7, device="cpu", kind=kind, workers=number)


@pytest.mark.parametrize(
    ("one", "needed", "chosen"),
    [(5200, 1000, 1), (1500, 1000, 1), (1499, 1000, 2), (500, 1000, 3), (100, 1000, 8), (1e9, 1, 1)],
)
def test_as_few_as_decode_half_as_much_again_as_the_steps_take(one, needed, chosen):
    assert workers.enough(one, needed, 8, busy=True) == chosen


def test_without_figures_half_of_the_cores_and_beside_a_gpu_all():
    assert [workers.enough(None, None, cores, busy=True) for cores in (1, 2, 3, 8)] == [1, 1, 1, 4]
    assert workers.enough(900.0, None, 8, busy=True) == 4
    assert workers.enough(5000, 10, 8, busy=False) == 8


def test_one_line_says_the_choice_and_why(store, four_cores, monkeypatch):
    said, made = [], loader(store)
    monkeypatch.setattr(workers, "rate_of_one", lambda store: 5200.4)
    workers.decide(made, 1000, said.append)
    assert said == ["decoding with 1 of 4 cores: one decodes 5,200 images/s, training takes 1,000"]
    workers.decide(made, 9000, said.append)
    assert made.workers == 3
    workers.decide(made, None, said.append)
    assert said[2] == "decoding with 2 of 4 cores: half of them, because the speed of training is unknown"
    workers.decide(made, 9000, said.append, processes=4)
    assert said[3].startswith("decoding with 1 of 1 core: ")
    made.device = torch.device("cuda")
    workers.decide(made, 1000, said.append)
    assert said[4] == "decoding with 4 of 4 cores: the network does not run on the CPU"


def test_the_resident_loader_decodes_with_all_cores_and_says_nothing(store):
    made = loader(store, "resident")
    workers.decide(made, 1000, pytest.fail)
    assert made.workers == core_count()


def test_the_rate_of_one_is_that_of_reading(store):
    assert 100 < workers.rate_of_one(store) < 1e7
    assert workers.rate_of_one(store.subset([3])) > 100


@pytest.mark.parametrize("kind", STREAMING)
def test_batches_are_the_same_for_any_number(store, kind):
    wanted = list(loader(store, "resident").epoch(3))
    for number in (1, 2, 5):
        made = loader(store, kind)
        made.workers = number
        batches = list(made.epoch(3))
        assert len(batches) == len(wanted)
        assert all(torch.equal(a, b) for one, other in zip(batches, wanted) for a, b in zip(one, other))


@needs_ffcv
def test_ffcv_is_built_with_the_number_that_was_decided(store, four_cores, monkeypatch):
    built, real = [], ffcv._ffcv_loader
    monkeypatch.setattr(ffcv, "_ffcv_loader", lambda *given: built.append(given[-1]) or real(*given))
    monkeypatch.setattr(workers, "rate_of_one", lambda store: 100.0)
    made = loader(store, "ffcv")
    assert built == []
    workers.decide(made, 200, lambda text: None)
    for epoch in range(2):
        assert len(list(made.epoch(epoch))) == 5
    assert built == [3]


def setup_of(*words):
    said = []
    return build(resolve([*WORDS, *words]).config, said.append), [line for line in said if "decoding with" in line]


@pytest.mark.parametrize(("number", "threads"), [(1, 1), (3, 3), (-1, core_count())])
def test_a_number_that_was_asked_for_is_kept(number, threads):
    setup, said = setup_of(f"workers={number}")
    assert (setup.loader.workers, said) == (threads, [])


@pytest.mark.parametrize("number", [0, -2, "some"])
def test_other_values_are_mistakes(number):
    with pytest.raises(UserError, match="workers"):
        resolve([*WORDS, f"workers={number}"])


def test_a_run_decides_by_the_step_that_tune_has_timed(four_cores, monkeypatch):
    monkeypatch.setattr(workers, "rate_of_one", lambda store: 1000.0)
    setup, (line,) = setup_of()
    assert line == "decoding with 2 of 4 cores: half of them, because the speed of training is unknown"
    file, timing = remembered_in(setup), Timing(setup.execution, first=1.0, step=0.008)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"about": key_of(setup), "compiled_views": None, "timings": [asdict(timing)]}))
    try:
        setup, (line,) = setup_of()
    finally:
        file.unlink()
    assert line == "decoding with 3 of 4 cores: one decodes 1,000 images/s, training takes 2,000"
    assert setup.loader.workers == 3


def test_a_run_resumes_with_another_number_to_the_same_weights(tmp_path, monkeypatch):
    settings = {
        "method": {"name": "simclr", "hidden": 16, "dim": 8},
        "backbone": {"name": "shufflenetv2", "stem": "imagenet"},
        "data": {"name": "shapes", "n_train": 64, "n_test": 16, "image_size": 32},
        "batch_size": 16, "epochs": 2, "device": "cpu", "evaluators": [], "loader": "torch", "report": False,
        "checkpoint_every": 1, "quiet": True,
    }  # fmt: skip
    chosen = iter((1, 3))
    monkeypatch.setattr(workers, "enough", lambda *figures: next(chosen))
    done = sslkit.run(**settings, out=tmp_path / "run")
    assert done.derived["workers"] == 1
    before = load_file(done.backbone_file)
    shutil.rmtree(done.path / "checkpoints/epoch-0002")
    again = resume(done.path, Display(quiet=True))
    assert again.derived["workers"] == 3
    after = load_file(again.backbone_file)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
