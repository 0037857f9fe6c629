"""The bench: turns, statistics, what each contestant does and does not do, and what it writes."""

import importlib.util
import io
import json
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from helpers.paths import ROOT
from rich.console import Console
from sslkit_bench import clock, contest, peers, show
from sslkit_bench.clock import Contestant, Protocol, paired, summary, take_turns, turn
from sslkit_bench.contestants import STAGES, Stages, Step, ViewsContestant, bounded, first_batch

from sslkit.config.resolve import resolve
from sslkit.errors import UserError
from sslkit.training import tune
from sslkit.training.build import build

WORDS = [
    "method=simclr", "method.hidden=16", "method.dim=8", "backbone=shufflenetv2", "data=digits", "batch_size=8",
    "augment=simclr", "device=cpu", "workers=2", "evaluators=[]", "tune=off",
]  # fmt: skip
"""What is timed is the usual candidate."""


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch):
    monkeypatch.setattr(clock, "TURN_SECONDS", 1e-9)


def setup_of(*words):
    keys = {word.partition("=")[0] for word in words}
    kept = [w for w in WORDS if w.partition("=")[0] not in keys and not (w[:7] == "method." and "method" in keys)]
    return build(resolve([*kept, *words]).config, lambda text: None)


# --- turns ---


class Noted(Contestant):
    """Writes down what is asked of it."""

    images = 1

    def __init__(self, name, log, least=1):
        self.name, self.log, self.least = name, log, least

    def begin(self):
        self.log.append(f"begin {self.name}")

    def step(self):
        self.log.append(self.name)

    def end(self):
        self.log.append(f"end {self.name}")


def test_contestants_take_turns():
    log = []
    times, failed = take_turns([Noted("a", log), Noted("b", log, least=2)], Protocol(repeats=3), lambda: None)
    a, b = ["begin a", "a", "a", "end a"], ["begin b", "b", "b", "b", "end b"]
    assert log == a + b + a + b + b + a + a + b, "one round to warm up, three that count, every second one backwards"
    assert failed == {}
    assert [len(turn_times.seconds) for turn_times in times.values()] == [3, 3]
    assert [turn_times.steps for turn_times in times.values()] == [1, 2]


def test_no_round_begins_after_the_time():
    times, _ = take_turns([Noted("a", [])], Protocol(repeats=9, seconds=0.0), lambda: None)
    assert len(times["a"].seconds) == 1


def test_steps_fill_a_turn_in_multiples(monkeypatch):
    monkeypatch.setattr(clock, "TURN_SECONDS", 1.0)
    assert clock._steps(0.3, 1) == 4
    assert clock._steps(0.3, 3) == 6
    assert clock._steps(7.0, 1) == 1
    assert clock._steps(1e-6, 1) == clock.MOST_STEPS


def test_a_sample_is_the_mean_step_between_synchronisations():
    class Lazy(Contestant):
        """Gives the device work, which is done when somebody waits for it."""

        name, images, owed = "lazy", 1, 0

        def step(self):
            self.owed += 1
            return {"part": 0.25}

        def wait(self):
            time.sleep(0.02 * self.owed)
            self.owed = 0

    lazy = Lazy()
    seconds, parts = turn(lazy, 4, lazy.wait)
    assert 0.02 <= seconds < 0.04
    assert parts == {"part": 0.25}


def test_a_peer_that_fails_is_reported_and_our_own_is_not_hidden():
    class Broken(Noted):
        foreign = True

        def step(self):
            raise RuntimeError("out of\nshared memory")

    log = []
    times, failed = take_turns([Broken("x", log), Noted("a", [])], Protocol(repeats=1), lambda: None)
    assert failed == {"x": "failed: out of shared memory"}
    assert list(times) == ["a"]
    assert log == ["begin x", "end x"]

    class Late(Broken):
        def step(self):
            self.log.append(self.name)
            if len(self.log) > 6:
                raise RuntimeError("a worker died")

    times, failed = take_turns([Noted("a", []), Late("x", [])], Protocol(repeats=3), lambda: None)
    assert failed == {"x": "failed: a worker died"}
    assert len(times["a"].seconds) == 3
    assert "x" not in times, "rounds that it was not in have no pair"
    Broken.foreign = False
    with pytest.raises(RuntimeError, match="shared memory"):
        take_turns([Broken("x", log)], Protocol(repeats=1), lambda: None)


