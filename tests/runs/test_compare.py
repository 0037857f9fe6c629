"""Runs side by side: which figure is whose, their order, and names that would break a format."""

import csv
import io
import json
import re
from math import ceil

import pytest
from rich.console import Console

from sslkit.config.resolve import resolve
from sslkit.errors import UserError
from sslkit.runs import compare
from sslkit.runs.compare import as_csv, as_json, as_latex, as_markdown, as_table, table
from sslkit.runs.run import Run


def make(path, records=(), epochs=None, **derived):
    """A run as it lies on disk, without its training."""
    run = Run.create(resolve(["method=simclr", f"out={path}", "batch_size=32", f"epochs={ceil(epochs or 10)}"]))
    if epochs is not None:
        run.log_metrics({"step": 1, "epoch": epochs})
    for record in records:
        run.log_evaluation({"during_run": True} | record)
    if derived:
        run.note(**derived)
    return run


def record(epoch, top1, evaluator="knn", **more):
    return {"epoch": epoch, "evaluator": evaluator, "top1": top1} | more


@pytest.fixture
def runs(tmp_path):
    nasty = tmp_path / "a|b_%{x}&[red]~^"
    full = make(
        tmp_path / "full",
        [
            record(0, 0.95),
            record(5, 0.7, top1_low=0.6, top1_high=0.8),
            record(10, 0.5, top1_low=0.45, top1_high=0.55, floors={"raw_pixels": 0.4, "chance": 0.1}),
            record(10, 0.9, during_run=False),
            record(10, 0.25, "linear"),
            {"epoch": 10, "evaluator": "cost", "gmacs": 1.0},
        ],
        10.0,
        parameters=1_250_000,
        gflops=0.3,
        hours=2.0,
        kwh=0.5,
        kg_co2e=0.25,
    )
    return [make(nasty, [record(4, 0.75, during_run=False)], 4.5, hours=1.0), full, make(tmp_path / "empty")]


def test_every_figure_is_the_run_s_own_last(runs):
    nasty, full, empty = table(runs)
    assert full == {
        "run": str(runs[1].path), "method": "simclr", "backbone": "shufflenetv2", "data": "digits", "epochs": 10.0,
        "epochs_planned": 10, "finished": True, "knn/epoch": 10, "linear/epoch": 10,
        "knn/top1": 0.5, "knn/top1_low": 0.45, "knn/top1_high": 0.55, "knn/top1_max": 0.7,
        "knn/chance": 0.1, "knn/random_init": 0.95, "knn/raw_pixels": 0.4,
        "linear/top1": 0.25, "linear/top1_low": None, "linear/top1_high": None, "linear/top1_max": 0.25,
        "linear/chance": None, "linear/random_init": None, "linear/raw_pixels": None,
        "parameters": 1_250_000, "gflops": 0.3, "hours": 2.0, "kwh": 0.5, "kg_co2e": 0.25,
    }  # fmt: skip
    assert nasty["knn/top1"] == 0.75, "measured later, where the run itself measured nothing"
    assert nasty["epochs"] == 4.5
    assert empty.keys() == full.keys()
    about = {"run", "method", "backbone", "data", "epochs", "epochs_planned", "finished"}
    assert {k for k, v in empty.items() if v is not None} == about


def test_paths_are_runs_and_the_random_initialisation_is_never_a_result(tmp_path):
    make(tmp_path / "begun", [record(0, 0.1), {"epoch": 0, "evaluator": "geometry", "rankme": 7.0}])
    rows = table([tmp_path / "begun"])
    assert (rows[0]["knn/top1"], rows[0]["knn/top1_max"], rows[0]["epochs"]) == (None, None, 0)
    assert rows[0]["knn/random_init"] == 0.1
    assert (rows[0]["geometry/rankme"], rows[0]["geometry/rankme_random_init"]) == (None, 7.0)
    assert "— / 10.0 / —" in as_markdown(rows)
    with pytest.raises(UserError, match="holds no run"):
        table([tmp_path])


