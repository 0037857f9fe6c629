"""Loaders: one order, three kinds, the same batches."""

import functools
import os
import subprocess
import sys
from importlib.util import find_spec
from itertools import chain, islice, pairwise

import numpy as np
import pytest
import torch
from helpers.process_memory import private_bytes

from sslkit.data import ArrayImages, Shapes, in_order, make_loader, pack
from sslkit.data.loaders import base
from sslkit.data.loaders import make as module
from sslkit.errors import UserError

needs_ffcv = pytest.mark.skipif(find_spec("ffcv") is None, reason="FFCV is not installed")
KINDS = ["resident", "torch", pytest.param("ffcv", marks=needs_ffcv)]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """A raw and a JPEG store of the same 90 shapes."""
    folder = tmp_path_factory.mktemp("stores")
    made = {}
    for name, size in (("raw", 40), ("jpeg", 112)):
        images = Shapes(Shapes.Config(n_train=90, image_size=40)).images("pretrain")
        made[name] = pack(images, folder / f"{name}.beton", size=size)
    made["subset"] = made["jpeg"].subset(np.arange(89, -1, -2))
    return made


def loader(store, kind="resident", batch_size=16, seed=7, **more):
    return make_loader(store, batch_size=batch_size, seed=seed, device="cpu", kind=kind, workers=2, **more)


@functools.cache
def shared_loader(store, kind, batch_size=16):
    """FFCV compiles for every loader, so tests that only read share theirs."""
    return loader(store, kind, batch_size)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other))