# --- statistics ---


def test_median_and_quartiles():
    # Inclusive quartiles of n samples lie at positions (n - 1)/4 and 3 (n - 1)/4 of the sorted ones.
    found = summary([4.0, 1.0, 3.0, 2.0])
    assert found == {"median": 2.5, "q1": 1.75, "q3": 3.25, "n": 4, "samples": [4.0, 1.0, 3.0, 2.0]}
    assert summary([7.0]) == {"median": 7.0, "q1": 7.0, "q3": 7.0, "n": 1, "samples": [7.0]}


def test_ratios_are_those_of_each_round():
    """The machine is ten times slower in the second round: the ratio of the medians would not see who is faster."""
    fast, slow = [20.0, 2.0, 30.0], [10.0, 1.0, 10.0]
    assert paired(fast, slow) == [2.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="zip"):
        paired(fast, slow[:2])
    contestants = [Noted("step", []), Noted("bound", []), Noted("views", [])]
    contestants[0].images, contestants[1].images, contestants[2].images = 8, 4, 4
    times = {"step": [2.0, 4.0], "bound": [0.5, 2.0], "views": [0.1, 0.2]}
    found = contest._results(contestants, {n: clock.TurnTimes(1, s) for n, s in times.items()})
    # images/s: step 4, 2; bound 8, 2; views 40, 20.
    assert found["ratios"]["step/bound"]["samples"] == [0.5, 1.0]
    assert found["ratios"]["step/bound"]["median"] == 0.75
    assert found["ratios"]["step/views"]["samples"] == pytest.approx([0.1, 0.1])
    assert "step/lightly" not in found["ratios"]
    assert found["contestants"]["bound"]["images_per_second"]["median"] == 5.0


# --- our own ---


class Counted:
    """Counts the batches that a loader gives."""

    def __init__(self, loader):
        self.loader, self.batches = loader, 0

    def epoch(self, epoch, start=0):
        for batch in self.loader.epoch(epoch, start):
            self.batches += 1
            yield batch


@pytest.mark.parametrize("more", [[], ["micro_batch=4"], ["accumulate=2"]], ids=str)
def test_the_bound_runs_no_views_and_no_loader(more):
    setup = setup_of(*more)
    image_batch = first_batch(setup)
    setup.loader = Counted(setup.loader)
    made, passed, stepped = [], [], []
    bound = Step("bound", bounded(setup, image_batch))
    setup.augmentation.register_forward_hook(lambda *_: made.append(1))
    setup.method.backbone.register_forward_hook(lambda net, given, out: passed.append(len(out)))
    setup.optimizer.register_step_post_hook(lambda *_: stepped.append(1))
    before = setup.method.backbone.conv1[0].weight.clone()
    turn(bound, 2, lambda: None)
    assert (len(made), setup.loader.batches) == (0, 0)
    of_bound = list(passed)
    passed.clear()
    step = Step("step", setup)
    turn(step, 2, lambda: None)
    assert len(made) > 0
    assert setup.loader.batches == 3 * setup.config.accumulate
    assert passed == of_bound, "the same passes of the same network"
    assert len(stepped) == 6
    assert bound.images == step.images == setup.images_per_step
    assert not torch.equal(before, setup.method.backbone.conv1[0].weight), "one and the same network is trained"


def test_a_loader_decodes_nothing_ahead_after_its_turn():
    import threading

    step = Step("step", setup_of("loader=torch"))
    turn(step, 1, lambda: None)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("sslkit-data")]


def test_a_step_beyond_the_run_s_last_is_its_last():
    setup = setup_of("epochs=1", "batch_size=512")
    steps = []
    setup.schedule.set = steps.append
    turn(Step("step", setup), 3, lambda: None)
    assert steps == [0, 1, 2, 2]


