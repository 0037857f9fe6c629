"""The report: what it says, and what it escapes."""

import base64
import hashlib
import io
import json
import os
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.paths import PYTHONPATH
from helpers.run_directories import HOSTILE, embedding, lines, make_run, png, record, rich_run, three_runs
from PIL import Image

from sslkit.errors import UserError
from sslkit.runs.directory import read_run
from sslkit.runs.report import costs, figures, results, write
from sslkit.training.first_views import keep_first_views, sheet

VOID = {"meta", "link", "img", "input", "br"}


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    return rich_run(tmp_path_factory.mktemp("rich"))


class Page(HTMLParser):
    """Tags in order, text, and what is left open; raises on a tag that closes another."""

    def __init__(self, path):
        super().__init__()
        self.open, self.tags, self.text, self.scripts = [], [], [], []
        self.source = Path(path).read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"
        if tag in ("td", "th", "dt", "dd", "li", "p"):
            self.text.append(" ")

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self.open[-1:] != ["style"]:
            self.text.append(data)

    @property
    def words(self):
        return " ".join("".join(self.text).split())


def test_hostile_names_are_text_and_nothing_else(rich):
    page = Page(rich / "report.html")
    assert page.open == []
    for name in HOSTILE:
        assert " ".join(name.split()) in page.words
    kinds = [attrs.get("type") for tag, attrs in page.tags if tag == "script"]
    assert sorted(kinds, key=str) == [None, "application/json"]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert "49" not in re.findall(r"bold</b> (\S+)", page.words)
    explorer = json.loads(next(s for s in page.scripts if s.lstrip().startswith("{")))
    assert explorer["classes"] == HOSTILE


def test_nothing_is_fetched_and_the_policy_forbids_it(rich):
    page = Page(rich / "report.html")
    for tag, attrs in page.tags:
        for name in ("src", "href", "xlink:href", "srcset", "action", "poster", "data"):
            assert (attrs.get(name) or "#").startswith(("#", "data:")), (tag, attrs)
    assert not re.search(r"url\((?!#)", page.source.split("<style>")[1].split("</style>")[0])
    [policy] = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy


def test_every_picture_has_words_and_every_id_is_there_once(rich):
    page = Page(rich / "report.html")
    described = {
        "alt": [attrs.get("alt") for tag, attrs in page.tags if tag == "img"],
        "label": [attrs.get("aria-label") for _, attrs in page.tags if attrs.get("role") == "img"],
        "hidden": [attrs.get("aria-hidden") == "true" for tag, attrs in page.tags if tag == "svg"],
    }
    assert all(words and all(words) for words in described.values()), described
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = [a["href"][1:] for tag, a in page.tags if tag == "a"]
    assert set(links) <= set(ids)
    assert {"results", "views", "curves", "looks", "cost", "measurements", "settings", "origin"} <= set(links)


def test_the_last_epoch_is_the_headline_and_the_maximum_is_named_so(tmp_path):
    run = make_run(tmp_path / "run", accuracies=(0.2, 0.9, 0.8))
    [headline] = results.headlines(read_run(run))
    assert (headline.last.epoch, headline.last.value) == (2, 0.8)
    assert (headline.best.epoch, headline.best.value) == (1, 0.9)
    assert headline.first.value == 0.2
    assert headline.gain == "+60.0 points"
    words = Page(write([run])).words
    assert "linear top-1 80.0 % 95 % interval 70.0 % to 90.0 %" in words
    assert "random initialisation 20.0 % gain +60.0 points maximum over epochs 90.0 %, epoch 1" in words
    assert "epochs 2 command line" in words
    assert "method.temperature 0.5 default" in words
    assert "a.jpg : truncated" in words or "a.jpg: truncated" in words


def test_the_maximum_is_of_what_was_trained_and_a_loss_is_no_gain(tmp_path):
    run = make_run(tmp_path / "run", accuracies=(0.7, 0.5, 0.4))
    [headline] = results.headlines(read_run(run))
    assert headline.best.value == 0.5
    assert headline.gain == "-30.0 points"


