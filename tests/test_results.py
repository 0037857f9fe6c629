"""Accuracy at equal time: the grid, its cells and sittings, and the page, whose numbers are those of the cells."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path

import learning
import learning_page
import lightly_example
import numpy as np
import peer_contest
import pytest
import torch
from helpers.paths import PYTHONPATH, ROOT
from learning_cells import OWN, PIXELS, RANDOM, Cell, floors_of
from PIL import Image

MEASURED = ROOT / "benchmarks/results/learning-cpu.json"


# --- the page ---


def result(cell, knn, linear=0.5, seconds=None):
    """A cell as it is recorded, with the figures that the page shows."""
    spent = {"seconds_trained": seconds or cell.seconds, "epochs": cell.seconds / 7, "images_per_second": 1000.0}
    judged = {"knn_top1": knn, "knn_protocol": "k=40", "knn_200_top1": knn - 0.01, "linear_top1": linear, "chance": 0.1}
    return asdict(cell) | (spent if cell.seconds else {}) | judged | {"environment": 0}


def report_of(results):
    data = {"name": "CIFAR-10", "images": 10_000, "judged": 5_000, "split": "test", "lightly_batch": 256}
    machine = {"gpu": None, "cpu": "EPYC", "threads": 2, "python": "3.11", "versions": {"torch": "2"}, "git": "abc"}
    cells = {cell.key: found for cell, found in results}
    # As it is read from the file.
    return json.loads(json.dumps({"data": data, "environments": [machine], "cells": cells, "remarks": {"jigsaw": "?"}}))


def with_floors(cells, knn=0.3, linear=0.3):
    found = {cell.key: cell for each, _ in cells for cell in floors_of(each)}
    return [*((cell, result(cell, knn, linear)) for cell in found.values()), *cells]


def group(contestant, seconds, mean, network="shufflenetv2", method="simclr", stem="imagenet", words=(), linear=0.5):
    """Three seeds around a mean."""
    cells = [Cell(contestant, method, network, stem, seconds, seed, words) for seed in range(3)]
    return [(cell, result(cell, mean + (cell.seed - 1) * 0.01, linear)) for cell in cells]


@pytest.fixture
def report():
    contest = product(("sslkit", "lightly", "lightly-adam"), (60, 300))
    cells = [each for n, (who, seconds) in enumerate(contest) for each in group(who, seconds, 0.4 + 0.0123 * n)]
    cells += group("sslkit", 300, 0.45, method="byol", stem=OWN)
    cells += group("sslkit", 300, 0.31, method="jigsaw", stem=OWN, words=("optimizer.lr=0.1", "backbone.stem=small"))
    return report_of(with_floors(cells))


def tables(page):
    """The rows of each table of a page, as (names of columns, cells)."""
    for table in re.findall(r"(?:^\|.*\n)+", page, re.M):
        names, _, *rows = [[cell.strip() for cell in line.strip("|\n").split(" | ")] for line in table.splitlines()]
        yield names, rows


def stated(cells, metric, scale=100, digits=1):
    values = scale * np.array([cell[metric] for cell in cells])
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def accuracies(cells):
    return [stated(cells, metric) for metric in ("knn_top1", "knn_200_top1", "linear_top1")]


def check_contest(rows, cells):
    for method, network, stem, seconds, contestant, n, *figures in rows:
        floor = contestant in (RANDOM, PIXELS)
        wanted = {"contestant": contestant, "seconds": float(seconds), "words": []}
        wanted |= {"network": network, "stem": stem} if contestant != PIXELS else {}
        wanted |= {} if floor else {"method": method}
        found = [cell for cell in cells if wanted.items() <= cell.items()]
        spent = [stated(found, "seconds_trained", 1, 0), stated(found, "epochs", 1)] if not floor else ["", ""]
        speed = "" if floor else stated(found, "images_per_second", 1, 0)
        assert [n, *figures] == [str(len(found)), *accuracies(found), *spent, speed]


def check_methods(rows, cells):
    for method, network, stem, seconds, settings, n, *figures in rows:
        words = [] if settings == "as they come" else settings.strip("`").split()
        wanted = {"contestant": "sslkit", "method": method, "network": network, "stem": stem, "words": words}
        found = [cell for cell in cells if (wanted | {"seconds": float(seconds)}).items() <= cell.items()]
        keys = {floor.key for cell in found for floor in floors_of(Cell(**{k: cell[k] for k in asdict(RUN)}))}
        floors = [cell for cell in cells if Cell(**{k: cell[k] for k in asdict(RUN)}).key in keys]
        expected = [str(len(found)), *accuracies(found)]
        for name in (RANDOM, PIXELS):
            of_name = [cell for cell in floors if cell["contestant"] == name]
            expected += [stated(of_name, "knn_top1"), stated(of_name, "linear_top1")]
        assert [n, *figures[:7]] == expected
        assert figures[8:] == [stated(found, "seconds_trained", 1, 0), stated(found, "epochs", 1)]


RUN = Cell("sslkit", "simclr", "shufflenetv2", OWN, 300, 0)


def check_numbers(report, page):
    """Compare every row of the page with the cells; return the number of rows."""
    cells, checked = list(report["cells"].values()), 0
    for names, rows in tables(page):
        if "settings" in names:
            check_methods(rows, cells)
        elif "images/s" in names:
            check_contest(rows, cells)
        else:
            continue
        checked += len(rows)
    return checked


def test_every_number_of_the_tables_is_that_of_the_cells(report):
    page = learning_page.as_markdown(report)
    # Six groups and two floors in the contest, two groups of methods.
    assert check_numbers(report, page) == 10
    assert "10,000 training images" in page
    assert "chance is 10.0 %" in page
    assert "- jigsaw: ?" in page


def test_a_number_that_is_not_that_of_the_cells_is_found(report):
    page = learning_page.as_markdown(report)
    cell = next(cell for cell in report["cells"].values() if cell["contestant"] == "lightly")
    cell["knn_top1"] += 0.02
    with pytest.raises(AssertionError):
        check_numbers(report, page)


def test_the_page_in_the_docs_is_that_of_the_measured_cells(tmp_path):
    report = learning.read(MEASURED)
    page, chart = tmp_path / "docs/results.md", tmp_path / "benchmarks/results/learning-cpu.svg"
    learning_page.write(report, page, chart)
    assert page.read_text() == (ROOT / "docs/results.md").read_text(), "run: python benchmarks/learning.py --page"
    assert chart.exists() == MEASURED.with_suffix(".svg").exists()
    groups = learning_page.Results(report).groups
    assert check_numbers(report, page.read_text()) >= len(groups), "no group is left out"


def test_the_chart_has_a_panel_a_place_and_a_line_a_contestant(report):
    drawn = learning_page.as_svg(learning_page.Results(report))
    for word in ("simclr, shufflenetv2, imagenet stem", "sslkit", "lightly-adam", "random-init", "raw-pixels", "300"):
        assert word in drawn
    assert "byol" not in drawn, "no other library was measured with it"


# --- targets ---


def judged(cells):
    found = learning_page.verdicts(learning_page.Results(report_of(with_floors(cells))))
    return {(v.target, v.concerns): v for v in found if v.met is not None}


SOONER, AHEAD = "lightly's kNN at 300 s in 75 s or less", "kNN at 300 s 8 points above lightly's"
BEAT = "above random initialisation and raw pixels within 300 s, kNN and linear"
AT = "simclr, shufflenetv2"


@pytest.mark.parametrize(("early", "late", "sooner", "ahead"), [(0.43, 0.52, True, True), (0.41, 0.49, False, False)])
def test_targets_compare_with_the_better_variant_of_lightly(early, late, sooner, ahead):
    peers = [*group("lightly", 300, 0.40), *group("lightly-adam", 300, 0.42)]
    found = judged([*peers, *group("sslkit", 60, early), *group("sslkit", 300, late)])
    assert found.keys() == {(SOONER, AT), (AHEAD, AT)}
    assert found[SOONER, AT].met is sooner
    assert found[AHEAD, AT].met is ahead
    assert "lightly-adam 42.0 % (n=3)" in found[SOONER, AT].reached
    assert f"{100 * (late - 0.42):+.1f} points" in found[AHEAD, AT].reached
    assert ("at 60 s" if sooner else "at 300 s") in found[SOONER, AT].reached


def test_resnet_has_120_seconds_and_settings_of_the_user_do_not_count():
    at = {"network": "resnet18"}
    cells = [*group("lightly", 300, 0.4, **at), *group("sslkit", 120, 0.41, **at), *group("sslkit", 300, 0.3, **at)]
    found = judged([*cells, *group("sslkit", 300, 0.9, **at, words=("optimizer.lr=1",))])
    assert found["lightly's kNN at 300 s in 120 s or less", "simclr, resnet18"].met is True
    assert found[AHEAD, "simclr, resnet18"].met is False


@pytest.mark.parametrize(("knn", "linear", "met"), [(0.31, 0.31, True), (0.31, 0.29, False), (0.29, 0.31, False)])
def test_a_method_beats_the_floors_with_both_evaluators_or_not(knn, linear, met):
    found = judged(group("sslkit", 300, knn, method="vicreg", stem=OWN, linear=linear))
    assert found[BEAT, "vicreg"].met is met
    assert found[BEAT, "vicreg"].reached.startswith("shufflenetv2: above both" if met else "shufflenetv2: not above")


def test_a_run_that_took_longer_than_allowed_meets_no_target():
    cells = [*group("lightly", 300, 0.3), *group("sslkit", 60, 0.5), *group("sslkit", 300, 0.5)]
    cells += group("sslkit", 300, 0.5, method="dcl", stem=OWN)
    late = [(cell, found | {"seconds_trained": 1.1 * cell.seconds}) for cell, found in cells]
    assert {v.met for v in judged(cells).values()} == {True}
    assert {v.met for v in judged(late).values()} == {False}
    assert all("but it took" in v.reached for v in judged(late).values())


def test_every_network_of_a_method_is_to_beat_its_floors():
    at = {"method": "dcl", "stem": OWN}
    found = judged([*group("sslkit", 300, 0.4, **at), *group("sslkit", 300, 0.2, "resnet18", **at)])
    assert found[BEAT, "dcl"].met is False


def test_without_measurements_no_target_is_met_or_missed():
    assert judged([]) == {}
    empty = learning_page.as_markdown(learning.read(Path("no such file")))
    assert empty.count("| not measured |") == 2 * 6 + 9


# --- the grid ---


def grid(*words):
    return list(learning.grid(learning.arguments().parse_intermixed_args(["cifar", *words])))


def test_contestants_take_turns_and_floors_come_first_and_once():
    cells = grid(
        "--part", "contest", "--methods", "simclr", "--networks", "resnet18", "--seconds", "60,300", "--seeds", "0,1"
    )
    assert [cell.contestant for cell in cells] == [
        *(RANDOM, PIXELS, "sslkit", "lightly", "lightly-adam", "sslkit", "lightly", "lightly-adam"),
        *(RANDOM, "sslkit", "lightly", "lightly-adam", "sslkit", "lightly", "lightly-adam"),
    ]
    assert {cell.stem for cell in cells} == {"imagenet", "no"}
    assert len({cell.key for cell in cells}) == len(cells)


def test_the_whole_contest_has_three_networks_four_times_and_three_seeds():
    trained = [cell for cell in grid("--part", "contest") if cell.seconds]
    assert len(trained) == 3 * 2 * 3 * 4 * 3


def test_every_method_is_in_the_table_and_trains_as_it_comes():
    cells = [cell for cell in grid("--part", "methods", "--seeds", "0") if cell.seconds]
    assert {cell.method for cell in cells} == set(learning.all_methods())
    assert set(learning_page.TO_BEAT_FLOORS) | {"mae", "jigsaw", "dino"} < {cell.method for cell in cells}
    assert {cell.network for cell in cells if cell.method == "mae"} == {"vit_tiny"}
    assert RUN.run_words("F") == ["method=simclr", "backbone=shufflenetv2", "data=F"]


def test_a_compound_network_has_floors_of_its_own():
    [random, _] = floors_of(Cell("sslkit", "splitbrain", "shufflenetv2", OWN, 300, 0, ("method.x=1", "data.mode=raw")))
    assert (random.network, random.words) == ("splitbrain:shufflenetv2", ("data.mode=raw",))


# --- the images, and lightly's example ---


@pytest.fixture(scope="session")
def cifar(tmp_path_factory) -> Path:
    """CIFAR-10's binary files with 20 noisy grey images each, whose brightness is their class."""
    folder, random = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    for name in (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"):
        labels = np.arange(20)[:, None] % 10
        pixels = np.clip(random.normal(25 * labels, 20, (20, 3072)), 0, 255)
        np.hstack([labels, pixels]).astype(np.uint8).tofile(folder / name)
    return folder


def pixels(folder):
    return {np.asarray(Image.open(path)).tobytes() for path in folder.rglob("*.png")}


def test_validation_images_are_training_images_that_are_not_trained_on(cifar, tmp_path):
    peer_contest.write_folder(cifar, tmp_path / "test", 40, 20)
    peer_contest.write_folder(cifar, tmp_path / "validation", 40, 20, "validation")
    peer_contest.write_folder(cifar, tmp_path / "more", 60, 20)
    train = pixels(tmp_path / "test/train")
    assert len(train) == 40
    assert pixels(tmp_path / "validation/train") == train
    assert pixels(tmp_path / "validation/test") == pixels(tmp_path / "more/train") - train
    assert pixels(tmp_path / "test/test").isdisjoint(pixels(tmp_path / "more/train"))


def test_too_few_images_leave_no_folder(cifar, tmp_path):
    with pytest.raises(SystemExit, match="21 images are wanted, CIFAR_FOLDER has 20"):
        peer_contest.write_folder(cifar, tmp_path / "images", 40, 21)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_lightly_s_example_trains_until_the_time_is_over(method, cifar, tmp_path):
    pytest.importorskip("lightly", reason="lightly is in the extra bench")
    from sslkit.backbones import create_backbone

    peer_contest.write_folder(cifar, tmp_path / "images", 40, 10)
    backbone = create_backbone("shufflenetv2", image_size=32, stem="imagenet")
    before = backbone.conv1[0].weight.detach().clone()
    found = lightly_example.train("lightly-adam", method, backbone, tmp_path / "images", 1, torch.device("cpu"), 16)
    assert not torch.equal(backbone.conv1[0].weight, before)
    assert found["seconds_trained"] >= 1
    assert found["steps"] == round(found["epochs"] * 2) >= 1
    assert found["settings"] == {"batch_size": 16, "optimizer": {"name": "adam", "lr": 1e-3}}


def test_lightly_s_momentum_follows_the_share_of_the_time():
    pytest.importorskip("lightly", reason="lightly is in the extra bench")
    from sslkit_bench import lightly_peer

    backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(8))
    backbone(torch.zeros(1, 3, 32, 32))
    model = lightly_peer.BYOL(backbone, 8, lightly_example.OPTIONS["byol"])
    values = []
    for spent in (0, 30, 60, 61):
        lightly_example.set_momentum(model, spent, 60)
        values.append(model.momentum)
    assert values == pytest.approx([0.996, 0.998, 1, 1])