@pytest.mark.parametrize("loader", ["resident", "torch"])
def test_every_stage_is_timed_and_named_as_part_of_a_step_or_not(loader):
    setup = setup_of(f"loader={loader}")
    stages = Stages(setup)
    _, found = turn(stages, 1, lambda: None)
    assert tuple(found) == STAGES
    resident = loader == "resident"
    assert found["transfer"] == 0.0
    assert "0: the device is the CPU" in stages.notes()["transfer"]
    timed = set(STAGES) - {"transfer"} - (set() if resident else {"gather"})
    assert all(found[name] > 0 for name in timed)
    assert ("gather" in stages.measured()) == resident
    assert [name for name in stages.measured() if not stages.in_step(name)] == (
        ["read", "decode", "transfer"] if resident else []
    )


def test_stages_train_in_micro_batches_too():
    setup = setup_of("micro_batch=4", "accumulate=2")
    passed = []
    setup.method.backbone.register_forward_hook(lambda net, given, out: passed.append(len(out)))
    turn(Stages(setup), 1, lambda: None)
    assert passed == 2 * 4 * [8], "two steps of two batches in two pieces of four images, two views each"


@pytest.mark.parametrize(("word", "tuned"), [("auto", "always"), ("off", "off")])
def test_the_fastest_execution_is_looked_for_however_short_the_run(word, tuned, monkeypatch):
    class Built(Exception):
        pass

    def building(config, log):
        raise Built(config.tune)

    monkeypatch.setattr(contest, "build", building)
    with pytest.raises(Built, match=tuned):
        contest.bench(resolve([*WORDS[:-1], f"tune={word}", "epochs=1"]), Protocol())


def test_for_views_alone_no_network_is_tried(monkeypatch):
    monkeypatch.setattr(tune.trials, "measure", None)
    found = contest.bench(resolve([*WORDS[:-1], "tune=auto"]), Protocol(repeats=1), (), only="views")
    assert list(found["contestants"]) == ["views"]
    assert found["execution"] == "kernels=auto"


def test_views_are_made_of_as_many_images_as_in_a_step():
    setup = setup_of("micro_batch=4")
    own = {contestant.name: contestant for contestant in contest._own(setup, first_batch(setup), None)}
    seen = []
    own["views"]._setup.augmentation.register_forward_pre_hook(lambda augmentation, given: seen.append(len(given[0])))
    own["views"].step()
    assert (own["views"].images, own["step"].images, seen) == (4, 8, [4])


def test_stages_clip_gradients_as_a_step_does(monkeypatch):
    clipped = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *given: clipped.append(given[1]) or clip(*given))
    turn(Stages(setup_of("optimizer.clip_grad=0.5")), 1, lambda: None)
    assert clipped == [0.5, 0.5]


def test_several_processes_are_refused():
    with pytest.raises(UserError, match="leave devices out"):
        contest.bench(resolve([*WORDS, "devices=2"]), Protocol())


# --- peers ---


def test_choosing_peers():
    assert peers.chosen(None) == ("lightly", "kornia", "torchvision")
    assert peers.chosen("none") == ()
    assert peers.chosen("torchvision,lightly") == ("lightly", "torchvision")
    with pytest.raises(UserError, match=r"--peers: 'lightli' is not a peer; .*lightly"):
        peers.chosen("lightli")


def test_peers_that_are_not_installed_are_reported(monkeypatch, tmp_path):
    monkeypatch.setattr(peers, "package_version", lambda name: None)
    setup = setup_of()
    found, absent = peers.find(peers.chosen(None), setup, first_batch(setup), tmp_path)
    assert found == []
    assert absent["lightly"] == 'not installed; install it with: pip install "sslkit-bench[lightly]"'
    assert list(absent) == ["lightly", "kornia", "torchvision"]


def test_a_peer_that_cannot_begin_is_named_with_the_reason(monkeypatch, tmp_path):
    def broken(setup, image_batch):
        raise ImportError("undefined symbol:\n  made for another torch")

    monkeypatch.setattr(peers, "_kornia", broken)
    setup = setup_of()
    found, absent = peers.find(["kornia"], setup, first_batch(setup), tmp_path)
    assert found == []
    assert absent == {"kornia": "failed: undefined symbol: made for another torch"}