def test_costs_are_those_of_the_evaluator_where_it_ran_and_the_run_s_own_elsewhere(tmp_path):
    measured = {"epoch": 2, "evaluator": "cost", "gflops": 0.5, "parameters": 1.0}
    runs = [read_run(make_run(tmp_path / "a", evaluations=[measured])), read_run(make_run(tmp_path / "b"))]
    runs[0].derived["gflops"] = runs[1].derived["gflops"] = 0.25
    assert [costs.cost(run, "GFLOPs") for run in runs] == [0.5, 0.25]
    assert [costs.cost(run, "seconds") for run in runs] == [60.0, 60.0]
    assert [costs.cost(run, "kWh") for run in runs] == [0.25, 0.25]
    facts = dict(costs.facts(runs[0]))
    assert facts["training time, without evaluations"] == "1 min 00 s"
    assert facts["GFLOPs per image (two per multiply-add)"] == "0.5"
    assert facts["parameters of the backbone"] == "1,234,567"
    assert costs.derived_facts(runs[0]) == []


def test_other_protocols_and_data_are_other_headlines_and_the_newest_of_an_epoch_counts(tmp_path):
    other = [record(2, 0.5, protocol="layer=stage3"), record(2, 0.85), record(2, 0.6, evaluator="semi", half_top1=0.4)]
    found = results.headlines(read_run(make_run(tmp_path / "run", evaluations=other)))
    assert [(h.title, h.last.value) for h in found] == [
        ("linear top-1", 0.85), ("linear top-1", 0.5), ("semi top-1", 0.6), ("semi half top-1", 0.4),
    ]  # fmt: skip
    assert found[1].first is None


def test_results_leave_out_bounds_and_what_describes_the_record():
    one = record(1, 0.5) | {"snr_low": 3.0, "broken": None, "flag": True, "infinite": float("nan")}
    assert results.results(one) == {"top1": 0.5, "top5": 1.0, "snr_low": 3.0}
    assert results.in_words(one) == "top1 50.0 % (40.0 % to 60.0 %), top5 100.0 %, snr_low 3"


def test_what_is_damaged_is_left_out_and_reported(tmp_path):
    run = make_run(tmp_path / "run")
    with (run / "evaluations.jsonl").open("a") as file:
        file.write('{"epoch": 3, "evalu\n[1, 2]\n{"evaluator": 7}\n' + "[" * 100_000 + "\n")
    (run / "metrics.jsonl").write_bytes(b'\xff\xfe{"step"\n{"step": 1, "epoch": 1, "loss": null}\n')
    (run / "environment.json").write_text("{")
    words = Page(write([run])).words
    assert "4 of 7 lines of evaluations.jsonl cannot be read" in words
    assert "1 of 2 lines of metrics.jsonl cannot be read" in words
    assert "environment.json cannot be read." in words
    assert "linear top-1 80.0 %" in words


