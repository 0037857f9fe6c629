"""Evaluating runs, files and plain networks: intervals, features kept on disk, all checkpoints."""

import json
import math

import numpy as np
import pytest
import torch
from helpers import run_directories
from helpers.labelled_images import subject_of
from safetensors.torch import save_file
from scipy.stats import binomtest
from torch import nn

import sslkit as library
from sslkit.config.base import Choice
from sslkit.data import ArrayImages, Stores, pack
from sslkit.errors import UserError
from sslkit.evaluation import KNN, Evaluator, cache, checkpoints
from sslkit.evaluation import evaluate as evaluation
from sslkit.evaluation.targets import evaluate_saved
from sslkit.nn.modes import own_random
from sslkit.runs import display as progress
from sslkit.runs.display import Display
from sslkit.runs.records import as_metrics
from sslkit.testing import TinyBackbone

QUIET = Display(quiet=True)


# --- intervals ---


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (7, 10), (61, 80), (7999, 8000), (1, 3), (0, 1)])
def test_the_interval_is_wilson_s(k, n):
    """As statsmodels' proportion_confint(method="wilson") writes it, and as scipy has it."""
    low, high = evaluation.wilson(k / n, n)
    z, p = 1.959963984540054, k / n
    denominator = 1 + z**2 / n
    centre = (p + z**2 / (2 * n)) / denominator
    reach = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / denominator
    assert (low, high) == pytest.approx((max(0, centre - reach), min(1, centre + reach)), abs=1e-12)
    theirs = binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert 0 <= low <= p <= high <= 1


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = rng.binomial(150, 0.8, 4000) / 150
    covered = np.mean([low <= 0.8 <= high for low, high in (evaluation.wilson(p, 150) for p in hits)])
    assert 0.935 < covered < 0.965


def test_names_of_accuracies():
    names = ["top1", "top5", "semi_1_top1", "scratch_top5", "laptop1", "top10", "top1_low", "precision_1", "top1_gap"]
    assert [n for n in names if evaluation.is_accuracy(n)] == names[:4]


def test_figures_show_the_interval_and_trackers_do_not_get_it():
    record = {"evaluator": "semi", "seed": 0, "n_test": 9, "semi_1_top1": 0.5, "semi_1_top1_low": 0.25}
    record |= {"semi_1_top1_high": 0.75, "count": 3, "settings": {"k": 1}}
    assert progress.figures(record) == "semi_1_top1 50.0 % (25.0–75.0)  count 3"
    assert as_metrics(record) == {"semi/semi_1_top1": 0.5, "semi/count": 3.0}
    assert progress.accuracy({"top1": 0.5}, "top1") == "50.0 %"


# --- records ---


@pytest.fixture
def stores(tmp_path):
    train, test = packed(tmp_path / "train.beton", 48), packed(tmp_path / "test.beton", 20, seed=1)
    return Stores(train, train, test, 24, (0.5,) * 3, (0.25,) * 3, "three shades")


