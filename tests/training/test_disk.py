"""Disk space: few checkpoints stay, their room is known before training, and a lack of it is one sentence."""

import json

import pytest
from helpers.short_runs import SHORT_RUN

import sslkit as library
from sslkit.errors import UserError
from sslkit.machine.sizes import in_words, size_of
from sslkit.runs.display import Display
from sslkit.runs.run import Run
from sslkit.training import disk

SETTINGS = {**SHORT_RUN, "evaluators": []}


def names(run):
    return [path.name for path in run.checkpoints]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (2, ["epoch-0004", "epoch-0005"]),
        ({"last": 1, "every": 2}, ["epoch-0002", "epoch-0004", "epoch-0005"]),
        ({"last": 1}, ["epoch-0005"]),
    ],
)
def test_the_checkpoints_stay_that_the_settings_name(tmp_path, keep, expected):
    assert names(library.run(**SETTINGS, epochs=5, keep_checkpoints=keep, out=tmp_path / "run")) == expected


def test_the_best_epoch_stays(tmp_path, monkeypatch):
    accuracies = iter([0.1, 0.5, 0.9, 0.4, 0.3])
    log = Run.log_evaluation
    monkeypatch.setattr(Run, "log_evaluation", lambda run, record: log(run, record | {"top1": next(accuracies)}))
    settings = SETTINGS | {"evaluators": ["knn"], "eval_every": 1, "checkpoint_every": 0}
    done = library.run(**settings, epochs=4, keep_checkpoints={"last": 1, "best": True}, out=tmp_path / "run")
    assert names(done) == ["epoch-0002", "epoch-0004"]


def test_a_run_takes_less_than_ten_times_its_weights_and_what_the_plan_expects(tmp_path, sslkit):
    words = ["method=simclr", "method.hidden=512", "backbone=squeezenet", "data=shapes", "data.n_train=64"]
    words += ["data.image_size=32", "batch_size=32", "evaluators=[]", "epochs=30", "checkpoint_every=3", "report=false"]
    plan = json.loads(sslkit("run", *words, "--plan", "--json").stdout)
    assert sslkit("run", *words, "out=run").returncode == 0
    run = Run.open(tmp_path / "run")
    weights = size_of(run.checkpoints[-1] / "model.safetensors")
    assert size_of(run.path) < 10 * weights
    assert 1e9 * plan["disk_gb"] == pytest.approx(size_of(run.path), rel=0.1)


def test_a_run_that_does_not_fit_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_at", lambda path: 3_000_000)
    with pytest.raises(UserError, match=r"expected to write \S+ MB to .*run, where 3 MB are free; make room"):
        library.run(**SETTINGS, epochs=1, out=tmp_path / "run")


def test_a_disk_that_runs_short_is_reported_once(tmp_path, monkeypatch, capsys):
    run = library.run(**SETTINGS, epochs=2, out=tmp_path / "run")
    monkeypatch.setattr(disk, "free_at", lambda path: 1_000_000)
    display = Display()
    for _ in range(2):
        disk.warn_if_short(run, display)
    assert capsys.readouterr().err.count("1 MB are free at") == 1


def test_sizes_have_three_digits_and_a_fitting_unit():
    assert [in_words(n) for n in (0, 999, 999_600, 5_432_100_000)] == ["0 bytes", "999 bytes", "1 MB", "5.43 GB"]
