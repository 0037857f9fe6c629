"""The .beton format: our writer and reader against FFCV's, and files that are none."""

import gc
import json
import subprocess
import sys
import tracemalloc
from importlib.util import find_spec

import numpy as np
import pytest

from sslkit.config.base import Choice
from sslkit.data import ArrayImages, Packed, Store, open_stores, pack
from sslkit.data.packing.beton import JPEG, RAW, Beton, BetonWriter, Record, decode_jpeg, encode_jpeg
from sslkit.errors import UserError

needs_ffcv = pytest.mark.skipif(find_spec("ffcv") is None, reason="FFCV is not installed")


def photo(seed, height=64, width=64):
    """Smooth colours with some detail: compresses like a photograph."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / draw.uniform(3, 20) + y / draw.uniform(3, 20) + draw.uniform(0, 6)) for _ in range(3)]
    return (127 + 100 * np.stack(waves, 2) + draw.normal(0, 8, (height, width, 3))).clip(0, 255).astype(np.uint8)


def images(count=50, size=64, labels=True):
    pixels = np.stack([photo(i, size, size) for i in range(count)])
    numbers = np.arange(count, dtype=np.int64) % 3 if labels else None
    return ArrayImages(lambda: (pixels, numbers), f"{count}-{size}", ("a", "b", "c") if labels else ())


def write(path, records):
    with open(path, "wb") as file:
        writer = BetonWriter(file, len(records) + 5, max(len(r.data) for r in records))
        for record in records:
            writer.add(record)
        writer.finish()
    return path


def test_raw_images_come_back_exactly_in_any_order(tmp_path):
    wanted = [photo(i, 40, 40) for i in range(30)]
    records = [Record(RAW, 40, 40, p.tobytes(), i) for i, p in enumerate(wanted)]
    file = Beton(write(tmp_path / "a.beton", records))
    assert file.shape == (40, 40)
    rows = np.array([3, 29, 0, 3])
    np.testing.assert_array_equal(file.read(rows), [wanted[r] for r in rows])
    np.testing.assert_array_equal(file.labels, range(30))
    assert file.read(np.array([], np.int64)).shape == (0, 40, 40, 3)


class Counted(np.ndarray):
    """A table that counts how many of its numbers are gone through."""

    seen = 0

    def __array_ufunc__(self, ufunc, method, *inputs, **more):
        Counted.seen += sum(x.size for x in inputs if isinstance(x, Counted))
        return getattr(ufunc, method)(*(np.asarray(x) for x in inputs), **more)


@pytest.mark.parametrize("mode", [RAW, JPEG])
def test_a_batch_costs_the_same_in_a_large_file(tmp_path, mode, monkeypatch):
    pixels = photo(0, 8, 8)
    data = pixels.tobytes() if mode == RAW else encode_jpeg(pixels, 90)
    file = Beton(write(tmp_path / "a.beton", [Record(mode, 8, 8, data)] * 1000))
    for table in ("_images", "_pointers", "_sizes"):
        setattr(file, table, getattr(file, table).view(Counted))
    monkeypatch.setattr(Counted, "seen", 0)
    file.read(np.array([3, 999]))
    assert Counted.seen >= 2000, "the first batch asks whether all sizes are equal"
    monkeypatch.setattr(Counted, "seen", 0)
    for _ in range(5):
        file.read(np.array([3, 999]))
    assert Counted.seen < 100


def test_records_never_straddle_a_page(tmp_path):
    side = 600
    wanted = [photo(i, side, side) for i in range(5)]
    path = write(tmp_path / "a.beton", [Record(RAW, side, side, p.tobytes()) for p in wanted])
    file = Beton(path)
    starts = file._pointers
    assert file.page_size == 1 << 21
    assert (starts // file.page_size == (starts + side * side * 3 - 1) // file.page_size).all()
    np.testing.assert_array_equal(file.read(np.arange(5)), wanted)


def test_jpeg_and_raw_mix_and_sizes_differ(tmp_path):
    small, large = photo(0, 20, 30), photo(1, 50, 40)
    records = [Record(RAW, 20, 30, small.tobytes()), Record(JPEG, 50, 40, encode_jpeg(large, 95))]
    file = Beton(write(tmp_path / "a.beton", records))
    assert file.shape is None
    assert file.size_of(1) == (50, 40)
    np.testing.assert_array_equal(file.image(0), small)
    assert np.abs(file.image(1).astype(int) - large).mean() < 8
    with pytest.raises(UserError, match="not squares of one size"):
        Store(file.path)


def test_capacity_may_be_more_than_what_is_written(tmp_path):
    file = Beton(write(tmp_path / "a.beton", [Record(RAW, 8, 8, bytes(192), 4)]))
    assert len(file) == 1
    assert file.labels.tolist() == [4]


@pytest.mark.parametrize("keep", [0, 10, 100, 1500, 2_200_000, -1, -24])
def test_a_file_cut_short_is_named(tmp_path, keep):
    path = tmp_path / "cut.beton"
    pack(images(), path, size=64)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"cut\.beton .*(damaged|not a .beton)"):
        Beton(path)


@pytest.mark.parametrize("content", [b"PK\x03\x04" * 1000, b"\0" * 5000, b"\xff" * 5000, b"\x02\0\x02\0" * 2000])
def test_a_foreign_file_is_named(tmp_path, content):
    path = tmp_path / "foreign.beton"
    path.write_bytes(content)
    with pytest.raises(UserError, match="foreign"):
        Beton(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nothing\.beton cannot be read"):
        Beton(tmp_path / "nothing.beton")


def test_flipped_bytes_in_the_tables_never_read_astray(tmp_path):
    path = tmp_path / "a.beton"
    pack(images(10), path, size=64)
    good, changed = path.read_bytes(), 0
    draw = np.random.default_rng(0)
    tables = [*range(200), *range(2100, 2400), *range(len(good) - 240, len(good))]
    for position in draw.choice(tables, 150, replace=False):
        bad = bytearray(good)
        bad[position] ^= 0xFF
        path.write_bytes(bad)
        try:
            file = Beton(path)
            [file.image(row) for row in range(len(file))]
        except UserError:
            changed += 1
    assert changed > 30


def test_a_damaged_record_is_named_by_its_row(tmp_path):
    whole = encode_jpeg(photo(0), 90)
    records = [Record(JPEG, 64, 64, whole), Record(JPEG, 64, 64, whole[: len(whole) // 2])]
    file = Beton(write(tmp_path / "a.beton", records))
    with pytest.raises(UserError, match=r"image 1 of .*a\.beton cannot be decoded"):
        file.read(np.array([0, 1]))


@needs_ffcv
def test_jpegs_decode_bit_for_bit_as_in_ffcv():
    from sslkit.data.loaders.ffcv import import_ffcv

    import_ffcv()
    from ffcv.libffcv import imdecode

    for seed, side in enumerate([97, 128, 131, 256]):
        record = np.frombuffer(encode_jpeg(photo(seed, side, side), 70 + 5 * seed), np.uint8)
        ours, theirs = (np.zeros((side, side, 3), np.uint8) for _ in range(2))
        decode_jpeg(record, ours)
        imdecode(record, theirs, side, side, side, side, 0, 0, 1, 1, False, False)
        np.testing.assert_array_equal(ours, theirs)


@needs_ffcv
@pytest.mark.parametrize("os_cache", [True, False])
def test_ffcv_reads_what_we_write(tmp_path, os_cache):
    from sslkit.data.loaders.ffcv import _COMPILED, import_ffcv

    import_ffcv()
    from ffcv.fields.decoders import SimpleRGBImageDecoder
    from ffcv.loader import Loader

    store = pack(images(700), tmp_path / "a.beton", size=64)
    pipelines = {"image": [SimpleRGBImageDecoder()], "label": None}
    loader = Loader(str(store.path), 100, num_workers=1, os_cache=os_cache, pipelines=pipelines)
    seen = np.concatenate([batch.copy() for (batch,) in loader])
    np.testing.assert_array_equal(seen, store.read(np.arange(700)))
    labels = Loader(str(store.path), 100, num_workers=1, os_cache=os_cache, pipelines={"image": None})
    seen = np.concatenate([batch.numpy().copy() for (batch,) in labels])
    assert seen.ravel().tolist() == store.labels.tolist()
    _COMPILED.extend([loader.code, labels.code])


FFCV_WRITES = """
import sys
import numpy as np
from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField
from ffcv.writer import DatasetWriter