def packed(path, n, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    pixels = (rng.integers(0, 120, (n, 24, 24, 3)) + 60 * labels[:, None, None, None]).astype(np.uint8)
    return pack(ArrayImages(lambda: (pixels, labels), f"{n} {seed}", ("a", "b", "c")), path, size=24, mode="raw")


class Chatty(Evaluator):
    """Leaves a picture and a sentence, and measures other images than the test images."""

    protocol = "chat"

    def __call__(self, subject):
        path = subject.attach("cats.txt", "a cat")
        if path:
            path.write_text("cat")
        subject.note("cat taken for dog: 3 of 4")
        return {"other_top1": 0.5, "other_top1_low": 0.4, "other_top1_high": 0.6, "top1": 0.25}


def test_a_record_says_everything(stores, tmp_path, monkeypatch):
    find = evaluation.plugins.find
    monkeypatch.setattr(evaluation.plugins, "find", lambda kind, name: Chatty if name == "chat" else find(kind, name))
    choices = [Choice(name="chat", options=Chatty.Config()), Choice(name="knn", options=KNN.Config(k=3))]
    chat, knn = evaluation.evaluate(TinyBackbone(), choices, stores, torch.device("cpu"), 7, folder=tmp_path / "run")
    assert chat["files"] == [{"path": "figures/chat/cats.txt", "alt": "a cat"}]
    assert (tmp_path / "run/figures/chat/cats.txt").read_text() == "cat"
    assert chat["notes"] == ["cat taken for dog: 3 of 4"]
    assert (chat["other_top1_low"], chat["other_top1_high"]) == (0.4, 0.6), "measured on other images"
    assert (chat["top1_low"], chat["top1_high"]) == evaluation.wilson(0.25, 20)
    assert "files" not in knn
    assert "notes" not in knn
    expected = {"protocol": "k=3, T=0.1, cosine, weighted vote", "data": "three shades", "split": "test", "seed": 7}
    assert expected | {"n_train": 48, "n_test": 20} == {k: knn[k] for k in (*expected, "n_train", "n_test")}
    assert knn["settings"] == {"metric": "cosine", "k": 3, "temperature": 0.1, "layer": None}
    json.dumps([chat, knn])


def tf32_where():
    backends = torch.backends
    return [kind.fp32_precision == "tf32" for kind in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)]


class Precise(Evaluator):
    """Tells which products may be rounded to TF32 while it measures."""

    protocol = "precise"

    def __call__(self, subject):
        # Torch's older switches can still be read, as code of others does.
        older = torch.backends.cuda.matmul.allow_tf32 + torch.backends.cudnn.allow_tf32
        return {"rounded": float(sum(tf32_where()) + older)}


@pytest.fixture
def tf32_in_runs():
    """As a run on a GPU sets it."""
    products, convolutions = torch.backends.cuda.matmul, torch.backends.cudnn
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32 = convolutions.allow_tf32 = True
    yield
    products.allow_tf32, convolutions.allow_tf32 = before


def measured_by(kind, stores, monkeypatch):
    monkeypatch.setattr(evaluation.plugins, "find", lambda *_: kind)
    choices = 2 * [Choice(name="precise", options=kind.Config())]
    return evaluation.evaluate(TinyBackbone(), choices, stores, torch.device("cpu"), 0)


def test_evaluators_compute_without_tf32_and_leave_it_as_it_was(stores, monkeypatch, tf32_in_runs):
    allowed = tf32_where()
    assert all(allowed)
    for _, record in zip(range(2), measured_by(Precise, stores, monkeypatch), strict=True):
        assert record["rounded"] == 0
        assert tf32_where() == allowed, "between two evaluators the run goes on"
    assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cudnn.allow_tf32


def test_an_evaluator_that_fails_leaves_tf32_as_it_was(stores, monkeypatch, tf32_in_runs):
    class Failing(Evaluator):
        def __call__(self, subject):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        next(measured_by(Failing, stores, monkeypatch))
    assert all(tf32_where())


def test_nobody_wants_files(stores):
    judged = subject(stores, TinyBackbone())
    judged.begin("chat")
    assert judged.attach("a.png", "a") is None
    assert judged.files == []


# --- what a subject offers ---


def subject(stores, net, **about):
    about = {"image_size": 24, "mean": stores.mean, "std": stores.std} | about
    return subject_of(net, stores.train, stores.test, **about)


def test_a_fresh_copy_trains_without_touching_the_backbone(stores):
    net = TinyBackbone().eval().requires_grad_(False)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    copy = subject(stores, net).fresh()
    assert copy.training
    assert all(p.requires_grad for p in copy.parameters())
    copy(torch.randn(4, 3, 24, 24)).sum().backward()
    with torch.no_grad():
        copy[0].weight.add_(1)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_initial_weights_depend_on_the_seed_alone(stores):
    net = TinyBackbone()
    state = torch.get_rng_state()
    one, again, other = (
        subject(stores, net, initial=TinyBackbone, seed=seed).fresh(initial=True)[0].weight for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, net[0].weight)
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(UserError, match="from scratch"):
        subject(stores, net).fresh(initial=True)


