"""The search for the best combination of transformations: small searches as a user starts them."""

import csv
import json
import os
import signal

import numpy as np
import pytest
from PIL import Image
from sslkit_study.search import Outcome, as_csv, as_markdown, draw, matrix, search

from sslkit.errors import UserError
from sslkit.machine.signals import Interrupted
from sslkit.runs.display import Display
from sslkit.runs.run import Run

TINY = {
    "data": {"name": "shapes", "n_train": 16, "n_test": 12, "image_size": 32},
    "backbone": {"name": "shufflenetv2", "stem": "imagenet"},
    "epochs": 1,
    "batch_size": 8,
    "device": "cpu",
    "log_every": 1,
}
TWO = ["rotation", "grayscale"]


def find(out, sizes=(1, 2), transforms=TWO, display=None, **settings):
    return search({**TINY, **settings}, transforms, sizes, out, display or Display(quiet=True))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("search") / "found"
    return out, find(out)


def outcome(*transforms, top1=0.5):
    return Outcome(
        transforms, "+".join(transforms), {"knn/top1": top1, "knn/top5": 0.9}, {"knn/top1": 0.1, "knn/top5": 0.4}
    )


# --- whole searches ---


def test_every_combination_is_a_run_of_its_own_with_one_budget(finished):
    out, outcomes = finished
    assert {o.transforms for o in outcomes} == {("rotation",), ("grayscale",), ("rotation", "grayscale")}
    runs = [Run.open(out / o.run) for o in outcomes]
    assert [run.config.method.options.transforms for run in runs] == [o.transforms for o in outcomes]
    assert all(run.config.method.name == "pirl" and run.metrics[-1]["step"] == 2 for run in runs)
    assert [e.name for e in runs[0].config.evaluators] == ["knn"]


def test_outcomes_are_the_runs_own_figures_best_first(finished):
    out, outcomes = finished
    for found in outcomes:
        before, after = Run.open(out / found.run).evaluations
        assert (before["epoch"], after["epoch"]) == (0, 1)
        assert found.untrained == {f"knn/{k}": before[k] for k in ("top1", "top5")}
        assert found.figures == {f"knn/{k}": after[k] for k in ("top1", "top5")}
    ranks = [o.figures["knn/top1"] for o in outcomes]
    assert ranks == sorted(ranks, reverse=True)
    assert len({o.untrained["knn/top1"] for o in outcomes}) == 1


def test_the_files_of_a_search(finished):
    out, outcomes = finished
    results = json.loads((out / "results.json").read_text())
    assert results["ranked_by"] == "knn/top1"
    assert [tuple(r["transforms"]) for r in results["results"]] == [o.transforms for o in outcomes]
    assert results["settings"]["epochs"] == 1
    assert "transforms" not in results["settings"]["method"]
    assert (out / "results.csv").read_text() == as_csv(outcomes)
    assert (out / "results.md").read_text() == as_markdown(outcomes)
    with Image.open(out / "results.png") as picture:
        assert picture.format == "PNG"


def test_what_is_finished_is_not_run_again(finished):
    out, outcomes = finished
    before = {p: p.stat().st_mtime_ns for o in outcomes for p in (out / o.run).rglob("*")}
    again = find(out)
    assert again == outcomes
    assert {p: p.stat().st_mtime_ns for o in outcomes for p in (out / o.run).rglob("*")} == before


class Stops(Display):
    """Presses Ctrl-C after the first step of the second combination."""

    def __init__(self):
        super().__init__(quiet=True)
        self.said = []

    def log(self, text):
        self.said.append(text)

    def metrics(self, metrics):
        if metrics["step"] == 1 and any(text.startswith("[2/") for text in self.said):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_search_that_was_stopped_goes_on_to_the_same_figures(finished, tmp_path):
    display = Stops()
    with pytest.raises(Interrupted):
        find(tmp_path / "stopped", display=display)
    assert "same command" in display.said[-1]
    half = Run.open(tmp_path / "stopped" / "grayscale")
    assert half.metrics[-1]["step"] == 1
    assert not (tmp_path / "stopped" / "rotation+grayscale").exists()
    known = json.loads((tmp_path / "stopped" / "results.json").read_text())["results"]
    assert [r["run"] for r in known] == ["rotation"]

    said = Stops()
    said.metrics = lambda metrics: None
    assert find(tmp_path / "stopped", display=said) == finished[1]
    assert "resuming from step 1 of 2" in said.said
    assert [m["step"] for m in half.metrics] == [1, 2]


