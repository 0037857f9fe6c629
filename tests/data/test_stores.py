"""What a run opens: roles, held-out parts, and the cache of packed files."""

import json
import os
from datetime import date

import numpy as np
import pytest
from PIL import Image

from sslkit.config.base import Choice
from sslkit.data import Digits, Folder, Packed, Shapes, open_stores, pack_source, survey
from sslkit.data.packing.store import sidecar
from sslkit.data.split import stratified_split
from sslkit.errors import UserError


def choose(cls, name, tmp_path, **options):
    return Choice(name=name, options=cls.Config(cache=tmp_path / "cache", **options))


def photos(root, *parts, count=10, size=40):
    for k, part in enumerate(parts):
        for i in range(count):
            path = root / part / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (size, size), (20 * i, 90 * (k % 3), 40)).save(path)
    return root


def packed_files(tmp_path):
    return sorted(p.name.split("px-")[0].rsplit("-", 1)[0] for p in (tmp_path / "cache").glob("*.beton"))


def test_digits_are_packed_once_with_one_line_each(tmp_path):
    said = []
    choice = choose(Digits, "digits", tmp_path)
    stores = open_stores(choice, None, 0, log=said.append)
    assert stores.protocol == "digits: train 1437 -> test 360"
    assert (len(stores.pretrain), len(stores.train), len(stores.test)) == (1437, 1437, 360)
    assert stores.train.path == stores.pretrain.path
    assert (stores.image_size, stores.pretrain.size) == (32, 32)
    assert stores.mean == (0.485, 0.456, 0.406)
    assert packed_files(tmp_path) == ["digits-pretrain", "digits-test"]
    assert [line.split(":")[0] for line in said] == [
        "packing digits (pretrain)",
        "packing digits (test)",
    ]
    again = []
    assert open_stores(choice, None, 0, log=again.append).pretrain.path == stores.pretrain.path
    assert again == []


def test_other_settings_are_packed_beside(tmp_path):
    paths = [
        open_stores(choose(Shapes, "shapes", tmp_path, n_train=20, n_test=0, **more), None, 0, log=len).pretrain.path
        for more in ({}, {"jpeg_quality": 50}, {"mode": "jpeg"}, {"mode": "jpeg", "jpeg_quality": 50}, {"seed": 1})
    ]
    # The quality of JPEGs does not matter where none are written.
    assert paths[0] == paths[1]
    assert len(set(paths)) == 4


def test_a_changed_folder_is_packed_again(tmp_path):
    root = photos(tmp_path / "p", "a", "b")
    choice = choose(Folder, "folder", tmp_path, root=root)
    first = open_stores(choice, None, 0, log=len)
    assert len(first.pretrain) == 20
    (root / "a" / "0.png").unlink()
    second = open_stores(choice, None, 0, log=len)
    assert len(second.pretrain) == 19
    (root / "a" / "1.png").write_bytes((root / "b" / "9.png").read_bytes())
    assert open_stores(choice, None, 0, log=len).pretrain.path not in (first.pretrain.path, second.pretrain.path)


@pytest.mark.parametrize("harm", ["cut", "overwrite", "neighbour"])
def test_a_damaged_cache_is_packed_again(tmp_path, harm):
    choice = choose(Shapes, "shapes", tmp_path, n_train=20, n_test=0)
    store = open_stores(choice, None, 0, log=len).pretrain
    content, pixels = store.path.read_bytes(), store.read(range(20))
    if harm == "neighbour":
        (store.path.parent / f"{store.path.name}.json").write_text("{")
    else:
        store.path.write_bytes(content[:-100] if harm == "cut" else b"x" * len(content))
    said = []
    mended = open_stores(choice, None, 0, log=said.append).pretrain
    assert said[0].startswith("packing again: ")
    assert mended.path.read_bytes() == content
    np.testing.assert_array_equal(mended.read(range(20)), pixels)


def test_the_remains_of_a_killed_packer_are_swept(tmp_path):
    choice = choose(Shapes, "shapes", tmp_path, n_train=20, n_test=0)
    path = open_stores(choice, None, 0, log=len).pretrain.path
    old, young = (path.with_name(f".{path.name}.{pid}.tmp") for pid in (1, 2))
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    path.unlink()
    open_stores(choice, None, 0, log=len)
    assert not old.exists()
    assert young.exists()


