"""Images without labels: what a run of a flat folder measures, and where its figures appear."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers.run_directories import lines, make_run
from PIL import Image
from rich.console import Console

from sslkit.config.base import Choice
from sslkit.config.resolve import resolve
from sslkit.data import Stores
from sslkit.errors import UserError
from sslkit.evaluation import evaluate as evaluation
from sslkit.evaluation.drawing import pictures
from sslkit.evaluation.drawing.images import drawn as rows_drawn
from sslkit.evaluation.evaluators import retrieval
from sslkit.evaluation.evaluators.embedding import Embedding
from sslkit.evaluation.evaluators.geometry import Geometry
from sslkit.evaluation.evaluators.retrieval import Retrieval
from sslkit.runs import compare, display
from sslkit.runs.directory import read_run
from sslkit.runs.label_free import LABEL_FREE, label_free
from sslkit.runs.report import figures, results
from sslkit.runs.run import Run
from sslkit.testing.examples import TinyBackbone, unlabelled_subject

QUICK = ["method=simclr", "backbone=shufflenetv2", "backbone.stem=imagenet", "data.image_size=32", "batch_size=16"]


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """A folder of 40 pictures that are easy to tell apart, without sub-folders."""
    folder = tmp_path_factory.mktemp("flat")
    for i in range(40):
        Image.effect_noise((48, 48), 60).rotate(9 * i).convert("RGB").save(folder / f"{i}.png")
    return folder


def bare(tmp_path):
    subject = unlabelled_subject(tmp_path)
    return Stores(subject.train, None, None, 24, (0.5,) * 3, (0.25,) * 3, "30 images of photos, which has no labels")


def measured(stores, options=None, **about):
    choice = Choice(name="geometry", options=options or Geometry.Config())
    return list(evaluation.evaluate(TinyBackbone(), [choice], stores, torch.device("cpu"), 0, **about))


def test_each_figure_stands_beside_random_initialisation_and_retrieval_beside_chance(tmp_path):
    stores = bare(tmp_path)
    torch.manual_seed(1)
    [record] = measured(stores, Geometry.Config(images=20), floors={}, initial=TinyBackbone)
    assert list(label_free(record)) == list(LABEL_FREE)
    assert set(record["floors"]["random_init"]) == set(LABEL_FREE)
    assert record["floors"]["chance"] == {"view_retrieval": 1 / 20}
    assert label_free(record) != record["floors"]["random_init"], "another network"
    [again] = measured(stores, Geometry.Config(images=20), floors={"geometry": {"random_init": {"rankme": 7.0}}})
    assert again["floors"]["random_init"] == {"rankme": 7.0}, "known floors are not measured again"
    assert "rankme 7" not in display.figures(record)
    assert "[random init 7]" in display.figures(again)


def test_where_there_are_labels_geometry_runs_only_if_it_is_asked_for(tmp_path):
    stores = bare(tmp_path)
    labelled = Stores(stores.pretrain, stores.pretrain, stores.pretrain, 24, stores.mean, stores.std, "pair")
    only = Geometry.Config(only_unlabelled=True)
    assert measured(labelled, only) == []
    assert len(measured(labelled)) == len(measured(stores, only)) == 1
    assert "only_unlabelled" not in measured(stores, only)[0]["settings"], "it changes no figure"


def test_better_is_what_the_papers_call_so():
    better = {"rankme": (9, 2), "alpha_req": (0.9, 1.8), "alignment": (0.1, 0.4), "uniformity": (-3, -1)}
    for name, (good, bad) in (better | {"view_retrieval": (0.8, 0.1)}).items():
        assert LABEL_FREE[name].quality(good) > LABEL_FREE[name].quality(bad)
    assert LABEL_FREE["alpha_req"].quality(0.5) < LABEL_FREE["alpha_req"].quality(1.0)
    assert [LABEL_FREE["view_retrieval"].text(v) for v in (1 / 2000, 0.5, 0)] == ["0.05 %", "50.0 %", "0.0 %"]


def test_a_flat_folder_gets_figures_everywhere(flat, tmp_path, sslkit):
    done = sslkit("run", *QUICK, f"data={flat}", "epochs=2", "out=run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("knn and linear need them; name labelled images with eval_data=") == 1
    assert "epoch 0  geometry: rankme" in done.stderr
    assert "[chance 2.5 %, random init " in done.stderr
    first, last = Run.open(tmp_path / "run").evaluations
    assert (first["epoch"], last["epoch"]) == (0, 2)
    assert last["floors"]["random_init"] == label_free(first)
    assert first["floors"] == {"chance": {"view_retrieval": 1 / 40}}
    assert first["data"].startswith(f"40 images of {flat}")
    assert "alpha-ReQ" in done.stdout
    assert "nearer to 1" in done.stdout

    [row] = json.loads(sslkit("compare", "run", "--format", "json").stdout)
    assert row["geometry/rankme"] == last["rankme"]
    assert row["geometry/rankme_random_init"] == first["rankme"]
    assert row["geometry/view_retrieval_chance"] == 1 / 40
    page = (tmp_path / "run/report.html").read_text()
    for figure in LABEL_FREE.values():
        assert f"<h3>{figure.title}, without labels</h3>" in page
        assert f"{figure.better} is better" in page
    assert "<dt>chance</dt><dd>2.5 %</dd>" in page

    again = sslkit("evaluate", "run", "--json")
    assert again.returncode == 0, again.stderr
    [record] = json.loads(again.stdout)
    assert label_free(record) == pytest.approx(label_free(last), rel=1e-3)
    assert record["floors"] == last["floors"], "known from the run"
    asked = sslkit("evaluate", "run", "evaluators=[knn]")
    assert asked.returncode == 2
    assert "and knn needs them; name labelled images with eval_data=" in asked.stderr


def test_neighbours_are_other_images_even_where_there_are_copies():
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    x[7] = x[20] = x[3]
    distances = torch.cdist(x.double(), x.double()).fill_diagonal_(float("inf"))
    found = retrieval._others(x, 4, "euclidean")
    assert not (found == torch.arange(30)[:, None]).any()
    torch.testing.assert_close(distances.gather(1, found), distances.topk(4, largest=False)[0], atol=1e-3, rtol=0)
    assert set(found[3, :2].tolist()) == {7, 20}
    assert retrieval._others(x, 100, "cosine").shape == (30, 29)


def test_neighbours_are_drawn_without_labels(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(pictures, "image_table", lambda path, *parts: drawn.update(parts=parts))
    subject = unlabelled_subject(tmp_path)
    subject.begin("retrieval")
    evaluator = Retrieval(Retrieval.Config(images=12, rows=5, neighbours=3))
    [(name, share)] = evaluator(subject).items()
    x = subject.features_without_labels(rows_drawn(30, 12, 0)).double()
    nearest = torch.cdist(x, x).fill_diagonal_(float("inf")).argmin(1)
    assert (name, share) == ("mutual_1", (nearest[nearest] == torch.arange(12)).double().mean().item())
    assert evaluator.protocol == "euclidean nearest of 12 images of each one, how often mutual"
    cells, titles, columns = drawn["parts"]
    assert columns == ["query", "1.", "2.", "3."]
    assert len(cells) == len(titles) == 5
    assert {len(row) for row in cells} == {4}
    assert all(cell.right is None and cell.caption is None for row in cells for cell in row)
    rows = rows_drawn(30, 12, 0)[rows_drawn(12, 5, 0)]
    assert titles == [Path(subject.test.names[row]).name for row in rows]
    small = [np.asarray(Image.fromarray(query.pixels).resize((24, 24), Image.Resampling.BOX)) for query, *_ in cells]
    assert np.abs(np.stack(small).astype(float) - subject.test.read(rows)).mean() < 12


def test_a_single_image_has_no_neighbours(tmp_path):
    subject = unlabelled_subject(tmp_path)
    subject.test = subject.test.subset([3])
    with pytest.raises(UserError, match="there is only one"):
        Retrieval(Retrieval.Config())(subject)


def test_the_map_of_images_without_labels_reaches_the_report(tmp_path):
    from sslkit.runs.report import write

    subject = unlabelled_subject(make_run(tmp_path / "run"))
    subject.begin("embedding")
    found = Embedding(Embedding.Config(max_images=20, perplexity=5))(subject)
    assert 0 < found["pca_variance"] <= 1
    files = {Path(file["path"]).name: tmp_path / "run" / file["path"] for file in subject.files}
    data = json.loads(files["embedding.json"].read_text())
    assert (data["labels"], data["classes"], len(data["tsne"])) == (None, [], 20)
    assert figures.explorer(files["embedding.json"])["labels"] == [0] * 20
    assert files["embedding.png"].stat().st_size > 5000
    record = {"epoch": 2, "evaluator": "embedding", "protocol": "maps", "files": subject.files, **found}
    with (tmp_path / "run/evaluations.jsonl").open("a") as file:
        file.write(json.dumps(record) + "\n")
    page = write([tmp_path / "run"]).read_text()
    assert "20 images without labels, a point an image" in page
    assert '<select class="map">' in page
    assert '<select class="class">' not in page
    broken = data | {"labels": None, "classes": ["a"]}
    files["embedding.json"].write_text(json.dumps(broken))
    assert figures.explorer(files["embedding.json"]) is None


def geometry(epoch, retrieval, rank=50.0, **more):
    about = {"protocol": "40 images", "data": "flat", "n_test": 40, "seconds": 1.0}
    figures = {"rankme": rank, "alpha_req": 1.5, "view_retrieval": retrieval}
    return {"epoch": epoch, "step": epoch, "during_run": True, "evaluator": "geometry", **about, **figures, **more}


def unlabelled_run(path, *records):
    complete_run(path)
    lines(path / "evaluations.jsonl", records)
    return path


def complete_run(path, **more):
    """A run whose config.yaml has every setting, without which it cannot be opened."""
    make_run(path, **more)
    defaults = yaml.safe_load(resolve(["method=simclr", "data=digits"]).config.to_yaml())
    own = yaml.safe_load((path / "config.yaml").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(defaults | own))
    return path


def test_runs_are_sorted_from_better_to_worse(tmp_path):
    alphas = {"a": 1.9, "b": 0.8, "c": 1.1}
    runs = [unlabelled_run(tmp_path / n, geometry(0, 0.1), geometry(2, 0.5, alpha_req=v)) for n, v in alphas.items()]
    rows = compare.table(runs, sort="geometry/alpha_req")
    assert [row["geometry/alpha_req"] for row in rows] == [1.1, 0.8, 1.9]
    drawn = compare.as_markdown(rows)
    assert "view retrieval (random init)" in drawn
    assert "50.0 % (10.0 %)" in drawn
    rows = compare.table([*runs, complete_run(tmp_path / "labelled")])
    assert "linear top-1" in compare.as_markdown(rows)
    assert "RankMe" in compare.as_markdown(rows)
    rows = compare.table([complete_run(tmp_path / "both", evaluations=[geometry(2, 0.5)])])
    assert rows[0]["geometry/rankme"] == 50
    assert "RankMe" not in compare.as_markdown(rows), "accuracies are enough"


def test_the_report_compares_runs_without_labels(tmp_path):
    from sslkit.runs.report import write

    runs = [unlabelled_run(tmp_path / n, geometry(0, 0.1), geometry(2, v)) for n, v in (("a", 0.5), ("b", 0.25))]
    [retrieval] = [f for f in results.without_labels(read_run(runs[0])) if f.name == "view_retrieval"]
    assert (retrieval.last, retrieval.random_init) == ((2, 0.5), 0.1)
    page = write(runs, tmp_path / "both.html").read_text()
    assert "view retrieval (higher is better)" in page
    assert 'data-value="0.25">25.0 %<br><span class="muted small">random init 10.0 %</span>' in page
    assert "View retrieval, without labels (higher is better)" in page


def test_the_terminal_lists_figures_with_their_direction(tmp_path, capsys, monkeypatch):
    from sslkit.cli import tables

    monkeypatch.setattr(tables, "terminal", lambda: Console(width=100))
    floors = {"chance": {"view_retrieval": 0.025}, "random_init": {"view_retrieval": 0.1, "rankme": 20.0}}
    run = unlabelled_run(tmp_path / "run", geometry(0, 0.1), geometry(2, 0.5, floors=floors))
    tables.print_outcome(Run.open(run))
    shown = capsys.readouterr().out.split()
    for words in ("RankMe higher 20 50", "view retrieval higher 2.5 % 10.0 % 50.0 %"):
        assert words in " ".join(shown)
