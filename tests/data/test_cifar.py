"""CIFAR-10 and CIFAR-100: from files, from archives, downloaded."""

import hashlib
import io
import lzma
import tarfile
import threading
import tracemalloc
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
from helpers.data_sources import cifar10_files, cifar_records, mistakes, source, write_all

from sslkit.data import CIFAR10, CIFAR100
from sslkit.data.sources import cifar
from sslkit.errors import UserError


@pytest.mark.parametrize("inside", [".", "cifar-10-batches-bin"])
@pytest.mark.parametrize("compressed", [False, True])
def test_cifar10_from_its_binary_files(tmp_path, inside, compressed):
    files, pixels, labels = cifar10_files()
    if compressed:
        files = {(n + ".xz" if n.endswith("bin") else n): lzma.compress(c) for n, c in files.items()}
        files["batches.meta.txt"] = lzma.decompress(files["batches.meta.txt"])
    write_all(tmp_path / inside, files)
    assert CIFAR10.claims(tmp_path)
    assert mistakes(CIFAR10, root=tmp_path) == []
    cifar = source(CIFAR10, root=tmp_path)
    assert cifar.count() == (None if compressed else 20)
    train = cifar.images("pretrain")
    assert len(train) == 20
    np.testing.assert_array_equal(np.stack([train.load(i) for i in range(20)]), pixels)
    assert train.labels.tolist() == labels.tolist()
    assert train.classes == tuple(f"name{i}" for i in range(10))
    assert len(cifar.images("test")) == 3
    assert cifar.image_size() == 32


def test_cifar100_takes_the_fine_labels(tmp_path):
    content, pixels, labels = cifar_records(6, 2, 100, 0)
    write_all(tmp_path, {"train.bin": content, "test.bin": content})
    cifar = source(CIFAR100, root=tmp_path)
    assert CIFAR100.claims(tmp_path)
    assert not CIFAR10.claims(tmp_path)
    assert cifar.images("train").labels.tolist() == labels.tolist()
    np.testing.assert_array_equal(cifar.images("train").load(2), pixels[2])
    assert len(cifar.images("train").classes) == 100


def test_cifar_without_test_images_has_no_test_role(tmp_path):
    files = cifar10_files()[0]
    del files["test_batch.bin"]
    write_all(tmp_path, files)
    assert source(CIFAR10, root=tmp_path).images("test") is None


def test_cifars_mistakes_are_named(tmp_path):
    files = cifar10_files()[0]
    del files["data_batch_3.bin"]
    write_all(tmp_path, files)
    assert "lacks data_batch_3.bin" in mistakes(CIFAR10, root=tmp_path)[0]
    with pytest.raises(UserError, match="does not hold all of"):
        source(CIFAR10, root=tmp_path).images("train")
    write_all(tmp_path, {"data_batch_3.bin": b"\0" * 3000})
    with pytest.raises(UserError, match=r"data_batch_3\.bin is damaged"):
        len(source(CIFAR10, root=tmp_path).images("train"))
    write_all(tmp_path, {"data_batch_3.bin": b"\x63" * 3073})
    with pytest.raises(UserError, match="a label is 99"):
        len(source(CIFAR10, root=tmp_path).images("train"))
    (tmp_path / "data_batch_3.bin").unlink()
    write_all(tmp_path, {"data_batch_3.bin.xz": b"no xz"})
    with pytest.raises(UserError, match=r"data_batch_3\.bin\.xz cannot be read"):
        len(source(CIFAR10, root=tmp_path).images("train"))