def test_peers_that_cannot_do_the_same_are_reported(tmp_path):
    pytest.importorskip("lightly")
    setup = setup_of("method=pirl", "augment.either=0.5")
    found, absent = peers.find(peers.chosen(None), setup, first_batch(setup), tmp_path)
    assert found == []
    assert absent["lightly"] == "compared only for simclr, byol, mocov2, not for pirl"
    assert absent["kornia"] == absent["torchvision"] == "no equivalent of augment.either"


@pytest.mark.parametrize("method", ["simclr", "byol", "mocov2"])
def test_lightly_trains_on_the_run_s_images(method, tmp_path):
    pytest.importorskip("lightly", reason="lightly is in the extra bench")
    from sslkit_bench import lightly_peer

    more = ["method.queue=16"] if method == "mocov2" else []
    setup = setup_of(f"method={method}", f"augment={method}", "method.hidden=32", "optimizer.name=sgd", *more)
    lightly_peer.write_folder(setup, tmp_path)
    peer = lightly_peer.Lightly(setup, tmp_path)
    try:
        before = [p.detach().clone() for p in peer.model.parameters()]
        turn(peer, 1, lambda: None)
        assert torch.isfinite(peer.loss)
        trained = [not torch.equal(old, new) for old, new in zip(before, peer.model.parameters())]
        assert sum(trained) > len(trained) / 3
        if sys.platform == "linux":
            assert states(peer._workers) == ["T", "T"], "at rest while others have their turns"
        peer.begin()
        peer.step()
    finally:
        workers = list(peer._workers._processes)
        peer.close()
    assert len(list(tmp_path.glob("*.png"))) == len(setup.stores.pretrain)
    for worker in workers:
        worker.join(10)
        assert not worker.is_alive()


def states(workers):
    """The state of each worker process, once it is stopped or ten seconds have gone."""
    for _ in range(100):
        found = [Path(f"/proc/{p.pid}/stat").read_text().rpartition(")")[2].split()[0] for p in workers._processes]
        if set(found) == {"T"}:
            break
        time.sleep(0.1)
    return found


def test_lightly_s_transforms_have_the_augmentation_s_settings():
    pytest.importorskip("lightly")
    from sslkit_bench.lightly_peer import transform_like

    transform, likeness = transform_like(setup_of("augment=byol", "augment.solarize.p=[0,0.2]"))
    assert likeness == "the run's settings"
    first, second = (view.transform.transforms for view in transform.transforms)
    crop, flip, _vertical, _rotate, jitter, gray, blur, solarize, *_ = second
    assert (crop.size, crop.scale, flip.p, jitter.p, gray.p) == ((32, 32), (0.08, 1.0), 0.5, 0.8, 0.2)
    assert jitter.transforms[0].saturation == pytest.approx((0.8, 1.2))
    assert (first[6].prob, blur.prob) == (1.0, 0.1)
    assert (first[7].prob, solarize.prob) == (0.0, 0.2)
    _, likeness = transform_like(setup_of("augment=digits"))
    assert likeness == "without rotate.shear"


@pytest.mark.parametrize("augment", ["simclr", "byol", "digits", "none"])
def test_others_views_have_the_shape_and_scale_of_ours(augment):
    from sslkit_bench.views_peers import Kornia, Pictures, torchvision_transform

    setup = setup_of(f"augment={augment}", "data=shapes", "data.n_train=64", "data.image_size=32", "batch_size=32")
    image_batch = first_batch(setup)
    ours = setup.augmentation(image_batch.images, torch.Generator().manual_seed(0))[0].chunk(2)
    options = setup.config.augment.options
    torch.manual_seed(0)
    pictures = Pictures(
        image_batch.images.permute(0, 2, 3, 1).numpy(), [torchvision_transform(options, n, setup) for n in range(2)]
    )
    theirs = {"kornia": Kornia(setup, image_batch).views(), "torchvision": [torch.stack(v) for v in zip(*pictures)]}
    for name, views in theirs.items():
        for mine, other in zip(ours, views):
            assert other.shape == mine.shape == (32, 3, 32, 32), name
            assert other.dtype == torch.float32
            assert float(other.mean()) == pytest.approx(float(mine.mean()), abs=0.35), name
            assert float(other.std()) == pytest.approx(float(mine.std()), rel=0.3), name