def test_skipped_images_are_reported(tmp_path):
    root = photos(tmp_path / "p", ".", count=30)
    (root / "bad.png").write_text("no picture")
    said = []
    stores = open_stores(choose(Folder, "folder", tmp_path, root=root), None, 0, log=said.append)
    assert len(stores.pretrain) == 30
    assert "skipped 1 unreadable" in said[2]
    assert "bad.png" in said[2]


def test_a_flat_folder_has_nothing_to_measure(tmp_path):
    root = photos(tmp_path / "p", ".")
    stores = open_stores(choose(Folder, "folder", tmp_path, root=root), None, 0, log=len)
    assert stores.train is None
    assert stores.test is None
    assert "no labels" in stores.protocol
    assert stores.pretrain.labels is None


def test_a_fifth_of_one_labelled_folder_is_held_out_by_seed(tmp_path):
    root = photos(tmp_path / "p", "a", "b", "c", count=10)
    choice = choose(Folder, "folder", tmp_path, root=root)
    stores = open_stores(choice, None, 0, log=len)
    assert (len(stores.pretrain), len(stores.train), len(stores.test)) == (30, 24, 6)
    assert np.bincount(stores.test.labels).tolist() == [2, 2, 2]
    assert not set(stores.train.rows) & set(stores.test.rows)
    assert "stratified fifth" in stores.protocol
    assert "held out by seed 0 (seen unlabelled in pre-training): train 24 -> test 6" in stores.protocol
    assert "seen" not in open_stores(choice, None, 0, log=len, seen=False).protocol
    same, other = (open_stores(choice, None, seed, log=len).test.rows for seed in (0, 1))
    assert same.tolist() == stores.test.rows.tolist()
    assert other.tolist() != same.tolist()
    assert packed_files(tmp_path) == ["p-pretrain"]


def test_a_pair_is_measured_from_train_to_test(tmp_path):
    root = photos(tmp_path / "p", "train/a", "train/b", "val/a", "val/b", count=6)
    stores = open_stores(choose(Folder, "folder", tmp_path, root=root), None, 0, log=len)
    assert (len(stores.pretrain), len(stores.train), len(stores.test)) == (12, 12, 12)
    assert stores.protocol == f"{root}: train 12 -> test 12"
    assert stores.train.path == stores.pretrain.path != stores.test.path


def test_unlabelled_train_with_labelled_test_holds_out_within_test(tmp_path):
    root = photos(tmp_path / "p", "train", "test/a", "test/b")
    stores = open_stores(choose(Folder, "folder", tmp_path, root=root), None, 0, log=len)
    assert (len(stores.pretrain), len(stores.train), len(stores.test)) == (10, 16, 4)


def test_eval_data_is_independent(tmp_path):
    root = photos(tmp_path / "p", ".", size=70)
    data = choose(Folder, "folder", tmp_path, root=root)
    stores = open_stores(data, choose(Digits, "digits", tmp_path), 0, log=len)
    assert (len(stores.pretrain), len(stores.train), len(stores.test)) == (10, 1437, 360)
    # Measured at the size that was trained on.
    assert (stores.image_size, stores.train.size, stores.test.size) == (64, 64, 64)
    assert stores.protocol == "digits: train 1437 -> test 360"


def test_eval_data_of_one_folder_holds_out_its_own_fifth(tmp_path):
    labelled = photos(tmp_path / "labelled", "a", "b")
    evaluation = choose(Folder, "folder", tmp_path, root=labelled)
    stores = open_stores(choose(Digits, "digits", tmp_path), evaluation, 3, log=len)
    assert (len(stores.pretrain), len(stores.train), len(stores.test)) == (1437, 16, 4)
    assert stores.protocol == f"stratified fifth of {labelled} held out by seed 3: train 16 -> test 4"


def test_eval_data_without_labels_is_refused_before_it_is_packed(tmp_path):
    flat = choose(Folder, "folder", tmp_path, root=photos(tmp_path / "flat", "."))
    with pytest.raises(UserError, match=r"eval_data: .*flat has no labels \(no class folders\)"):
        open_stores(choose(Digits, "digits", tmp_path), flat, 0, log=len)
    assert packed_files(tmp_path) == ["digits-pretrain"]


