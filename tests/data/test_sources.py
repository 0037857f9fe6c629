"""Every data set: what it claims, lists, names and refuses."""

import os

import numpy as np
import pytest
from helpers.data_sources import cifar10_files, cifar_records, mistakes, source, write_all
from PIL import Image

from sslkit import plugins
from sslkit.config.resolve import resolve
from sslkit.data import STL10, Digits, Folder, Packed, Shapes, pack
from sslkit.data.split import stratified_split
from sslkit.errors import UserError


def save(path, width=40, height=40, colour=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), colour).save(path)


# The contract, over every registered data set.


@pytest.mark.parametrize("name", ["beton", "cifar10", "cifar100", "digits", "folder", "shapes", "stl10"])
def test_every_data_set_is_registered_with_a_summary_and_settings(name):
    component = {c.name: c for c in plugins.components("datasets")}[name]
    assert component.distribution == "sslkit"
    assert component.summary
    cls = component.load()
    for field, info in cls.Config.model_fields.items():
        assert info.description, f"{name}.{field} has no help text"


@pytest.mark.parametrize("options", [{"mean": (0.5,)}, {"std": (0, 1, 1)}, {"fit": "zoom"}, {"jpeg_quality": 0}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Folder.Config(root=".", **options)


def test_home_is_expanded(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Folder.Config(root="~/photos").root == tmp_path / "photos"


@pytest.mark.parametrize(("size", "stored"), [(32, 32), (96, 96), (128, 146), (160, 183), (224, 256)])
def test_images_are_stored_a_little_larger_than_their_views_above_96_pixels(size, stored):
    assert source(Digits).store_size(size) == stored
    assert source(Digits, store_size=70).store_size(size) == 70


# Folders


def test_class_folders_are_numbered_by_name_and_searched_to_any_depth(tmp_path):
    for name in ["dog/b.PNG", "dog/a.jpg", "cat/deep/down/c.JPeG", "cat/z.png", "Ant/1.webp"]:
        save(tmp_path / name)
    for name in ["cat/.hidden.png", ".git/x.png", "dog/notes.txt", "empty/readme.md"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    images = source(Folder, root=tmp_path).images("pretrain")
    assert images.classes == ("Ant", "cat", "dog")
    names = [images.name(i) for i in range(len(images))]
    assert names == ["Ant/1.webp", "cat/deep/down/c.JPeG", "cat/z.png", "dog/a.jpg", "dog/b.PNG"]
    assert images.labels.tolist() == [0, 1, 1, 2, 2]
    assert source(Folder, root=tmp_path).images("train") is None


@pytest.mark.parametrize("names", [["b.png", "a.png"], ["all/a.png", "all/b.png"], ["a.png", "x/b.png", "y/c.png"]])
def test_flat_folders_single_folders_and_mixtures_are_unlabelled(tmp_path, names):
    for name in names:
        save(tmp_path / name)
    images = source(Folder, root=tmp_path).images("pretrain")
    assert images.labels is None
    assert images.classes == ()
    assert [images.name(i) for i in range(len(images))] == sorted(names)


@pytest.mark.parametrize(
    ("train", "other"),
    [
        ("train", "test"),
        ("train", "val"),
        ("train", "valid"),
        ("Train", "Test"),
        ("training", "testing"),
        ("TRAIN", "validation"),
        ("zip/data/train", "zip/data/test"),
    ],
)
def test_train_and_test_folders_are_a_pair(tmp_path, train, other):
    for name in [f"{train}/a/1.png", f"{train}/b/2.png", f"{train}/c/3.png", f"{other}/a/4.png", f"{other}/c/5.png"]:
        save(tmp_path / name)
    pair = source(Folder, root=tmp_path)
    assert pair.count() == 3
    assert pair.images("train") is pair.images("pretrain")
    test = pair.images("test")
    assert test.classes == ("a", "b", "c")
    assert test.labels.tolist() == [0, 2]


def test_a_class_without_training_images_is_named(tmp_path):
    for name in ["train/a/1.png", "train/b/2.png", "test/a/4.png", "test/zebra/5.png"]:
        save(tmp_path / name)
    with pytest.raises(UserError, match="class 'zebra' has no training images"):
        source(Folder, root=tmp_path).images("test")


def test_links_to_folders_are_followed_and_circles_end(tmp_path):
    save(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "photos")
    assert source(Folder, root=tmp_path / "photos").count() == 1


def test_a_folders_mistakes_come_with_their_mend(tmp_path):
    assert "names no folder" in mistakes(Folder)[0]
    assert "does not exist" in mistakes(Folder, root=tmp_path / "nothing")[0]
    assert "is empty" in mistakes(Folder, root=tmp_path)[0]
    (tmp_path / "a.txt").touch()
    (tmp_path / "b.CR2").touch()
    (message,) = mistakes(Folder, root=tmp_path)
    assert "holds no images, but 1 × " in message
    assert all(f"1 × {kind}" in message for kind in (".cr2", ".txt"))
    assert "is a file" in mistakes(Folder, root=tmp_path / "a.txt")[0]
    save(tmp_path / "deep" / "c.png")
    assert mistakes(Folder, root=tmp_path) == []


def test_the_fingerprint_follows_names_and_content(tmp_path):
    for name in "ab":
        save(tmp_path / f"{name}.png", colour=(ord(name), 2, 3))

    def fingerprint():
        return source(Folder, root=tmp_path).images("pretrain").fingerprint()

    first = fingerprint()
    os.utime(tmp_path / "a.png", (1, 1))
    assert fingerprint() == first
    (tmp_path / "a.png").rename(tmp_path / "c.png")
    renamed = fingerprint()
    save(tmp_path / "c.png", colour=(1, 2, 3))
    assert len({first, renamed, fingerprint()}) == 3


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [([(500, 400)], 224), ([(100, 300)] * 3, 96), ([(20, 90)], 32), ([(64, 64), (64, 64), (9, 9)], 64)],
)
def test_the_image_size_is_measured(tmp_path, sizes, wanted):
    for i, size in enumerate(sizes):
        save(tmp_path / f"{i}.png", *size)
    (tmp_path / "z.png").write_text("unreadable ones do not count")
    assert source(Folder, root=tmp_path).image_size() == wanted
    assert source(Folder, root=tmp_path, image_size=50).image_size() == 50


def test_a_folder_without_one_readable_image_is_named(tmp_path):
    (tmp_path / "z.png").write_text("no picture")
    with pytest.raises(UserError, match=r"no image of .* can be opened"):
        source(Folder, root=tmp_path).image_size()


# Digits and shapes


def test_digits_are_split_once_and_for_all():
    digits = source(Digits)
    train, test = digits.images("train"), digits.images("test")
    assert (digits.count(), len(train), len(test)) == (1437, 1437, 360)
    assert train.load(0).shape == (32, 32, 3)
    assert train.labels[:12].tolist() == [0, 1, 2, 3, 4, 6, 8, 9, 0, 2, 3, 4]
    assert test.labels[:12].tolist() == [5, 7, 1, 6, 9, 0, 6, 7, 0, 8, 7, 5]
    counts = np.bincount(test.labels)
    assert counts.min() >= 35
    assert train.classes == tuple("0123456789")
    assert train.fingerprint() != test.fingerprint()
    assert digits.images("pretrain").fingerprint() == train.fingerprint()
    rows = {train.load(i).tobytes() for i in range(len(train))}
    assert not rows & {test.load(i).tobytes() for i in range(len(test))}


def test_an_enlarged_digit_still_shows_its_pixels():
    from sklearn.datasets import load_digits

    rest, _ = stratified_split(load_digits().target.astype(np.int64), seed=0)
    small = load_digits().images[rest[5]] * 255 / 16
    large = source(Digits).images("train").load(5)[..., 0].astype(float)
    means = large.reshape(8, 4, 8, 4).mean((1, 3))
    assert np.corrcoef(means.ravel(), small.ravel())[0, 1] > 0.98


@pytest.mark.parametrize("size", [32, 64, 256])
def test_shapes_are_a_function_of_seed_index_and_size(size):
    shapes = source(Shapes, image_size=size, n_train=30, n_test=20)
    train, test = shapes.images("pretrain"), shapes.images("test")
    stored = shapes.store_size(size)
    assert train.load(7).shape == (stored, stored, 3)
    np.testing.assert_array_equal(train.load(7), source(Shapes, image_size=size).images("train").load(7))
    assert (train.load(7) != test.load(7)).any()
    other = source(Shapes, image_size=size, seed=1).images("train")
    assert (train.load(7) != other.load(7)).any()
    assert (len(train), len(test), len(train.classes)) == (30, 20, 10)


def test_shapes_differ_by_form_and_not_by_colour():
    """Mean colours must not tell the class; a small look at the pixels must."""
    from sklearn.linear_model import LogisticRegression

    images = source(Shapes, image_size=32, n_train=400).images("train")
    colours = np.stack([images.load(i).mean((0, 1)) for i in range(400)]) / 255
    classifier = LogisticRegression(max_iter=500).fit(colours[:300], images.labels[:300])
    assert classifier.score(colours[300:], images.labels[300:]) < 0.25


@pytest.mark.parametrize("options", [{"image_size": 31}, {"image_size": 257}, {"n_train": 0}])
def test_shapes_refuse_what_they_cannot_draw(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        Shapes.Config(**options)


# STL-10


def stl10_folder(folder):
    draw = np.random.default_rng(0)
    kept = {}
    for name, count in (("unlabeled", 5), ("train", 4), ("test", 3)):
        pixels = draw.integers(0, 256, (count, 96, 96, 3), np.uint8)
        # On disk: channels, then columns, then rows.
        (folder / f"{name}_X.bin").write_bytes(pixels.transpose(0, 3, 2, 1).tobytes())
        kept[name] = pixels
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes(bytes(range(1, count + 1)))
    (folder / "class_names.txt").write_text("\n".join(f"thing{i}" for i in range(10)))
    return kept


@pytest.mark.parametrize("inside", [".", "stl10_binary"])
def test_stl10_from_its_binary_files(tmp_path, inside):
    (tmp_path / inside).mkdir(exist_ok=True)
    kept = stl10_folder(tmp_path / inside)
    assert STL10.claims(tmp_path)
    assert mistakes(STL10, root=tmp_path) == []
    stl = source(STL10, root=tmp_path)
    assert stl.count() == 5
    assert stl.image_size() == 96
    unlabelled, train, test = (stl.images(role) for role in ("pretrain", "train", "test"))
    assert unlabelled.labels is None
    np.testing.assert_array_equal(unlabelled.load(4), kept["unlabeled"][4])
    np.testing.assert_array_equal(test.load(1), kept["test"][1])
    assert train.labels.tolist() == [0, 1, 2, 3]
    assert train.classes[3] == "thing3"
    store = pack(unlabelled, tmp_path / "u.beton", size=96)
    np.testing.assert_array_equal(store.read(range(5)), kept["unlabeled"])


def test_stl10s_mistakes_are_named(tmp_path):
    assert "names no folder" in mistakes(STL10)[0]
    assert "no unlabeled_X.bin" in mistakes(STL10, root=tmp_path)[0]
    stl10_folder(tmp_path)
    (tmp_path / "test_y.bin").write_bytes(bytes([1, 11, 2]))
    with pytest.raises(UserError, match="does not hold 3 labels from 1 to 10"):
        len(source(STL10, root=tmp_path).images("test"))
    (tmp_path / "train_y.bin").unlink()
    assert source(STL10, root=tmp_path).images("train") is None
    (tmp_path / "unlabeled_X.bin").write_bytes(b"\0" * 1000)
    with pytest.raises(UserError, match=r"unlabeled_X\.bin is damaged"):
        source(STL10, root=tmp_path).count()


# .beton


def test_a_beton_by_path(tmp_path):
    store = pack(source(Digits).images("test"), tmp_path / "d.beton", size=112)
    assert Packed.claims(store.path)
    assert not Packed.claims(tmp_path)
    packed = source(Packed, root=store.path)
    assert packed.count() == 360
    assert packed.image_size() == 98
    assert packed.packed("pretrain", 112).size == 112
    assert source(Packed, root=store.path, store_size=64).packed("pretrain", 64) is None
    assert packed.images("train") is None


def test_a_betons_mistakes_are_named(tmp_path):
    assert "names no file" in mistakes(Packed)[0]
    assert "is not a file" in mistakes(Packed, root=tmp_path)[0]
    (tmp_path / "x.beton").write_text("no beton")
    assert "damaged" in mistakes(Packed, root=tmp_path / "x.beton")[0]


# As the command line sees them


def test_paths_pick_their_data_set(tmp_path):
    write_all(tmp_path / "c10", cifar10_files()[0])
    write_all(tmp_path / "c100", {"train.bin": cifar_records(2, 2, 100, 0)[0]})
    (tmp_path / "stl").mkdir()
    stl10_folder(tmp_path / "stl")
    save(tmp_path / "photos" / "a.png")
    pack(source(Digits).images("test"), tmp_path / "x.beton", size=32)
    for path, name in [
        ("c10", "cifar10"),
        ("c100", "cifar100"),
        ("stl", "stl10"),
        ("photos", "folder"),
        ("x.beton", "beton"),
    ]:
        resolved = resolve([f"data={tmp_path / path}", "evaluators=[]"])
        assert resolved.config.data.name == name
        assert resolved.config.data.options.root == tmp_path / path