def test_views_are_made_of_the_batch():
    setup = setup_of()
    views = ViewsContestant(setup, first_batch(setup))
    made = []
    setup.augmentation.register_forward_hook(lambda augmentation, given, out: made.append(out[0].shape))
    turn(views, 1, lambda: None)
    assert made == 2 * [(16, 3, 32, 32)]
    assert views.images == 8


# --- the command ---


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Of everything but lightly, which other tests try."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clock, "TURN_SECONDS", 1e-9)
        patch.setenv("SSLKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        return contest.bench(resolve(WORDS), Protocol(repeats=2), ("kornia",))


def test_the_result_says_how_it_came_about(result):
    assert list(result["contestants"]) == ["step", "bound", "views", "kornia"]
    assert list(result["stages"]) == list(STAGES)
    assert list(result["ratios"]) == ["step/bound", "step/views", "views/kornia"]
    for figures in [*result["contestants"].values(), *result["stages"].values()]:
        assert figures["seconds"]["n"] == len(figures["seconds"]["samples"]) == 2
    assert result["settings"]["method.name"] == "simclr"
    assert result["settings"]["batch_size"] == 8
    assert result["protocol"]["repeats"] == 2
    assert (result["device"], result["driver"], result["execution"]) == ("cpu", None, "fp32, channels last")
    assert "torch" in result["environment"]["versions"]
    step, bound = (result["contestants"][name]["images_per_second"]["samples"] for name in ("step", "bound"))
    assert result["ratios"]["step/bound"]["samples"] == [a / b for a, b in zip(step, bound)]


def test_the_command_prints_json_and_keeps_no_run(sslkit, tmp_path):
    done = sslkit("bench", *WORDS, "--repeats", "1", "--peers", "none", "--json")
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert list(printed["contestants"]) == ["step", "bound", "views"]
    assert printed["contestants"]["step"]["seconds"]["n"] == 1
    assert list(tmp_path.iterdir()) == []


def test_the_command_prints_tables_and_writes_files(sslkit, tmp_path):
    done = sslkit("bench", *WORDS, "--repeats", "1", "--peers", "kornia", "--only", "views", "--out", "figures")
    assert done.returncode == 0, done.stderr
    assert "views/kornia" in done.stdout
    assert "step" not in [line.split()[0] for line in done.stdout.splitlines() if line]
    names = ["cpu-simclr-shufflenetv2-32.json", "cpu-simclr-shufflenetv2-32.svg"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == names
    assert list(json.loads((tmp_path / "figures" / names[0]).read_text())["contestants"]) == ["views", "kornia"]


def test_mistakes_are_the_user_s(sslkit):
    for words, mend in [
        ((*WORDS, "--peers", "lightli"), "did you mean"),
        ((*(w for w in WORDS if w != "batch_size=8"), "batch_size=100000"), "lower it"),
        ((*WORDS, "methd=byol"), "methd"),
    ]:
        done = sslkit("bench", *words)
        assert done.returncode == 2
        assert mend in done.stderr


def test_no_memory_is_the_run_s_own_mistake(monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr("sslkit_bench.contestants.train_step", fail)
    with pytest.raises(UserError, match=r"out of memory at batch_size=8.*micro_batch=4 fits"):
        contest.bench(resolve(WORDS), Protocol(repeats=1), ())


# --- showing ---


def test_the_tables_hold_all_figures(result):
    written = io.StringIO()
    Console(width=200, file=written).print(show.as_tables(result | {"absent": {"lightly": "not installed: pip"}}))
    text = written.getvalue()
    rates = [f"{c['images_per_second']['median']:.0f}" for c in result["contestants"].values()]
    for word in [*rates, *result["stages"], *result["ratios"], "quartiles", "lightly did not take part: not installed"]:
        assert word in text


def test_the_chart_names_everything(result):
    drawn = "".join(ElementTree.fromstring(show.as_svg(result)).itertext())
    stages = [name for name in STAGES if name not in ("read", "decode", "transfer")]
    for word in [*result["contestants"], *stages, "simclr", "images/s"]:
        assert word in drawn
    assert "decode" not in drawn, "it is no part of a step with a resident loader"


def test_files_are_written_whole_or_not_at_all(result, tmp_path, monkeypatch):
    first = show.write(result, tmp_path)
    before = [path.read_bytes() for path in first]
    broken = result | {"contestants": result["contestants"] | {"odd": {"images_per_second": None}}}
    with pytest.raises(TypeError):
        show.write(broken, tmp_path)
    with pytest.raises(TypeError):
        show.write(result | {"settings": object()}, tmp_path)
    assert [path.read_bytes() for path in first] == before
    assert sorted(tmp_path.iterdir()) == sorted(first)


def test_names_of_files_are_names(result):
    assert contest.file_stem(result | {"backbone": "timm:resnet18"}) == "cpu-simclr-timm-resnet18-32"


# --- the grid ---


@pytest.fixture(scope="module")
def grid():
    spec = importlib.util.spec_from_file_location("throughput", ROOT / "benchmarks/throughput.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["throughput"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["throughput"]


def test_targets_are_judged_by_the_device_and_the_cell(grid, result):
    def cell(device, **ratios):
        return result | {"device": device, "ratios": {k: summary([v]) for k, v in ratios.items()}}

    cells = {
        "simclr-shufflenetv2-32": cell("cpu", **{"step/bound": 0.94, "step/lightly": 2.7}),
        "byol-shufflenetv2-32": cell("cpu", **{"step/bound": 0.92, "step/lightly": 1.1}),
        "simclr-resnet18-96": cell("cuda", **{"step/bound": 0.94, "step/lightly": 5.1, "step/views": 0.11}),
        "simclr-squeezenet-96": cell("cuda", **{"step/views": 0.5}),
    }
    found = {(name, target.ratio): target.met(value) for name, target, value in grid.verdicts(cells)}
    assert found == {
        ("simclr-shufflenetv2-32", "step/bound"): True,
        ("byol-shufflenetv2-32", "step/bound"): False,
        ("simclr-shufflenetv2-32", "step/lightly"): False,
        ("simclr-resnet18-96", "step/bound"): False,
        ("simclr-resnet18-96", "step/lightly"): True,
        ("simclr-resnet18-96", "step/views"): False,
    }
    page = grid.as_markdown(cells)
    assert "| step/lightly ≥ 2.8 | simclr-shufflenetv2-32 | 2.7 | **not met** |" in page
    assert "| step/views ≤ 0.1 | simclr-resnet18-96 | 0.11 | **not met** |" in page
    drawn = "".join(ElementTree.fromstring(grid.as_svg(cells)).itertext())
    assert "byol-shufflenetv2-32" in drawn


def test_a_grid_is_measured_cell_by_cell_from_archives(grid, tmp_path, monkeypatch, capsys):
    import tarfile

    from PIL import Image

    for i in range(12):
        path = tmp_path / "photos" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (20 * i, 0, 0)).save(path)
    with tarfile.open(tmp_path / "photos.tar", "w") as tar:
        tar.add(tmp_path / "photos", "photos")
    common = ["throughput.py", "--small", str(tmp_path / "photos.tar"), "--large", str(tmp_path / "photos")]
    common += ["--out", str(tmp_path / "out"), "--batch=4", "--repeats=1", "--peers=kornia", "--methods=simclr"]
    options = ["--networks=shufflenetv2", "device=cpu", "workers=1", "tune=off"]
    monkeypatch.setattr(sys, "argv", [*common, "--sizes=32", "--views=", *options])
    grid.main()
    monkeypatch.setattr(sys, "argv", [*common, "--sizes=", "--views=48", *options])
    grid.main()
    cells = json.loads((tmp_path / "out/throughput-cpu.json").read_text())
    assert list(cells) == ["simclr-shufflenetv2-32", "views-48"], "a second sitting adds to the first"
    assert cells["simclr-shufflenetv2-32"]["settings"]["data.root"] == "photos/photos"
    assert cells["views-48"]["image_size"] == 48
    assert "views-48" in (tmp_path / "out/throughput-cpu.md").read_text()
    assert "views-48" in (tmp_path / "out/throughput-cpu.svg").read_text()
    assert "views-48" in capsys.readouterr().out