def test_one_class_is_nothing_to_measure_and_single_images_are_not_held_out(tmp_path):
    root = photos(tmp_path / "p", "a", "b", count=1)
    stores = open_stores(choose(Folder, "folder", tmp_path, root=root), None, 0, log=len)
    assert stores.train is None
    assert "for want of enough labelled images" in stores.protocol


def test_a_packed_file_is_opened_in_place(tmp_path):
    path = open_stores(choose(Shapes, "shapes", tmp_path, n_train=50, n_test=0), None, 0, log=len).pretrain.path
    said = []
    stores = open_stores(choose(Packed, "beton", tmp_path, root=path), None, 0, log=said.append)
    assert said == []
    assert stores.pretrain.path == path
    assert (len(stores.train), len(stores.test)) == (40, 10)
    assert stores.pretrain.classes[0] == "circle"
    smaller = choose(Packed, "beton", tmp_path, root=path, store_size=32)
    stores = open_stores(smaller, None, 0, log=said.append)
    assert stores.pretrain.size == 32
    assert len(said) == 1


def test_packing_to_a_named_file(tmp_path):
    choice, said = choose(Shapes, "shapes", tmp_path, image_size=112, n_train=20, n_test=5), []
    store = pack_source(choice, tmp_path / "mine" / "s.beton", "test", log=said.append)
    assert (store.path, len(store), store.size) == (tmp_path / "mine" / "s.beton", 5, 128)
    assert "128 px, JPEG quality 92" in said[0]
    with pytest.raises(UserError, match=r"s\.beton exists"):
        pack_source(choice, store.path, log=len)
    with pytest.raises(UserError, match=r"must end in \.beton"):
        pack_source(choice, tmp_path / "photos", log=len)
    flat = choose(Folder, "folder", tmp_path, root=photos(tmp_path / "flat", "."))
    with pytest.raises(UserError, match="has no images to test on"):
        pack_source(flat, tmp_path / "t.beton", "test", log=len)


def test_the_cache_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path / "elsewhere"))
    choice = Choice(name="shapes", options=Shapes.Config(n_train=20, n_test=0))
    assert open_stores(choice, None, 0, log=len).pretrain.path.parent == tmp_path / "elsewhere"


@pytest.mark.parametrize("counts", [[50, 50], [1, 9, 30], [7, 7, 7], [1, 1, 1], [2, 2, 2], [1000, 3]])
def test_stratified_split_is_a_partition_in_proportion(counts):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    labels = np.insert(labels, 0, [-1, -1])
    rest, held_out = stratified_split(labels, seed=5)
    assert sorted([*rest, *held_out]) == list(range(2, len(labels)))
    for k, count in enumerate(counts):
        held = int((labels[held_out] == k).sum())
        assert abs(held - count / 5) <= 1
        assert held < count
    again = stratified_split(labels, seed=5)[1]
    assert again.tolist() == held_out.tolist()


def test_real_photographs_from_a_folder(shared, tmp_path):
    import tarfile

    archive = shared / "cifar10-2k.tar"
    if not archive.is_file():
        pytest.skip("needs cifar10-2k.tar")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path, filter="data")
    stores = open_stores(choose(Folder, "folder", tmp_path, root=tmp_path / "cifar10-2k"), None, 0, log=len)
    assert stores.image_size == 32
    assert len(stores.pretrain.classes) == 10
    assert len(stores.pretrain) == 2000 or len(stores.pretrain) + len(stores.test) >= 2000
    row = 17
    name = stores.test.names[row]
    wanted = np.asarray(Image.open(tmp_path / "cifar10-2k" / "test" / name).convert("RGB"))
    np.testing.assert_array_equal(stores.test.read([row])[0], wanted)
    assert stores.test.classes[stores.test.labels[row]] == name.split("/")[0]


def coloured(root, parts, seed=0, ending="png", size=40):
    """Pictures of noise: {folder: count}, no two of them equal."""
    draw = np.random.default_rng(seed)
    for part, count in parts.items():
        (root / part).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            pixels = draw.integers(0, 256, (size, size, 3), np.uint8)
            Image.fromarray(pixels).save(root / part / f"{k:03d}.{ending}")
    return root


def opened(tmp_path, root, **options):
    """Return the stores of a folder and what was said."""
    said = []
    return open_stores(choose(Folder, "folder", tmp_path, root=root, **options), None, 0, log=said.append), said


