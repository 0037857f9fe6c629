"""Parts, classes and labels, read from the names of images."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sslkit.data import Folder, pack
from sslkit.data.sources.layout import read_layout
from sslkit.errors import UserError


def several(folder, count):
    return [f"{folder}{k:02d}.png" for k in range(count)]


@pytest.mark.parametrize("name", ["test", "Test", "testing", "val", "valid", "VALIDATION"])
def test_every_name_of_a_test_part(name):
    layout = read_layout(["train/a/1.png", "train/b/2.png", f"{name}/a/3.png", f"{name}/b/4.png"])
    assert (layout.train.folder, layout.test.folder) == ("train/", f"{name}/")
    assert layout.train.classes == layout.test.classes == ("a", "b")


def test_a_test_part_with_some_of_the_classes_is_kept_and_numbered_as_in_training():
    layout = read_layout(["train/a/1.png", "train/b/2.png", "test/b/3.png"])
    assert layout.test.classes == ("a", "b")
    assert layout.test.labels.tolist() == [1]


def test_a_class_of_the_test_part_alone_is_a_mistake():
    with pytest.raises(UserError, match="test/zebra: class 'zebra' has no training images"):
        read_layout(["train/a/1.png", "train/b/2.png", "test/a/3.png", "test/zebra/4.png"])


def test_images_in_neither_part_are_counted():
    names = ["train/a/1.png", "train/b/2.png", "test/a/3.png", "val/a/4.png", "val/b/5.png", "cover.png"]
    assert read_layout(names).unused == {"val": 2, "": 1}


@pytest.mark.parametrize("around", ["", "zip/", "zip/data/"])
def test_folders_around_the_classes_are_passed_through(around):
    part = read_layout([f"{around}a/1.png", f"{around}a/2.png", f"{around}b/3.png"]).train
    assert part.classes == ("a", "b")
    assert part.labels.tolist() == [0, 0, 1]
    assert part.names[0] == f"{around}a/1.png"


def test_folders_around_the_classes_of_a_part_are_passed_through():
    names = ["d/train/images/a/1.png", "d/train/images/b/2.png", "d/test/images/b/3.png"]
    layout = read_layout(names)
    assert layout.train.labels.tolist() == [0, 1]
    assert layout.train.names == ["images/a/1.png", "images/b/2.png"]


def test_a_stray_picture_beside_the_classes_has_none():
    part = read_layout(["cover.png", *several("a/", 10), *several("b/", 10)]).train
    assert part.classes == ("a", "b")
    assert part.labels.tolist() == [-1] + [0] * 10 + [1] * 10


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.png", "b.png"], "no class folders"),
        (["all/a.png", "all/b.png"], "no class folders"),
        (["x.png", "a/1.png"], "only one class folder, a/"),
        (["x.png", "y.png", "a/1.png", "b/2.png"], "2 of 4 images lie beside the class folders"),
    ],
)
def test_why_there_are_no_labels(names, reason):
    part = read_layout(names).train
    assert (part.labels, part.unlabelled) == (None, reason)


def test_a_lone_training_folder_is_no_class():
    layout = read_layout(["train/a/1.png", "train/b/2.png"])
    assert (layout.train.classes, layout.test) == (("a", "b"), None)


WORDS = st.sampled_from(["train", "Test", "val", "a", "b", "x y", "é", "\udce9", "=1+1", "\x1b[31m"])
NAMES = st.lists(st.tuples(st.lists(WORDS, max_size=4), st.integers(0, 99)), min_size=1, max_size=30)


@given(NAMES)
def test_any_names_have_a_layout_or_a_mistake(drawn):
    names = sorted({"/".join([*folders, f"{number}.png"]) for folders, number in drawn})
    try:
        layout = read_layout(names)
    except UserError:
        return
    for part in filter(None, (layout.train, layout.test)):
        assert part.names
        assert (part.labels is None) == (part.classes == ()) == bool(part.unlabelled)
        assert part.labels is None or (len(part.labels) == len(part.names) and part.labels.max() < len(part.classes))
        assert all(name.isprintable() for name in part.classes)
    used = len(layout.train.names) + (len(layout.test.names) if layout.test else 0) + sum(layout.unused.values())
    assert used == len(names)


FILE_NAMES = st.binary(min_size=1, max_size=40).map(lambda name: name.translate(None, b"/\0")).filter(len)


@settings(max_examples=10, deadline=None)
@given(st.sets(FILE_NAMES, min_size=1, max_size=5))
def test_files_of_any_name_are_packed_or_counted(names):
    with tempfile.TemporaryDirectory() as folder:
        root = os.fsencode(folder) + b"/photos"
        os.mkdir(root)
        for name in names:
            with open(os.path.join(root, name + b".png"), "wb") as file:
                Image.new("RGB", (8, 8)).save(file, "PNG")
        visible = sum(not name.startswith(b".") for name in names)
        source = Folder(Folder.Config(root=Path(folder) / "photos", cache=Path(folder) / "cache"))
        if not visible:
            assert "hidden" in next(iter(source.config.check()))
            return
        store = pack(source.images("pretrain"), Path(folder) / "a.beton", size=8)
        assert len(store) == visible
        assert all(name.isprintable() for name in store.names)
        assert source.found()[0].isprintable()