def archive(files, folder="cifar-10-batches-bin"):
    """A .tar.gz of the official form, with members that must not be believed."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
        evil = tarfile.TarInfo("../../evil.bin")
        evil.size = 4
        tar.addfile(evil, io.BytesIO(b"evil"))
        link = tarfile.TarInfo("batches.meta.txt.bin")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    return buffer.getvalue()


class Serves(BaseHTTPRequestHandler):
    def __init__(self, content, asked, *rest):
        self.content, self.asked = content, asked
        super().__init__(*rest)

    def do_GET(self):
        self.asked.append(self.path)
        found = self.path == "/cifar.tar.gz"
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(self.content) if found else 0))
        self.end_headers()
        self.wfile.write(self.content if found else b"")

    def log_message(self, *words):
        pass


@pytest.fixture
def server():
    """serve(content) -> (address, list of the paths asked for)."""
    servers = []

    def serve(content):
        asked = []
        servers.append(HTTPServer(("127.0.0.1", 0), partial(Serves, content, asked)))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}", asked

    yield serve
    for one in servers:
        one.shutdown()
        one.server_close()


def test_cifar_is_downloaded_once_checked_and_unpacked(tmp_path, server):
    files, pixels, _ = cifar10_files()
    content = archive(files)
    address, asked = server(content)
    options = {"url": f"{address}/cifar.tar.gz", "md5": hashlib.md5(content).hexdigest(), "cache": tmp_path / "cache"}
    cifar = source(CIFAR10, **options)
    assert cifar.count() is None
    np.testing.assert_array_equal(cifar.images("train").load(19), pixels[19])
    assert len(source(CIFAR10, **options).images("test")) == 3
    assert asked == ["/cifar.tar.gz"]
    assert source(CIFAR10, **options).count() == 20
    home = tmp_path / "cache" / "downloads" / "cifar-10-batches-bin"
    assert sorted(p.name for p in home.iterdir()) == sorted(files)
    assert not list(tmp_path.rglob("evil*"))


def test_a_download_that_fails_says_what_to_do_and_leaves_nothing(tmp_path, server):
    content = archive(cifar10_files()[0])
    address, _ = server(content)
    good = hashlib.md5(content).hexdigest()
    for url, md5, message in [
        (f"{address}/cifar.tar.gz", "0" * 32, r"does not match.*data\.root="),
        (f"{address}/nothing.tar.gz", good, r"404.*data\.root="),
        ("http://127.0.0.1:9/cifar.tar.gz", good, r"cannot be downloaded.*data\.root="),
        ("nonsense", good, "cannot be downloaded"),
    ]:
        with pytest.raises(UserError, match=message):
            source(CIFAR10, url=url, md5=md5, cache=tmp_path / "cache").images("train")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() or "tmp" in p.name]


def test_an_archive_that_is_none_is_named(tmp_path, server):
    address, _ = server(b"this is no archive")
    md5 = hashlib.md5(b"this is no archive").hexdigest()
    with pytest.raises(UserError, match="cannot be downloaded"):
        source(CIFAR10, url=f"{address}/cifar.tar.gz", md5=md5, cache=tmp_path).images("train")


def test_the_real_cifar10(shared, tmp_path):
    """One real batch under all five names: decompressing five would take too long."""
    real = shared / "cifar-10-batches-bin"
    if not (real / "data_batch_1.bin.xz").is_file():
        pytest.skip("needs the real CIFAR-10")
    assert CIFAR10.claims(real)
    for k in range(1, 6):
        (tmp_path / f"data_batch_{k}.bin.xz").symlink_to(real / "data_batch_1.bin.xz")
    (tmp_path / "batches.meta.txt").symlink_to(real / "batches.meta.txt")

    class OneBatch(CIFAR10):
        train_files = CIFAR10.train_files[:1]

    images = source(OneBatch, root=tmp_path).images("pretrain")
    assert len(images) == 10_000
    assert np.bincount(images.labels, minlength=10).min() > 900
    # CIFAR-10's well-known channel means, and sky and sea behind the right labels.
    means = np.stack([images.load(i).mean((0, 1)) for i in range(0, 10_000, 10)]) / 255
    np.testing.assert_allclose(means.mean(0), [0.491, 0.482, 0.447], atol=0.02)
    bluer = {c: (means[:, 2] - means[:, 0])[images.labels[::10] == k].mean() for k, c in enumerate(images.classes)}
    assert {*sorted(bluer, key=bluer.get)[-2:]} == {"airplane", "ship"}


def xz_of_zeros(count):
    """Compress zeros without holding them."""
    packer = lzma.LZMACompressor()
    block = bytes(1 << 20)
    return b"".join([packer.compress(block) for _ in range(count >> 20)] + [packer.flush()])


def test_a_bomb_is_refused_before_it_fills_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "MOST_RECORDS", 100)
    write_all(tmp_path, cifar10_files()[0])
    (tmp_path / "data_batch_3.bin").unlink()
    write_all(tmp_path, {"data_batch_3.bin.xz": xz_of_zeros(32 << 20)})
    images = source(CIFAR10, root=tmp_path).images("train")
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"data_batch_3\.bin\.xz cannot be read \(it holds more than"):
            len(images)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 16 << 20


def test_files_of_several_streams_are_read_whole(tmp_path):
    files, pixels, _ = cifar10_files()
    content = files.pop("data_batch_2.bin")
    half = len(content) // 2
    streams = lzma.compress(content[:half]) + bytes(4) + lzma.compress(content[half:])
    write_all(tmp_path, files | {"data_batch_2.bin.xz": streams})
    images = source(CIFAR10, root=tmp_path).images("train")
    np.testing.assert_array_equal(np.stack([images.load(k) for k in range(len(images))]), pixels)


def test_a_file_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    write_all(tmp_path, cifar10_files()[0])
    with open(tmp_path / "data_batch_1.bin", "r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(UserError, match="it holds more than"):
        len(source(CIFAR10, root=tmp_path).images("train"))
