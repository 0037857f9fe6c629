"""A run goes on with the images that it began with, wherever they are, and with no others."""

import shutil

import numpy as np
import pytest
from PIL import Image

from sslkit.config.resolve import resolve, resolve_data
from sslkit.data import pack_source
from sslkit.errors import UserError
from sslkit.runs.run import Run
from sslkit.training import engine

WORDS = [
    "method=simclr", "backbone=squeezenet", "backbone.stem=imagenet", "batch_size=8", "epochs=1", "device=cpu",
    "tune=off", "evaluators=[knn]", "report=false", "data.image_size=32", "log_every=1",
]  # fmt: skip


def photos(root, seed=0):
    draw = np.random.default_rng(seed)
    for name in "ab":
        (root / name).mkdir(parents=True, exist_ok=True)
        for k in range(10):
            Image.fromarray(draw.integers(0, 256, (40, 40, 3), np.uint8)).save(root / name / f"{k}.png")
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch that is to take two."""
    folder = tmp_path_factory.mktemp("trained")
    photos(folder / "photos")
    run = engine.run(resolve([*WORDS, f"data={folder / 'photos'}", f"out={folder / 'run'}"]))
    config = run.path / "config.yaml"
    config.write_text(config.read_text().replace("epochs: 1\n", "epochs: 2\n"))
    return folder


@pytest.fixture
def stopped(trained, tmp_path):
    """A copy of the run and of its images, which are where the run expects them."""
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copytree(trained / "photos", tmp_path / "photos")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(trained), str(tmp_path)))
    return tmp_path


def steps(run):
    return [record["step"] for record in Run.open(run).metrics]


def test_a_run_goes_on_with_the_same_images(stopped):
    engine.resume(stopped / "run")
    assert steps(stopped / "run") == [1, 2, 3, 4, 5, 6]


def test_other_images_of_the_same_number_are_refused(stopped):
    photos(stopped / "photos", seed=1)
    with pytest.raises(UserError, match=r"the images have changed .* \(pretrain, train, test\)"):
        engine.resume(stopped / "run")
    assert steps(stopped / "run") == [1, 2, 3]


def test_one_renamed_file_that_shifts_labels_is_refused(stopped):
    (stopped / "photos" / "a" / "0.png").rename(stopped / "photos" / "b" / "zz.png")
    with pytest.raises(UserError, match="other pictures, another order, other labels"):
        engine.resume(stopped / "run")


def test_a_renamed_file_that_shifts_nothing_is_not(stopped):
    (stopped / "photos" / "a" / "0.png").rename(stopped / "photos" / "a" / "00.png")
    engine.resume(stopped / "run")
    assert steps(stopped / "run")[-1] == 6


def test_images_that_are_not_there_are_asked_for(stopped):
    (stopped / "photos").rename(stopped / "pictures")
    with pytest.raises(UserError, match=r"photos does not exist; .*sslkit resume \S+ data=PATH"):
        engine.resume(stopped / "run")


@pytest.mark.parametrize("packed", [False, True])
def test_images_that_have_moved_are_found_where_they_are_and_remembered(stopped, packed):
    place = (stopped / "photos").rename(stopped / "pictures")
    if packed:
        place = pack_source(resolve_data(str(place), ["image_size=32"]), stopped / "p.beton", log=len).path
    engine.resume(stopped / "run", words=[f"data={place}"])
    assert steps(stopped / "run")[-1] == 6
    again = Run.open(stopped / "run")
    assert again.config.data.options.root == place
    assert again.config.data.name == ("beton" if packed else "folder")


def test_other_images_in_another_place_are_refused(stopped):
    (stopped / "photos").rename(stopped / "gone")
    photos(stopped / "other", seed=2)
    before = (stopped / "run" / "config.yaml").read_text()
    with pytest.raises(UserError, match="have changed since the run was stopped"):
        engine.resume(stopped / "run", words=[f"data={stopped / 'other'}"])
    assert (stopped / "run" / "config.yaml").read_text() == before


def test_the_same_images_packed_at_another_size_are_refused(stopped):
    place = pack_source(resolve_data(str(stopped / "photos"), ["image_size=64"]), stopped / "p.beton", log=len).path
    with pytest.raises(UserError, match=r"the images have changed .* \(size\)"):
        engine.resume(stopped / "run", words=[f"data={place}"])


def test_a_run_without_a_checkpoint_refuses_other_images_too(stopped):
    shutil.rmtree(stopped / "run" / "checkpoints")
    photos(stopped / "photos", seed=3)
    with pytest.raises(UserError, match="have changed since the run was stopped"):
        engine.resume(stopped / "run")


@pytest.mark.parametrize("word", ["epochs=3", "data.image_size=64", "method=byol"])
def test_a_run_keeps_its_other_settings(stopped, word):
    with pytest.raises(UserError, match="a run keeps its settings; give only the place of images"):
        engine.resume(stopped / "run", words=[word])


def test_a_place_that_does_not_exist_is_named(stopped):
    with pytest.raises(UserError, match="nowhere does not exist"):
        engine.resume(stopped / "run", words=[f"data={stopped / 'nowhere'}"])


def test_another_batch_is_not_told_as_other_data(stopped):
    config = stopped / "run" / "config.yaml"
    config.write_text(config.read_text().replace("batch_size: 8\n", "batch_size: 4\n"))
    with pytest.raises(UserError, match="an epoch had 3 steps and now has 5: batch_size"):
        engine.resume(stopped / "run")


def test_a_dry_run_says_what_was_found_and_what_cannot_be_measured(stopped, sslkit):
    found = sslkit("run", "method=simclr", "backbone=squeezenet", f"data={stopped / 'photos'}", "--dry-run")
    assert "20 images in 2 classes (a 10, b 10)" in found.stderr
    shutil.rmtree(stopped / "photos" / "b")
    found = sslkit(
        "run", "method=simclr", "backbone=squeezenet", f"data={stopped / 'photos'}", "evaluators=[knn]", "--dry-run"
    )
    assert "no labels to evaluate with (no class folders), and knn needs them" in found.stderr


def test_a_dry_run_finds_a_class_without_training_images(stopped, sslkit):
    for name in ("train/a", "train/b", "test/a", "test/c"):
        shutil.copytree(stopped / "photos" / "a", stopped / "pair" / name)
    found = sslkit("run", "method=simclr", "backbone=squeezenet", f"data={stopped / 'pair'}", "--dry-run")
    assert found.returncode == 2
    assert "class 'c' has no training images" in found.stderr
    found = sslkit("run", "backbone=squeezenet", "data=digits", f"eval_data={stopped / 'pair'}", "--dry-run")
    assert found.returncode == 2
    assert "eval_data: test/c: class 'c' has no training images" in found.stderr
    shutil.rmtree(stopped / "pair" / "test" / "c")
    found = sslkit("run", "method=simclr", "backbone=squeezenet", f"data={stopped / 'pair'}", "--dry-run")
    assert "10 of 10 test images are exact copies" in found.stderr


def test_a_dry_run_finds_that_no_image_can_be_opened(tmp_path, sslkit):
    (tmp_path / "photos").mkdir()
    for k in range(20):
        (tmp_path / "photos" / f"{k}.png").write_text("no picture")
    found = sslkit("run", "method=simclr", "backbone=squeezenet", f"data={tmp_path / 'photos'}", "--dry-run")
    assert found.returncode == 2
    assert "can be opened" in found.stderr