def test_the_command(sslkit, tmp_path):
    words = [
        "data=shapes", "data.n_train=16", "data.n_test=12", "data.image_size=32", "backbone.stem=imagenet", "epochs=1",
        "batch_size=8", "device=cpu", "--transforms", "blur,flip", "--sizes", "2", "--out", "found",
    ]  # fmt: skip
    done = sslkit("search", *words)
    assert done.returncode == 0, done.stderr
    assert "blur+flip" in done.stdout
    assert "(random initialisation)" in done.stdout
    assert (tmp_path / "found" / "blur+flip" / "backbone.safetensors").is_file()
    refused = sslkit("search", *words[:-3], "two", "--out", "other")
    assert refused.returncode == 2
    assert "not a list of numbers" in refused.stderr


# --- mistakes, before anything is trained ---


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"transforms": ["rotation", "blurr"]}, "did you mean 'blur'"),
        ({"transforms": []}, "at least one"),
        ({"transforms": ["blur", "blur"]}, "once"),
        ({"sizes": (1, 3)}, "3 of 2 transformations"),
        ({"sizes": (0,)}, "0 of 2 transformations"),
        ({"sizes": ()}, "at least one number"),
        ({"method": "byol"}, "a search trains pirl"),
        ({"method": {"transforms": ["blur"]}}, "--transforms"),
        ({"method": {"temprature": 1}}, "did you mean method.temperature"),
        ({"evaluators": []}, "needs an evaluator"),
        ({"batch_size": 99}, "more than the 16 images"),
    ],
    ids=str,
)
def test_mistakes_come_first(tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        find(tmp_path / "none", **changes)
    assert not (tmp_path / "none").exists()


def test_out_is_the_searchs_own(tmp_path):
    with pytest.raises(UserError, match="--out"):
        search({**TINY, "out": "elsewhere"}, TWO, out=tmp_path / "none")


def test_data_without_labels_is_refused(tmp_path):
    for number in range(8):
        Image.new("RGB", (32, 32), (30 * number, 0, 0)).save(tmp_path / f"{number}.png")
    with pytest.raises(UserError, match="eval_data="):
        find(tmp_path / "none", data=str(tmp_path))
    assert not (tmp_path / "none").exists()


def test_another_budget_in_the_same_folder_is_refused(finished):
    with pytest.raises(UserError, match="another epochs"):
        find(finished[0], epochs=2)


# --- tables and picture ---

FOUND = [
    outcome("jigsaw", "blur", top1=0.75),
    outcome("jigsaw", "rotation", "blur", top1=0.7),
    outcome("rotation", top1=0.3),
]


def test_the_matrix_has_pairs_on_both_sides_and_singles_on_its_diagonal():
    nan = np.nan
    expected = [[nan, nan, 0.75], [nan, 0.3, nan], [0.75, nan, nan]]
    np.testing.assert_array_equal(matrix(FOUND, ["jigsaw", "rotation", "blur"]), expected)


def test_tables_list_triples_and_the_random_initialisation():
    heading, _, *rows = (" ".join(line.split()) for line in as_markdown(FOUND).splitlines())
    assert heading == "| transformations | knn/top1 | knn/top5 |"
    assert rows[1] == "| jigsaw+rotation+blur | 70.0 % | 90.0 % |"
    assert rows[3] == "| (random initialisation) | 10.0 % | 40.0 % |"
    records = list(csv.DictReader(as_csv(FOUND).splitlines()))
    assert [r["size"] for r in records] == ["2", "3", "1", "0"]
    assert [float(r["knn/top1"]) for r in records] == [0.75, 0.7, 0.3, 0.1]


def test_the_picture_prints_every_value_of_the_matrix(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    written = []
    plain = Axes.text

    def text(self, x, y, s, *args, **options):
        written.append((y, x, s))
        return plain(self, x, y, s, *args, **options)

    monkeypatch.setattr(Axes, "text", text)
    draw(FOUND, ["jigsaw", "rotation", "blur"], tmp_path / "matrix.png")
    assert sorted(written) == [(0, 2, "75.0"), (1, 1, "30.0"), (2, 0, "75.0")]
    with Image.open(tmp_path / "matrix.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