def test_the_head_is_made_once_when_asked_for(stores):
    made = []

    def make():
        made.append(nn.Linear(16, 4))
        return made[-1]

    judged = subject(stores, TinyBackbone(), head=make)
    assert made == []
    assert judged.head is judged.head is made[0]
    assert not judged.head.training
    assert subject(stores, TinyBackbone()).head is None


def test_the_projection_head_of_a_method():
    class Bare(nn.Module):
        def __init__(self, **parts):
            super().__init__()
            self.backbone = TinyBackbone()
            for name, part in parts.items():
                setattr(self, name, part)

    norm = nn.BatchNorm1d(16)
    method = Bare(projector=nn.Sequential(nn.Linear(16, 16), norm), head=nn.Linear(16, 2))
    assert evaluation.projection_head(method)[0].weight.equal(method.projector[0].weight)
    assert evaluation.projection_head(method) is not method.projector
    assert norm.training
    assert norm.num_batches_tracked == 0
    assert evaluation.projection_head(Bare(head=nn.Linear(144, 4))) is None, "takes nine tiles, not features"
    assert evaluation.projection_head(Bare()) is None


def test_own_random_numbers():
    state = torch.get_rng_state()
    with own_random(3):
        first = torch.rand(2)
    with own_random(3):
        assert torch.equal(first, torch.rand(2))
    assert torch.equal(state, torch.get_rng_state())


# --- features on disk ---


class Counting(TinyBackbone):
    calls = 0

    def forward(self, x):
        Counting.calls += 1
        return super().forward(x)


@pytest.fixture
def counted(stores, tmp_path, monkeypatch):
    """(net, a function that gives the features and whether the network was run for them)."""
    net = Counting()

    def features(given=stores, layer=None, **about):
        before = Counting.calls
        found = subject(given, net, cache=tmp_path / "cache", **about).features_of(layer)
        return found, Counting.calls > before

    return net, features


def test_features_are_extracted_once_for_all_evaluations(counted, stores):
    net, features = counted
    first, ran = features()
    assert ran
    again, ran = features()
    assert not ran
    assert torch.equal(first.train_x, again.train_x)
    assert torch.equal(first.test_x, again.test_x)
    assert torch.equal(first.test_y, again.test_y)
    torch.testing.assert_close(subject(stores, net).features.test_x, again.test_x)


def test_other_weights_images_sizes_and_layers_are_extracted_again(counted, stores, tmp_path):
    net, features = counted
    first, _ = features()
    assert features(image_size=16)[1]
    assert features(mean=(0.1, 0.1, 0.1))[1]
    assert features(precision="bf16")[1]
    assert features(layer="3")[1]
    assert not features(layer="3")[1]
    with torch.no_grad():
        net[3].bias[0] += 1e-6
    changed, ran = features()
    assert ran
    assert not torch.equal(changed.train_x, first.train_x)
    net[1].running_mean += 1
    assert features()[1], "a buffer counts too"
    half = Stores(stores.pretrain, stores.train.subset(range(24)), stores.test, 24, stores.mean, stores.std, "")
    found, ran = features(half)
    assert ran
    assert len(found.train_x) == 24
    other = packed(tmp_path / "train.beton", 48, seed=5)
    repacked = Stores(other, other, stores.test, 24, stores.mean, stores.std, "")
    assert features(repacked)[1], "the same path, other images"


def test_a_damaged_file_is_extracted_again(counted, tmp_path):
    _, features = counted
    first, _ = features()
    for file in (tmp_path / "cache").iterdir():
        file.write_bytes(file.read_bytes()[:-5])
    again, ran = features()
    assert ran
    assert torch.equal(first.train_x, again.train_x)
    assert not features()[1]