def test_folders_of_equal_names_sizes_and_times_are_packed_apart(tmp_path):
    pixels = []
    for seed, name in enumerate(("day", "night")):
        root = coloured(tmp_path / name / "photos", {".": 4}, seed, "bmp")
        for file in root.iterdir():
            os.utime(file, (1e9, 1e9))
        pixels.append(opened(tmp_path, root)[0].pretrain.read(range(4)))
    assert (pixels[0] != pixels[1]).any()


def test_images_replaced_under_equal_names_sizes_and_times_are_packed_again(tmp_path):
    root = coloured(tmp_path / "p", {".": 4}, 0, "bmp")
    before = opened(tmp_path, root)[0].pretrain.read(range(4))
    times = {file: file.stat() for file in root.iterdir()}
    coloured(tmp_path / "p", {".": 4}, 1, "bmp")
    for file, stat in times.items():
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (opened(tmp_path, root)[0].pretrain.read(range(4)) != before).any()


@pytest.mark.parametrize("position", [0.3, 0.5, 0.7])
def test_damaged_pixels_in_the_cache_are_packed_again(tmp_path, position):
    root = coloured(tmp_path / "p", {".": 20})
    store = opened(tmp_path, root)[0].pretrain
    content, pixels, times = store.path.read_bytes(), store.read(range(20)), store.path.stat()
    start, end = int(store.beton._pointers.min()), store.beton._end
    with open(store.path, "r+b") as file:
        file.seek(start + int((20 * 32 * 32 * 3) * position))
        file.write(b"damage")
    os.utime(store.path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert end <= len(content)
    mended, said = opened(tmp_path, root)
    assert any("packing again" in line and "its bytes have changed" in line for line in said)
    assert mended.pretrain.path.read_bytes() == content
    np.testing.assert_array_equal(mended.pretrain.read(range(20)), pixels)


def test_damaged_pixels_of_a_packed_file_are_named(tmp_path):
    root = coloured(tmp_path / "p", {".": 20})
    packed = pack_source(choose(Folder, "folder", tmp_path, root=root), tmp_path / "mine.beton", log=len)
    choice = choose(Packed, "beton", tmp_path, root=packed.path)
    assert len(open_stores(choice, None, 0, log=len).pretrain) == 20
    with open(packed.path, "r+b") as file:
        file.seek(int(packed.beton._pointers.min()) + 5000)
        file.write(b"damage")
    with pytest.raises(UserError, match=r"mine\.beton is damaged: its bytes have changed"):
        open_stores(choice, None, 0, log=len)


@pytest.mark.parametrize(
    "change",
    [{"names": None}, {"classes": 3}, {"skipped": [1]}, {"mark": []}, {"digests": "xyz"}, {"digests": "00" * 16}],
)
def test_a_neighbour_with_a_field_of_another_type_is_packed_again(tmp_path, change):
    root = coloured(tmp_path / "p", {".": 4})
    file = sidecar(opened(tmp_path, root)[0].pretrain.path)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    _, said = opened(tmp_path, root)
    assert any("packing again" in line for line in said)
    assert not any("packing again" in line for line in opened(tmp_path, root)[1])


def test_the_remains_of_any_killed_packer_are_swept(tmp_path):
    root = coloured(tmp_path / "p", {".": 4})
    opened(tmp_path, root)
    remains = tmp_path / "cache" / ".another-pretrain-32px-2020-01-01-0123.beton.77.abcd.tmp"
    remains.write_bytes(b"half")
    os.utime(remains, (1, 1))
    opened(tmp_path, root)
    assert not remains.exists()


def test_names_in_the_cache_say_folder_size_and_date(tmp_path):
    root = coloured(tmp_path / "my photos", {".": 4})
    name = opened(tmp_path, root, image_size=64)[0].pretrain.path.name
    assert name.startswith(f"my-photos-pretrain-64px-{date.today().isoformat()}-")


def test_a_packed_file_of_another_day_is_used(tmp_path):
    root = coloured(tmp_path / "p", {".": 4})
    path = opened(tmp_path, root)[0].pretrain.path
    older = path.with_name(path.name.replace(date.today().isoformat(), "2020-01-01"))
    sidecar(path).rename(sidecar(older))
    path.rename(older)
    assert opened(tmp_path, root)[0].pretrain.path == older


def test_what_was_found_is_said(tmp_path):
    root = coloured(tmp_path / "p", {"train/a": 3, "train/b": 2, "test/a": 1, "val/a": 4})
    (root / "notes.txt").touch()
    _, said = opened(tmp_path, root)
    assert said[0] == (
        f"found in {root}: train/ 5 images in 2 classes (a 3, b 2); test/ 1 images in 2 classes (a 1, b 0)"
    )
    assert said[1] == "left out: 1 × .txt; 4 images in val/ are in neither part"


def test_a_test_part_with_some_of_the_classes_is_measured(tmp_path):
    root = coloured(tmp_path / "p", {"train/a": 4, "train/b": 4, "test/a": 3})
    assert opened(tmp_path, root)[0].protocol == f"{root}: train 8 -> test 3"


def test_copies_across_parts_are_counted(tmp_path):
    root = coloured(tmp_path / "p", {"train/a": 4, "train/b": 4, "test/a": 3, "test/b": 3})
    for k in range(2):
        (root / "test" / "a" / f"{k:03d}.png").write_bytes((root / "train" / "b" / f"{k:03d}.png").read_bytes())
    sentence = "2 of 6 test images are exact copies of training images, which raises accuracies"
    assert opened(tmp_path, root)[1][-1] == sentence
    choice = choose(Folder, "folder", tmp_path, root=root)
    assert survey(choice, None, 0).lines[-1] == sentence


def test_copies_across_the_held_out_fifth_are_counted(tmp_path):
    root = coloured(tmp_path / "p", {"a": 10, "b": 10})
    assert not any("exact copies" in line for line in opened(tmp_path, root)[1])
    for file in (root / "a").iterdir():
        file.write_bytes((root / "a" / "000.png").read_bytes())
    assert opened(tmp_path, root)[1][-1].startswith("2 of 4 test images are exact copies")
    assert survey(choose(Folder, "folder", tmp_path, root=root), None, 0).lines[-1].startswith("2 of 4 test images")


def test_a_survey_says_why_nothing_can_be_measured(tmp_path):
    single = coloured(tmp_path / "single", dict.fromkeys("abcd", 1))
    flat = coloured(tmp_path / "flat", {".": 4})
    for root, reason in ((single, "4 images of 4 classes are too few to hold any out"), (flat, "no class folders")):
        found = survey(choose(Folder, "folder", tmp_path, root=root), None, 0)
        stores, _ = opened(tmp_path, root)
        assert not found.labelled
        assert not stores.labelled
        assert reason in found.unlabelled
        assert found.unlabelled == stores.unlabelled


def test_digests_follow_content_order_and_labels_and_not_the_place(tmp_path):
    root = coloured(tmp_path / "p", {"a": 3, "b": 3})
    stores, _ = opened(tmp_path, root)
    moved = root.rename(tmp_path / "q")
    assert opened(tmp_path, moved)[0].digests == stores.digests
    other = opened(tmp_path, moved, image_size=64)[0].digests
    assert [part for part in other if other[part] != stores.digests[part]] == ["size"]
    packed = pack_source(choose(Folder, "folder", tmp_path, root=moved), tmp_path / "q.beton", log=len)
    assert packed.digest == stores.pretrain.digest
    (moved / "a" / "000.png").rename(moved / "b" / "999.png")
    assert opened(tmp_path, moved)[0].digests["pretrain"] != stores.digests["pretrain"]


def test_max_pixels_decides_what_is_read_whatever_pillow_allows(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    root = coloured(tmp_path / "p", {".": 4})
    assert len(opened(tmp_path, root)[0].pretrain) == 4
    assert Image.MAX_IMAGE_PIXELS == 1000
    with pytest.raises(UserError, match=r"1,600 pixels are more than data\.max_pixels=1599 allows; raise it"):
        opened(tmp_path, root, max_pixels=1599)


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that opens and cannot be read")
def test_an_unreadable_file_does_not_end_the_digests(tmp_path):
    root = coloured(tmp_path / "p", {".": 30})
    (root / "007.png").unlink()
    (root / "007.png").symlink_to("/proc/self/mem")
    stores, _ = opened(tmp_path, root)
    assert [name for name, _ in stores.pretrain.skipped] == ["007.png"]
