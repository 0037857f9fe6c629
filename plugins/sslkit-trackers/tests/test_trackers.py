"""Trackers: each read back with its own library, and what sslkit does when one is missing or fails."""

import json
import struct
from typing import ClassVar

import pytest

import sslkit as library
from sslkit import plugins
from sslkit.errors import UserError
from sslkit.machine.signals import Interrupted
from sslkit.runs import trackers
from sslkit.runs.display import Display
from sslkit.runs.trackers import Tracker
from sslkit.training import engine

TINY = {
    "method": {"name": "simclr", "hidden": 32, "dim": 16},
    "backbone": {"name": "shufflenetv2", "stem": "imagenet"},
    "data": {"name": "shapes", "n_train": 48, "n_test": 24, "image_size": 32},
    "evaluators": ["knn"],
    "batch_size": 16,
    "epochs": 2,
    "log_every": 1,
    "eval_every": 1,
    "device": "cpu",
    "quiet": True,
}


def train(folder, *names, **settings):
    return library.run(**TINY, **settings, trackers=list(names), out=folder / "run")


def expected(run):
    """{name: [(step, value)]} of all that the run's own files hold."""
    curves = {}
    records = [(r["step"], r) for r in run.metrics]
    records += [(r["step"], {f"knn/{k}": r[k] for k in ("top1", "top5")}) for r in run.evaluations]
    for step, record in sorted(records, key=lambda pair: pair[0]):
        for name, value in record.items():
            if name != "step":
                curves.setdefault(name, []).append((step, pytest.approx(value, rel=1e-6)))
    return curves


class Halfway(Display):
    """Stops the run after its first epoch, as Ctrl-C does."""

    def metrics(self, metrics):
        if metrics["step"] == 4:
            raise Interrupted(2, within_step=True)


def train_in_two_sessions(folder, name):
    """A run that is stopped within its fourth step and goes on from its third."""
    from sslkit.config.layers import Mistakes, settings_layer
    from sslkit.config.resolve import resolve_layers

    mistakes = Mistakes()
    settings = {k: v for k, v in TINY.items() if k != "quiet"} | {"checkpoint_every": 1, "trackers": [name]}
    layer = settings_layer("test", settings | {"out": str(folder / "run")}, mistakes)
    with pytest.raises(Interrupted):
        engine.run(resolve_layers([layer], mistakes), Halfway(quiet=True))
    return engine.resume(folder / "run", Display(quiet=True))


# --- TensorBoard ---


def tensorboard_curves(run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.path / "tensorboard"), purge_orphaned_data=True).Reload()
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_has_every_figure_of_the_run(tmp_path):
    pytest.importorskip("tensorboard")
    run = train(tmp_path, "tensorboard")
    found, wanted = tensorboard_curves(run), expected(run)
    assert {name: found[name] for name in wanted} == wanted
    assert len(found["loss"]) == 6
    assert [step for step, value in found["knn/top1"]] == [0, 3, 6]


def test_a_resumed_run_has_each_step_once_in_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    run = train_in_two_sessions(tmp_path, "tensorboard")
    assert [step for step, value in tensorboard_curves(run)["loss"]] == [1, 2, 3, 4, 5, 6]


# --- MLflow ---


def mlflow_client(run):
    mlflow = pytest.importorskip("mlflow")
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{run.path.parent / 'mlflow.db'}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning")
def test_mlflow_has_every_figure_of_both_sessions_in_one_run(tmp_path):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy", reason="mlflow-skinny has no local database")
    run = train_in_two_sessions(tmp_path, "mlflow")
    client = mlflow_client(run)
    [stored] = client.search_runs([client.get_experiment_by_name("sslkit").experiment_id])
    assert stored.info.status == "FINISHED"
    assert stored.info.run_name == "run"
    assert stored.data.params["method.name"] == "simclr"
    assert stored.data.params["epochs"] == "2"
    for name, curve in expected(run).items():
        history = {m.step: m.value for m in client.get_metric_history(stored.info.run_id, name)}
        assert history == dict(curve), name


# --- Weights & Biases ---


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_wandb_keeps_its_file_in_the_run_and_sends_nothing(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    run = train(tmp_path, "wandb")
    [file] = (run.path / "wandb").glob("offline-run-*/run-*.wandb")
    assert run.derived["wandb_id"] in file.name
    steps = [row for row in wandb_history(file) if "loss" in row]
    assert [row["_step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in steps] == [r["loss"] for r in run.metrics]


def wandb_history(file):
    """Rows of an offline file."""
    from wandb.proto import wandb_internal_pb2

    for data in logged(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            yield {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in record.history.item}


def logged(content):
    """Records of LevelDB's log format, after Weights & Biases' 7 bytes: records in parts, in blocks of 32 KiB."""
    start, parts = 7, b""
    while start + 7 <= len(content):
        left = 32768 - start % 32768
        if left < 7:
            start += left
            continue
        length, kind = struct.unpack_from("<HB", content, start + 4)
        parts += content[start + 7 : start + 7 + length]
        start += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


# --- what can go wrong ---


@pytest.fixture
def fake(monkeypatch):
    """A tracker of our own, under the name "fake"."""

    class Fake(Tracker):
        """Remembers what it is called with."""

        calls: ClassVar[list] = []
        broken = ""

        def log(self, step, metrics):
            if self.broken == "log":
                raise OSError("no line")
            self.calls.append((step, metrics))

        def finish(self, error):
            self.calls.append(error)

    find = plugins.find
    monkeypatch.setattr(plugins, "find", lambda kind, name: Fake if name == "fake" else find(kind, name))
    return Fake


def test_a_tracker_gets_plain_numbers_and_the_end(tmp_path, fake):
    run = train(tmp_path, "fake")
    *logged, end = fake.calls
    assert end is None
    assert [step for step, metrics in logged] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert all(type(v) is float for step, metrics in logged for v in metrics.values())
    assert trackers._open == {}
    assert run.config.trackers == ("fake",)


def test_a_run_without_trackers_tells_none(tmp_path, fake):
    train(tmp_path)
    assert fake.calls == []


def test_a_tracker_that_fails_is_left_out_and_the_run_goes_on(tmp_path, fake):
    fake.broken = "log"
    with pytest.warns(UserWarning, match="Fake failed and is disabled for the rest of the run: no line") as warned:
        run = train(tmp_path, "fake")
    assert len(warned) == 1
    assert run.metrics[-1]["step"] == 6
    assert fake.calls == []


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["tensorbord"], "no tracker is called 'tensorbord'; did you mean 'tensorboard'"),
        (["fake"], "fake needs not_there, which is not installed; install it with: pip install not-there"),
    ],
)
def test_a_tracker_that_is_not_there_is_a_mistake_before_anything_is_written(tmp_path, fake, names, words):
    fake.package, fake.install = "not_there", "pip install not-there"
    with pytest.raises(UserError, match=words):
        train(tmp_path, *names)
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_cannot_start_is_a_mistake_before_the_first_step(tmp_path, fake):
    def fail(self, run):
        raise ConnectionError("nobody answers")

    fake.__init__ = fail
    with pytest.raises(UserError, match=r"fake cannot start.*nobody answers"):
        train(tmp_path, "fake")
    assert not (tmp_path / "run/metrics.jsonl").exists()


def test_each_says_how_to_get_it():
    for name in ("tensorboard", "wandb", "mlflow"):
        tracker = plugins.find("trackers", name)
        assert tracker.package == name
        assert tracker.install == f'pip install "sslkit-trackers[{name}]"'