def test_a_cache_that_cannot_be_written_costs_no_figure(counted, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    _, features = counted
    assert features()[0].train_x.shape == (48, 16)


def test_the_cache_keeps_within_its_room(counted, tmp_path, monkeypatch):
    _, features = counted
    features()
    size = sum(f.stat().st_size for f in (tmp_path / "cache").iterdir())
    monkeypatch.setattr(cache, "ROOM", size + 10)
    features(image_size=16)
    assert sum(f.stat().st_size for f in (tmp_path / "cache").iterdir()) <= size + 10
    assert not features(image_size=16)[1], "the newest stays"
    monkeypatch.setattr(cache, "ROOM", 10)
    features(image_size=20)
    assert features(image_size=20)[1], "what alone is too large is not kept"


# --- whole runs ---

TINY = {
    "method": {"name": "simclr", "hidden": 32, "dim": 16},
    "backbone": {"name": "shufflenetv2", "stem": "imagenet"},
    "data": {"name": "shapes", "n_train": 64, "n_test": 32, "image_size": 32},
    "batch_size": 32,
    "epochs": 4,
    "device": "cpu",
    "evaluators": ["knn"],
    "quiet": True,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return library.run(**TINY, out=tmp_path_factory.mktemp("run") / "run", keep_checkpoints={"every": 1}, eval_every=0)


def test_every_kept_checkpoint_is_measured_once(run, monkeypatch, capsys):
    from sslkit.cli.tables import print_epoch_curves

    words = ["evaluators=[knn]", "evaluators.knn.k=5"]
    measured = []
    inner = evaluation._measure
    monkeypatch.setattr(evaluation, "_measure", lambda *a: measured.append(1) or inner(*a))
    first = checkpoints.evaluate_checkpoints(run.path, words, QUIET)
    assert [r["epoch"] for r in first] == [1, 2, 3, 4]
    assert [r["step"] for r in first] == [2, 4, 6, 8]
    assert len(measured) == 4
    picture = run.path / "figures/checkpoints.png"
    assert picture.read_bytes()[:4] == b"\x89PNG"

    lines = (run.path / "evaluations.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not (json.loads(line)["epoch"] == 3 and "k=5" in line)]
    (run.path / "evaluations.jsonl").write_text("".join(kept))
    again = checkpoints.evaluate_checkpoints(run.path, words, QUIET)
    assert len(measured) == 5, "only what was missing"
    assert [{**r, "seconds": 0} for r in again] == [{**r, "seconds": 0} for r in first]
    checkpoints.evaluate_checkpoints(run.path, ["evaluators=[knn]", "evaluators.knn.k=6"], QUIET)
    assert len(measured) == 9, "other settings are another measurement"

    print_epoch_curves(first)
    shown = capsys.readouterr().out
    assert "last epoch" in shown
    assert "maximum over epochs" in shown
    assert "at 4" in shown


def test_the_last_checkpoint_is_the_backbone_file_and_the_run_s_own_figures_count(run):
    [last] = [r for r in run.evaluations if r["during_run"] and r["epoch"] == 4]
    records = checkpoints.evaluate_checkpoints(run.path, [], QUIET)
    assert [r["epoch"] for r in records] == [0, 1, 2, 3, 4]
    assert records[-1] == last
    [now] = evaluate_saved(run.path, [], QUIET)
    assert now["top1"] == last["top1"]
    assert (now["epoch"], now["step"], now["during_run"]) == (4, 8, False)
    assert len({r["top1"] for r in records}) > 1, "other epochs are other networks"


def test_the_course_of_an_accuracy():
    records = [{"evaluator": "knn", "epoch": e, "top1": t, "top5": 1.0} for e, t in enumerate((0.1, 0.7, 0.7, 0.6))]
    [course] = checkpoints.epoch_curves(records)
    assert (course.last["epoch"], course.best["epoch"]) == (3, 1)


def test_a_damaged_checkpoint_and_something_that_is_no_run_are_named(run, tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        checkpoints.evaluate_checkpoints(run.backbone_file, [], QUIET)
    path = run.checkpoints[1] / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"x")
    try:
        with pytest.raises(UserError, match=r"epoch-0002 is damaged"):
            checkpoints.evaluate_checkpoints(run.path, ["evaluators=[knn]", "evaluators.knn.k=9"], QUIET)
    finally:
        path.write_bytes(whole)


def test_the_saved_head_is_that_of_the_method(run):
    from sslkit.evaluation.targets import open_target

    opened = open_target(run.path, [], QUIET)
    newest, older = opened.saved_head(), opened.saved_head(run.checkpoints[0])
    assert newest(torch.zeros(2, 1024)).shape == (2, 16)
    assert not torch.equal(newest[0].weight, older[0].weight)


def test_the_command_line(run, sslkit):
    done = sslkit("evaluate", str(run.path), "--all-checkpoints")
    assert done.returncode == 0, done.stderr
    assert "maximum over epochs (chosen by test labels)" in done.stdout
    listed = sslkit("evaluate", str(run.path), "evaluators=[knn]")
    assert " % (" in listed.stdout
    assert sslkit("evaluate", str(run.backbone_file), "--all-checkpoints").returncode == 2


def test_a_plain_backbone_by_its_name(sslkit, tmp_path):
    words = ["data=shapes", "data.n_train=48", "data.n_test=24", "data.image_size=32", "evaluators=[knn]", "--json"]
    done = sslkit("evaluate", "timm:resnet10t", *words)
    assert done.returncode == 0, done.stderr
    [random] = json.loads(done.stdout)
    assert json.loads(sslkit("evaluate", "timm:resnet10t", *words).stdout)[0]["top1"] == random["top1"]
    assert random["n_test"] == 24
    assert sslkit("evaluate", "timm:resnet10t").returncode == 2, "it must be given images"
    assert "neither a run" in sslkit("evaluate", "resnet81", *words).stderr

    net = library.create_backbone("timm:resnet10t", 32, stem="imagenet")
    nn.init.zeros_(net.layer4[0].conv1.weight)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    loaded = [*words, "backbone.pretrained=w.safetensors", "backbone.stem=imagenet", "out=here"]
    assert sslkit("evaluate", "timm:resnet10t", *loaded).returncode == 0
    [kept] = [json.loads(line) for line in (tmp_path / "here/evaluations.jsonl").read_text().splitlines()]
    assert kept["evaluator"] == "knn"


def test_records_of_a_file_never_mix_with_those_of_a_run(run, sslkit):
    done = sslkit("evaluate", "resnet18", "data=shapes", f"out={run.path}")
    assert done.returncode == 2
    assert "is a run" in done.stderr


def test_an_evaluation_without_labels_is_a_users_mistake(stores):
    bare = Stores(stores.pretrain, None, None, 24, stores.mean, stores.std, "none")
    choices = [Choice(name=name) for name in ("cost", "linear", "knn")]
    with pytest.raises(UserError, match="and linear and knn need them; name labelled images with eval_data="):
        next(evaluation.evaluate(TinyBackbone(), choices, bare, None, 0))


def test_cost_needs_no_labels_and_a_folder_may_be_called_a_number(tmp_path, sslkit):
    for number in range(4):
        run_directories.png(tmp_path / f"7/{number}.png", size=(32, 32))
    once = ["evaluators.cost.batch_sizes=[1]", "evaluators.cost.repeats=1", "evaluators.cost.warmup=1"]
    done = sslkit("evaluate", "timm:resnet10t", "data=7", "data.image_size=32", "evaluators=[cost]", *once, "out=1")
    assert done.returncode == 0, done.stderr
    [kept] = [json.loads(line) for line in (tmp_path / "1/evaluations.jsonl").read_text().splitlines()]
    assert kept["parameters"] > 1e6
    assert (kept["split"], kept["n_train"], kept["n_test"]) == ("pretrain", 4, 4)
    refused = sslkit("evaluate", "timm:resnet10t", "data=7", "data.image_size=32", "evaluators=[cost,knn]")
    assert refused.returncode == 2
    assert "and knn needs them" in refused.stderr