class Rows:
    def __init__(self, varied):
        self.varied = varied

    def __len__(self):
        return len(pixels)

    def __getitem__(self, i):
        height = 64 - i if self.varied else 64
        extra = np.arange(5, dtype=np.float32), {"i": int(i)}, np.arange(i + 1, dtype=np.uint8)
        return (0.5 * i, *extra, i % 7, pixels[i][:height])

pixels = np.load(sys.argv[1] + "/pixels.npy")
for name, mode in (("raw", "raw"), ("jpg", "jpg"), ("varied", "raw")):
    fields = {
        "weight": FloatField(), "vector": NDArrayField(np.dtype("float32"), (5,)), "note": JSONField(),
        "blob": BytesField(), "target": IntField(), "picture": RGBImageField(write_mode=mode, jpeg_quality=95),
    }
    writer = DatasetWriter(f"{sys.argv[1]}/{name}.beton", fields, page_size=1 << 22, num_workers=2)
    writer.from_indexed_dataset(Rows(name == "varied"), chunksize=4)
"""


@pytest.fixture(scope="module")
def theirs(tmp_path_factory):
    """A folder of .beton files by FFCV's own writer, and their pixels."""
    folder = tmp_path_factory.mktemp("theirs")
    pixels = np.stack([photo(i) for i in range(40)])
    np.save(folder / "pixels.npy", pixels)
    subprocess.run([sys.executable, "-c", FFCV_WRITES, folder], check=True, capture_output=True, timeout=120)
    return folder, pixels