def test_an_unfinished_run_is_called_so_with_the_epoch_of_its_figures(runs):
    cells = as_markdown(table(runs)).splitlines()
    assert "4.5 of 5, unfinished" in cells[2]
    assert "75.0 at epoch 4" in cells[2]
    assert ", unfinished" not in cells[3]
    assert "0 of 10, unfinished" in cells[4]


def test_data_in_a_folder_goes_by_the_folder_s_name(tmp_path):
    (tmp_path / "photos").mkdir()
    run = Run.create(resolve([f"data={tmp_path / 'photos'}", f"out={tmp_path / 'r'}"]))
    assert table([run])[0]["data"] == "photos"


@pytest.mark.parametrize(
    ("key", "order"),
    [
        ("knn/top1", [0, 1, 2]),
        ("knn/top1_max", [0, 1, 2]),
        ("hours", [0, 1, 2]),
        ("kwh", [1, 0, 2]),
        ("run", [0, 2, 1]),
    ],
)
def test_sorting_puts_the_best_first_and_the_unknown_last(runs, key, order):
    assert [row["run"] for row in table(runs, key)] == [str(runs[i].path) for i in order]
    assert [row["run"] for row in table(runs[::-1], key)][:1] == [str(runs[order[0]].path)]


def test_an_unknown_key_is_a_mistake_that_names_the_closest(runs):
    with pytest.raises(UserError, match="--sort hour: no column is called that; did you mean 'hours'"):
        table(runs, "hour")


def test_csv_and_json_give_every_figure_back(runs):
    rows = table(runs)
    assert json.loads(as_json(rows)) == rows
    back = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in rows] == back


def test_markdown_keeps_its_columns_and_names(runs):
    lines = as_markdown(table(runs)).splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    assert {len(row) for row in cells} == {16}
    assert re.sub(r"\\(.)", r"\1", cells[2][0].strip()) == str(runs[0].path)
    assert [cell.strip() for cell in cells[3][5:8]] == ["50.0 (45.0 to 55.0)", "70.0", "10.0 / 95.0 / 40.0"]
    assert cells[4][5].strip() == "—"


def test_latex_has_no_sign_that_it_would_read_as_its_own(runs):
    text = as_latex(table(runs))
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 1 + 3
    assert "a|b\\_\\%\\{x\\}\\&[red]\\textasciitilde{}\\^{}" in text
    for line in body:
        assert len(re.split(r"(?<!\\)&", line)) == 16
        assert not re.search(r"(?<!\\)[%$#_]", line)
    assert "---" in body[-1]
    assert "—" not in text


def test_the_table_prints_names_as_they_are(runs):
    written = io.StringIO()
    Console(width=400, file=written).print(as_table(table(runs)))
    lines = written.getvalue().splitlines()
    assert str(runs[0].path) in lines[1]
    assert lines[3].count(compare.NONE) == 4 + 2 * 3 + 5
    assert "1.25" in lines[2]


@pytest.mark.parametrize("style", ["table", "csv", "json", "markdown", "latex"])
def test_the_command(sslkit, runs, style):
    done = sslkit("compare", *(str(run.path) for run in runs), "--format", style, "--sort", "knn/top1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("75.0" if style in ("table", "markdown", "latex") else "0.75") < done.stdout.index("0.5")
    assert sslkit("compare").returncode == 2


@pytest.mark.parametrize("width", [60, 80, 120, 300])
def test_no_figure_is_broken_in_a_terminal(runs, width, monkeypatch):
    drawn = io.StringIO()
    console = Console(file=drawn, width=width, highlight=False)
    monkeypatch.setattr("sslkit.runs.display.terminal", lambda: console)
    compare.show(table(runs), "table")
    words = {word for cells in compare._cells(table(runs))[1:] for cell in cells[4:] for word in cell.split()}
    assert words <= set(drawn.getvalue().split())


def test_a_spreadsheet_calculates_no_name(tmp_path):
    runs = [make(tmp_path / "a", [record(4, 0.5)])]
    row = table(runs)[0] | {"run": "=1+1", "data": "@x", "method": "-2", "epochs": -1.5}
    assert as_csv([row]).splitlines()[1].startswith("'=1+1,'-2,byol".replace("byol", row["backbone"]) + ",'@x,-1.5")