@pytest.mark.parametrize("name", ["raw", "jpeg", "subset"])
def test_every_kind_gives_identical_batches(stores, name):
    store = stores[name]
    kinds = ["resident", "torch"] + ["ffcv"] * (find_spec("ffcv") is not None)
    made = {kind: shared_loader(store, kind) for kind in kinds}
    for epoch in (0, 3):
        wanted = list(made["resident"].epoch(epoch))
        assert len(wanted) == len(store) // 16 == made["torch"].steps_per_epoch
        for kind in kinds[1:]:
            batches = list(made[kind].epoch(epoch))
            assert len(batches) == len(wanted)
            assert all(map(same, batches, wanted)), kind


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_holds_what_the_store_holds(stores, kind):
    store = stores["subset"]
    batches = list(shared_loader(store, kind).epoch(2))
    for batch in batches:
        assert batch.images.shape == (16, 3, 112, 112)
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.indices.dtype == torch.int64
        wanted = store.read(batch.indices.numpy())
        np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), wanted)
        assert batch.labels.tolist() == store.labels[batch.indices.numpy()].tolist()
    seen = torch.cat([b.indices for b in batches]).tolist()
    assert len(set(seen)) == len(seen) == 32
    assert set(seen) <= set(range(45))


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_not_overwritten_by_later_ones(stores, kind):
    """FFCV hands out a ring of five buffers."""
    store = stores["raw"]
    batches = list(shared_loader(store, kind, batch_size=8).epoch(0))
    assert len(batches) == 11
    for batch in batches:
        wanted = store.read(batch.indices.numpy())
        np.testing.assert_array_equal(batch.images.permute(0, 2, 3, 1).numpy(), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_starting_at_a_step_equals_skipping_the_steps_before(stores, kind):
    made = shared_loader(stores["raw"], kind, batch_size=8)
    whole = list(made.epoch(4))
    for start in (1, 7, 10, 11):
        rest = list(made.epoch(4, start))
        assert len(rest) == len(whole) - start
        assert all(map(same, rest, whole[start:]))


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_may_be_left_at_any_step(stores, kind):
    made = shared_loader(stores["raw"], kind, batch_size=8)
    whole = list(made.epoch(1))
    for steps in (0, 1, 4, 8, 10, 11):
        epoch = made.epoch(1)
        assert len(list(islice(epoch, steps))) == steps
        epoch.close()
    again = list(made.epoch(1))
    assert len(again) == len(whole) == 11
    assert all(map(same, again, whole))


def order(store, seed, epoch, **more):
    return torch.cat([b.indices for b in loader(store, seed=seed, batch_size=10, **more).epoch(epoch)]).tolist()


def test_the_order_is_a_function_of_seed_and_epoch(stores):
    store = stores["raw"]
    first = order(store, 0, 0)
    assert first == order(store, 0, 0)
    assert sorted(first) == list(range(90))
    orders = [tuple(order(store, seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len(set(orders)) == 6
    # A step, not a drift: neighbours in the store are no neighbours in the order.
    assert sum(b - a == 1 for a, b in pairwise(first)) < 10


def test_what_one_epoch_leaves_out_another_takes(stores):
    store = stores["raw"].subset(range(25))
    seen = {i for epoch in range(12) for i in order(store, 0, epoch)}
    assert seen == set(range(25))


def test_ranks_share_an_epoch_without_overlap(stores):
    store = stores["raw"]
    parts = [order(store, 3, 1, rank=rank, world=3) for rank in range(3)]
    assert [len(p) for p in parts] == [30, 30, 30]
    assert sorted(chain.from_iterable(parts)) == list(range(90))
    whole = [b.indices.tolist() for b in loader(store, seed=3, batch_size=30).epoch(1)]
    # Together they see the very batches that one process of the same total size sees.
    together = [[i for p in parts for i in p[10 * step : 10 * step + 10]] for step in range(3)]
    assert together == whole


@pytest.mark.parametrize("kind", KINDS)
def test_torch_keeps_its_threads(stores, kind):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 3)
        made = loader(stores["jpeg"], kind, batch_size=8)
        assert torch.get_num_threads() == before + 3
        for _ in made.epoch(0):
            assert torch.get_num_threads() == before + 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_memory_does_not_grow_with_the_data(tmp_path, kind):
    """A million images that stand on 200: an epoch holds a few numbers of 8 bytes each, and no pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (200, 16, 16, 3), np.uint8)
    few = pack(ArrayImages(lambda: (pixels, np.arange(200)), ""), tmp_path / "a.beton", size=16)
    next(loader(few, kind, batch_size=100).epoch(0))
    many = few.subset(np.arange(1_000_000) % 200)
    before, most, seen = private_bytes(), 0, 0
    for batch in islice(loader(many, kind, batch_size=1024).epoch(0), 400):
        seen += len(batch.indices)
        most = max(most, private_bytes() - before)
    assert seen * 16 * 16 * 3 > 300e6, "the pixels must outweigh what is allowed"
    assert most < 8 * 8 * len(many)


@pytest.mark.parametrize("kind", KINDS)
def test_row_numbers_are_sent_in_pieces(stores, kind, monkeypatch):
    made = shared_loader(stores["raw"], kind, batch_size=8)
    whole = list(made.epoch(5))
    monkeypatch.setattr(base, "STEPS_PER_TRANSFER", 3)
    pieces = list(made.epoch(5))
    assert len(pieces) == len(whole) == 11
    assert all(map(same, pieces, whole))


def test_in_order_gives_every_image_once(stores):
    for store in stores.values():
        batches = list(in_order(store, batch_size=7, device="cpu"))
        assert torch.cat([b.indices for b in batches]).tolist() == list(range(len(store)))
        pixels = torch.cat([b.images for b in batches]).permute(0, 2, 3, 1).numpy()
        np.testing.assert_array_equal(pixels, store.read(range(len(store))))
        assert torch.cat([b.labels for b in batches]).tolist() == store.labels.tolist()
        assert len(batches[-1].images) == (len(store) % 7 or 7)
    assert len(list(in_order(stores["raw"], batch_size=90, device="cpu"))) == 1
    assert len(list(in_order(stores["raw"], batch_size=1000, device="cpu"))) == 1


def test_unlabelled_batches_have_no_labels(tmp_path):
    pixels = np.zeros((20, 16, 16, 3), np.uint8)
    store = pack(ArrayImages(lambda: (pixels, None), ""), tmp_path / "a.beton", size=16)
    assert next(loader(store).epoch(0)).labels is None
    assert next(in_order(store, batch_size=4, device="cpu")).labels is None


def test_auto_takes_the_device_while_a_quarter_of_its_memory_is_enough(stores, monkeypatch):
    needed, said = 90 * 40 * 40 * 3, []
    monkeypatch.setattr(module, "free_memory", lambda device: 4 * needed)
    made = loader(stores["raw"], "auto", log=said.append)
    assert made.kind == "resident"
    assert "fit in a quarter" in made.why
    monkeypatch.setattr(module, "free_memory", lambda device: 4 * needed - 1)
    made = loader(stores["raw"], "auto", log=said.append)
    assert made.kind == ("ffcv" if find_spec("ffcv") else "torch")
    assert "more than a quarter" in made.why
    if made.kind == "ffcv":
        assert said == []


WITHOUT_FFCV = """
import sys
from pathlib import Path
sys.modules["ffcv"] = None
import sslkit.data.loaders.make as module
from sslkit.data import Store, make_loader
from sslkit.errors import UserError

module.free_memory = lambda device: 1 << 20
store, said = Store(Path(sys.argv[1])), []
loader = make_loader(store, batch_size=8, seed=0, device="cpu", log=said.append)
assert loader.kind == "torch", loader.kind
assert len(list(loader.epoch(0))) == 11
(line,) = said
assert "\\n" not in line and "FFCV" in line and "pip install" in line, line
try:
    make_loader(store, batch_size=8, seed=0, device="cpu", kind="ffcv")
except UserError as error:
    assert "pip install" in str(error) and "loader=auto" in str(error)
else:
    raise SystemExit("loader=ffcv went on without FFCV")
"""


def test_without_ffcv_one_line_says_so_and_how_to_mend_it(stores):
    words = [sys.executable, "-c", WITHOUT_FFCV, str(stores["jpeg"].path)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_resident_that_does_not_fit_is_refused(stores, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda device: 1000)
    with pytest.raises(UserError, match="loader=resident: the images take 0 MiB"):
        loader(stores["raw"], "resident")


@pytest.mark.parametrize(("batch_size", "world"), [(91, 1), (31, 3)])
def test_a_batch_larger_than_the_data_is_refused(stores, batch_size, world):
    with pytest.raises(UserError, match=f"batch_size={batch_size}.* is more than the 90 images"):
        loader(stores["raw"], batch_size=batch_size, world=world)


@needs_ffcv
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_ffcv_dying_in_its_thread_is_an_error_and_no_hang(stores):
    made = loader(stores["raw"], "ffcv")
    made._stream.code = (None, None)
    with pytest.raises(RuntimeError, match="decoding thread has died"):
        next(made.epoch(0))


@pytest.mark.parametrize("world", [1, 2])
def test_a_last_incomplete_batch_is_filled_up_so_that_no_image_is_left_out(stores, world):
    of_ranks = [
        loader(stores["raw"], batch_size=16, drop_last=False, rank=rank, world=world).order.batches(epoch=3)
        for rank in range(world)
    ]
    assert [len(rows) for rows in of_ranks] == [-(-90 // (16 * world))] * world
    in_turn = np.stack(of_ranks, axis=1).reshape(-1)
    assert sorted(in_turn[:90]) == list(range(90))
    assert list(in_turn[90:]) == list(in_turn[: len(in_turn) - 90])


@pytest.mark.parametrize("mode", ["raw", "jpeg"])
def test_a_file_that_is_cut_while_it_streams_is_named_and_kills_nothing(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 112, 112, 3), np.uint8)
    store = pack(ArrayImages(lambda: (pixels, None), "noise"), tmp_path / "a.beton", size=112, mode=mode)
    batches = loader(store, "torch", 8).epoch(0)
    next(batches)
    os.truncate(store.path, int(store.beton._pointers.min()))
    with pytest.raises(UserError, match=r"a\.beton has been cut short while it was open"):
        list(batches)