def test_a_batch_that_the_images_do_not_fill_is_an_error(cifar, tmp_path):
    pytest.importorskip("lightly", reason="lightly is in the extra bench")
    peer_contest.write_folder(cifar, tmp_path / "images", 40, 10)
    with pytest.raises(SystemExit, match="fewer images than lightly's batch of 256"):
        lightly_example.train("lightly", "simclr", torch.nn.Identity(), tmp_path / "images", 1, torch.device("cpu"))


# --- sittings ---


@pytest.fixture
def sitting(cifar, tmp_path):
    """Run the script at toy size; `words` come first."""

    def call(*words):
        options = ["--images", "40", "--test-images", "20", "--batch", "16", "--work", str(tmp_path)]
        chosen = [
            "--part",
            "contest",
            "--methods",
            "simclr",
            "--networks",
            "shufflenetv2",
            "--seconds",
            "2",
            "--seeds",
            "0",
        ]
        command = [sys.executable, str(ROOT / "benchmarks/learning.py"), str(cifar), *chosen, *options]
        command += ["--out", str(tmp_path / "out.json"), *words]
        environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)

    return call


TOY = ("batch_size=16", "tune=off")


@pytest.mark.slow
def test_cells_are_measured_once_and_added_as_they_end(sitting, tmp_path):
    pytest.importorskip("lightly", reason="lightly is in the extra bench")
    out = tmp_path / "out.json"
    done = sitting("--contestants", "lightly")
    assert done.returncode == 0, done.stderr
    first = json.loads(out.read_text())
    assert [cell["contestant"] for cell in first["cells"].values()] == [RANDOM, PIXELS, "lightly"]

    done = sitting("--contestants", "sslkit", "batch_size=1000")
    assert done.returncode == 1
    assert "1 cells failed" in done.stderr
    assert json.loads(out.read_text()) == first, "a cell that fails is not recorded"

    done = sitting("--contestants", "sslkit,lightly", *TOY)
    assert done.returncode == 0, done.stderr
    assert "1 cells to measure" in done.stderr
    second = json.loads(out.read_text())
    *kept, ours = second["cells"].values()
    assert kept == list(first["cells"].values())
    assert ours["contestant"] == "sslkit"
    assert 0 < ours["seconds_trained"] < 20
    assert ours["steps"] == round(ours["epochs"] * 3), "40 images in batches of 16, none left out"
    assert ours["images_per_second"] == pytest.approx(16 * ours["steps"] / ours["seconds_trained"], rel=1e-3)
    assert ours["command"].startswith(
        "sslkit run method=simclr backbone=shufflenetv2 data=FOLDER backbone.stem=imagenet"
    )
    assert all(0 <= cell[metric] <= 1 for cell in second["cells"].values() for metric in learning_page.METRICS)
    assert second["cells"][next(iter(first["cells"]))]["chance"] == 0.1
    assert set(second["environments"][0]["versions"]) > {"torch", "lightly", "sslkit"}

    before = out.read_bytes()
    done = sitting("--contestants", "sslkit,lightly", *TOY)
    assert (done.returncode, out.read_bytes()) == (0, before)
    assert "0 cells to measure" in done.stderr

    done = sitting("--remark", "simclr", "A toy.", *TOY)
    assert done.returncode == 0, done.stderr
    done = sitting("--page", "--docs", str(tmp_path / "page.md"))
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "page.md").read_text()
    assert check_numbers(json.loads(out.read_text()), page) == 4
    assert "- simclr: A toy." in page
    assert "](out.svg)" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cifar", "--contestants", "lightli"], "there is no contestant 'lightli'"),
        (["cifar", "--methods", "simcrl"], "there is no method 'simcrl'"),
        (["cifar", "--part", "contest", "--methods", "dino"], "the contest has simclr and byol, not 'dino'"),
        (["cifar", "epochs"], "'epochs' is no key=value"),
        (["cifar", "--images", "50"], "holds results of"),
        ([], "CIFAR_FOLDER is missing"),
    ],
)
def test_mistakes_are_refused_before_anything_is_measured(words, message, report, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    out.write_text(json.dumps(report))
    monkeypatch.setattr(sys, "argv", ["learning.py", "--out", str(out), *words])
    with pytest.raises(SystemExit) as stopped:
        learning.main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_list_has_the_cells_that_are_still_to_be_measured(report, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    out.write_text(json.dumps(report))
    words = ["--part", "contest", "--methods", "simclr", "--networks", "shufflenetv2", "--seconds", "60,900"]
    monkeypatch.setattr(sys, "argv", ["learning.py", "cifar", "--out", str(out), "--list", *words])
    learning.main()
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 9
    assert all(" 900s " in line for line in captured.out.splitlines())
    assert "9 cells to measure, 2.2 h of training" in captured.err