@needs_ffcv
@pytest.mark.parametrize("name", ["raw", "jpg", "varied"])
def test_we_read_what_ffcv_writes(theirs, name):
    folder, pixels = theirs
    file = Beton(folder / f"{name}.beton")
    assert file.fields == {"weight": 0, "vector": 4, "note": 5, "blob": 3, "target": 1, "picture": 2}
    assert file.image_field == "picture"
    assert file.labels.tolist() == [i % 7 for i in range(40)]
    assert file.shape == (None if name == "varied" else (64, 64))
    for row in (0, 7, 39):
        wanted = pixels[row][: 64 - row if name == "varied" else 64].astype(int)
        difference = np.abs(file.image(row) - wanted)
        assert difference.mean() < 8 if name == "jpg" else difference.max() == 0


@needs_ffcv
def test_ffcvs_files_are_used_as_they_are_or_packed_again(theirs, tmp_path):
    folder, pixels = theirs
    config = {"cache": tmp_path / "cache"}
    equal = Packed.Config(root=folder / "raw.beton", **config)
    stores = open_stores(Choice(name="beton", options=equal), None, 0, log=lambda text: None)
    assert stores.pretrain.path == folder / "raw.beton"
    np.testing.assert_array_equal(stores.pretrain.read(range(40)), pixels)

    said = []
    varied = Packed.Config(root=folder / "varied.beton", image_size=32, **config)
    stores = open_stores(Choice(name="beton", options=varied), None, 0, log=said.append)
    assert len(said) == 1
    assert stores.pretrain.path.parent == tmp_path / "cache"
    assert stores.pretrain.size == 32
    assert stores.pretrain.labels.tolist() == [i % 7 for i in range(40)]