def test_what_is_missing_is_absent(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("method: {name: byol}\n")
    page = Page(write([run]))
    assert {a["href"] for tag, a in page.tags if tag == "a"} == {"#main", "#settings", "#origin"}
    assert not [tag for tag, _ in page.tags if tag in ("img", "svg", "canvas")]


def test_only_pictures_of_the_run_itself_are_carried_along(tmp_path):
    png(tmp_path / "secret.png", colour=(1, 2, 3))
    run = make_run(tmp_path / "run")
    (run / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    (run / "link.png").symlink_to(tmp_path / "secret.png")
    paths = ["../secret.png", str(tmp_path / "secret.png"), "link.png", "broken.png", "gone.png", 7, "a\0b", "x" * 5000]
    files = [*({"path": path, "alt": "secret"} for path in paths), "no mapping"]
    with (run / "evaluations.jsonl").open("a") as file:
        file.write(json.dumps(record(2, 0.5, evaluator="looks", files=files, notes=3)) + "\n")
    (run / "figures").mkdir()
    (run / "figures/views.png").symlink_to(tmp_path / "secret.png")
    page = Page(write([run]))
    assert not [attrs for tag, attrs in page.tags if tag == "img"]
    assert "8 of its files are missing." in page.words


def test_a_large_picture_is_stored_smaller_and_still_the_same(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    large = Image.fromarray(noise).resize((2400, 1800), Image.Resampling.NEAREST)
    large.save(tmp_path / "large.png", compress_level=0)
    found = figures.picture(tmp_path / "large.png", "noise")
    assert (found.width, found.height) == (1600, 1200)
    assert len(found.address) < 1_000_000
    stored = Image.open(io.BytesIO(base64.b64decode(found.address.partition(",")[2])))
    difference = np.asarray(stored.resize((80, 60), Image.Resampling.BOX), float) - noise
    assert np.abs(difference).mean() < 25


def test_points_of_a_chart_lie_where_matplotlib_draws_their_markers():
    series = figures.Series("knn", [0, 1, 2, 5], [0.1, 0.5, 0.4, 0.9], [0, 0.4, 0.3, 0.8], [0.2, 0.6, 0.5, 1.0])
    chart = figures.curves("Accuracy", [series], percent=True)
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', chart.svg).groups())
    # The interval is drawn first, by a <use> of its own.
    drawn = re.findall(r'<use xlink:href="#\w+" x="([\d.]+)" y="([\d.]+)" style="fill: var\(--s0\)', chart.svg)[1:]
    assert len(drawn) == 4
    for (x, y), (left, top, _) in zip(drawn, chart.points):
        assert float(x) / width == pytest.approx(left, abs=2e-3)
        assert float(y) / height == pytest.approx(top, abs=2e-3)
    assert chart.points[-1][2] == "knn, epoch 5: 90.0 %"
    assert chart.alt == "Accuracy over epochs. knn: 10.0 % at epoch 0, 90.0 % at epoch 5."
    assert "#0072b2" not in chart.svg


def test_a_long_curve_is_thinned_and_ends_where_it_ends():
    x = list(range(10_001))
    chart = figures.curves("Loss", [figures.Series("loss", x, [1 / (1 + v) for v in x])])
    assert 250 <= len(chart.points) <= figures.POINTS
    assert chart.points[-1][2].startswith("loss, epoch 10000:")


@pytest.mark.parametrize("seed", range(20))
def test_the_pareto_front_is_what_no_other_run_beats(seed):
    draw = random.Random(seed)
    points = [(draw.randint(1, 6), draw.randint(1, 6)) for _ in range(draw.randint(1, 12))]

    def beaten(p):
        return any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)

    assert results.pareto(points) == sorted({p for p in points if not beaten(p)})


@pytest.mark.parametrize(
    "change",
    [{"labels": [0]}, {"labels": [99] * 12}, {"tsne": [[0, None]] * 12}, {"classes": 3}, {"tsne": [], "pca": []}],
)
def test_an_embedding_that_does_not_fit_together_is_absent(tmp_path, change):
    embedding(tmp_path / "e", ["cat", "dog"])
    assert figures.explorer(tmp_path / "e/embedding.json")["labels"] == [0, 1] * 6
    data = json.loads((tmp_path / "e/embedding.json").read_text()) | change
    (tmp_path / "e/embedding.json").write_text(json.dumps(data))
    assert figures.explorer(tmp_path / "e/embedding.json") is None


@pytest.mark.parametrize("outside", ["../secret.png", "link.png"])
def test_only_the_sprite_beside_an_embedding_is_carried_along(tmp_path, outside):
    png(tmp_path / "secret.png")
    embedding(tmp_path / "e", ["cat", "dog"])
    assert figures.explorer(tmp_path / "e/embedding.json")["sprite"]["columns"] == 4
    (tmp_path / "e/link.png").symlink_to(tmp_path / "secret.png")
    text = (tmp_path / "e/embedding.json").read_text()
    (tmp_path / "e/embedding.json").write_text(text.replace("embedding-sprite.jpg", outside))
    assert figures.explorer(tmp_path / "e/embedding.json")["sprite"] is None


def test_the_sheet_shows_images_and_their_views_undone_of_normalisation():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    pixels = [torch.randint(0, 256, (8, 3, 8, 8)), torch.randint(0, 256, (4, 3, 4, 4))]
    m, s = (torch.tensor(v).view(1, 3, 1, 1) for v in (mean, std))
    page = sheet(images, [(p / 255 - m) / s for p in pixels], mean, std)
    assert page.shape == (4 * 10 - 2, 4 * 10 - 2, 3)
    for row in range(4):
        cells = [images[row], pixels[0][row], pixels[0][4 + row], pixels[1][row]]
        for column, cell in enumerate(cells):
            side = cell.shape[-1]
            shown = page[10 * row : 10 * row + side, 10 * column : 10 * column + side]
            np.testing.assert_array_equal(shown, cell.permute(1, 2, 0).numpy())


def test_the_sheet_is_of_the_first_batch_and_is_kept(tmp_path):
    augmentation = torch.nn.Identity()
    augmentation.forward = lambda images: [images.float().repeat(2, 1, 1, 1) / 255]
    setup = SimpleNamespace(augmentation=augmentation, stores=SimpleNamespace(mean=(0.0,) * 3, std=(1.0,) * 3))
    batches = [torch.full((2, 3, 4, 4), value, dtype=torch.uint8) for value in (10, 20, 30)]
    run = SimpleNamespace(path=tmp_path)
    keep_first_views(run, setup)
    augmentation(batches[0])
    augmentation(batches[1])
    # As a resumed run does.
    keep_first_views(run, setup)
    augmentation(batches[2])
    assert set(np.unique(np.asarray(Image.open(tmp_path / "figures/views.png")))) == {10, 128}


def test_several_runs_are_compared(tmp_path, monkeypatch):
    runs = three_runs(tmp_path)
    monkeypatch.chdir(tmp_path)
    page = Page(write(runs))
    assert Path("report.html").is_file()
    assert page.open == []
    assert "linear top-1, last epoch" in page.words
    assert "No other run is better in both (Pareto front, filled): a, b." in page.source
    assert "byol 60.0 % — simclr 70.0 % 50.0 %" in page.words
    assert "backbone.name resnet18 resnet18 squeezenet" in page.words
    assert "method.temperature 0.5" not in page.words


def test_runs_measured_on_other_images_are_not_compared_in_silence(tmp_path):
    runs = three_runs(tmp_path)
    lines(runs[1] / "evaluations.jsonl", [record(1, 0.9, data="other photos")])
    assert "Not all runs were evaluated with the same images" in Page(write(runs, tmp_path / "out.html")).words


def test_runs_of_one_name_are_distinguished_by_their_folders(tmp_path):
    runs = [make_run(tmp_path / "x/run", (0.1, 0.2)), make_run(tmp_path / "y/run", (0.1, 0.3))]
    words = Page(write(runs, tmp_path / "out.html")).words
    assert all(str(run) in words for run in runs)


def test_mistakes_are_reported_in_one_sentence(tmp_path, sslkit):
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match="holds no run"):
        write([tmp_path])
    with pytest.raises(UserError, match="named twice"):
        write([run, tmp_path / "run/../run"])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        write([run], tmp_path / "file" / "report.html")
    assert sslkit("report").returncode == 2


def test_the_command_says_where_and_imports_no_torch(tmp_path, sslkit):
    run = make_run(tmp_path / "run")
    done = sslkit("report", str(run))
    assert done.stdout == f"report: {run / 'report.html'}\n"
    checked = (
        "import sys; from sslkit.runs.report import write; write([sys.argv[1]]); assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    subprocess.run([sys.executable, "-c", checked, str(run)], check=True, env=environment, cwd=tmp_path)


def test_a_run_ends_with_its_report_unless_switched_off(tmp_path):
    import sslkit as library

    tiny = {
        "method": {"name": "simclr", "hidden": 16, "dim": 8},
        "backbone": {"name": "shufflenetv2", "stem": "imagenet"},
        "data": {"name": "shapes", "n_train": 64, "n_test": 32, "image_size": 32},
        "batch_size": 32, "epochs": 1, "device": "cpu", "quiet": True, "evaluators": ["knn"],
    }  # fmt: skip
    done = library.run(**tiny, out=tmp_path / "with")
    page = Page(done.path / "report.html")
    assert "knn top-1" in page.words
    views = np.asarray(Image.open(done.path / "figures/views.png"))
    assert views.shape == (6 * 34 - 2, 3 * 34 - 2, 3)
    # Two views of one image: neither the image nor each other.
    first, second, third = (views[:32, 34 * i : 34 * i + 32].astype(int) for i in range(3))
    assert np.abs(first - second).mean() > 1
    assert np.abs(second - third).mean() > 1
    without = library.run(**tiny, out=tmp_path / "without", report=False)
    assert not (without.path / "report.html").exists()
    assert not (without.path / "figures").exists()
    same = [(d.path / "metrics.jsonl").read_text().splitlines()[-1] for d in (done, without)]
    assert json.loads(same[0])["loss"] == json.loads(same[1])["loss"]