def test_a_custom_field_is_refused_in_words(tmp_path):
    path = tmp_path / "a.beton"
    pack(images(4), path, size=64)
    content = bytearray(path.read_bytes())
    content[24] = 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="field 'image' of a custom type"):
        Beton(path)


def test_a_store_and_its_subset(tmp_path):
    source = images(30)
    store = pack(source, tmp_path / "a.beton", size=64)
    assert (len(store), store.size, store.classes) == (30, 64, ("a", "b", "c"))
    part = store.subset([5, 2, 2]).subset([1, 0])
    assert part.labels.tolist() == [2, 2]
    assert part.names == ["image 2", "image 5"]
    np.testing.assert_array_equal(part.read([1, 0]), np.stack([photo(5), photo(2)]))
    assert len(store.names) == 30


def test_an_unlabelled_store_has_no_labels(tmp_path):
    store = pack(images(5, labels=False), tmp_path / "a.beton", size=64)
    assert store.labels is None
    assert store.classes == ()


def test_a_store_without_its_neighbour_numbers_the_classes(tmp_path):
    store = pack(images(6), tmp_path / "a.beton", size=64)
    (tmp_path / "a.beton.json").unlink()
    bare = Store(store.path)
    assert (bare.classes, bare.names, bare.skipped) == (("0", "1", "2"), [], [])


def test_an_open_store_holds_no_names(tmp_path):
    """56 bytes an image: 24 of the file's own table, 8 each of place, length, label and row; no hundred of a name."""
    count, name = 20_000, "class/a photograph with a long name {:06d}.jpg".format
    path = write(tmp_path / "a.beton", [Record(RAW, 1, 1, b"rgb", k % 3) for k in range(count)])
    names = [name(k) for k in range(count)]
    (tmp_path / "a.beton.json").write_text(json.dumps({"classes": ["a", "b", "c"], "names": names}))
    Store(path)
    tracemalloc.start()
    try:
        store = Store(path)
        gc.collect()
        held, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most > 100 * count, "the names must outweigh what is allowed"
    assert held < 64 * count
    assert store.subset([7, 5]).names == [name(7), name(5)]


@pytest.mark.parametrize(
    "other",
    [
        lambda: images(30),
        lambda: images(20, labels=False),
        lambda: ArrayImages(lambda: (np.stack([photo(k, 64, 64) for k in range(9, 29)]), np.arange(20) % 3), "other"),
    ],
    ids=["count", "labels", "pixels"],
)
@pytest.mark.parametrize("mode", ["raw", "jpeg"])
def test_a_neighbour_that_tells_of_other_images_is_named(tmp_path, other, mode):
    pack(images(20), tmp_path / "a.beton", size=64, mode=mode)
    pack(other(), tmp_path / "b.beton", size=64, mode=mode)
    (tmp_path / "b.beton.json").replace(tmp_path / "a.beton.json")
    with pytest.raises(UserError, match=r"a\.beton\.json describes other images than those of a\.beton; delete it"):
        Store(tmp_path / "a.beton")


def test_a_neighbour_without_a_mark_is_known_by_its_count(tmp_path):
    store, file = pack(images(6), tmp_path / "a.beton", size=64), tmp_path / "a.beton.json"
    about = json.loads(file.read_text())
    del about["mark"]
    file.write_text(json.dumps(about))
    assert Store(store.path).classes == ("a", "b", "c")
    file.write_text(json.dumps(about | {"names": about["names"][1:]}))
    with pytest.raises(UserError, match="describes other images"):
        Store(store.path)


def test_names_that_are_damaged_since_are_named(tmp_path):
    store = pack(images(6), tmp_path / "a.beton", size=64)
    (tmp_path / "a.beton.json").write_text("{")
    with pytest.raises(UserError, match=r"a\.beton\.json is damaged"):
        _ = store.names


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_neighbour_is_named(tmp_path, text):
    pack(images(3), tmp_path / "a.beton", size=64)
    (tmp_path / "a.beton.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.beton\.json is damaged"):
        Store(tmp_path / "a.beton")
