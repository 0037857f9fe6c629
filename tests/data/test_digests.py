"""Digests of files: content decides, and an index spares unchanged files another reading."""

import os
import time

import numpy as np
import pytest

from sslkit.data import digests
from sslkit.data.digests import file_digests


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three files that have not changed for long enough to be trusted, in a folder beside the cache."""
    monkeypatch.setattr(digests, "SETTLED", 0.0)
    folder = tmp_path / "files"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_text(name * 10)
    time.sleep(0.02)
    return folder


@pytest.fixture
def read(monkeypatch):
    """Names of the files that are read."""
    names = []
    original = digests.read_digest
    monkeypatch.setattr(digests, "read_digest", lambda path: names.append(path.name) or original(path))
    return names


def test_unchanged_files_are_read_once(files, tmp_path, read):
    first = file_digests(files, ["a", "b", "c"], tmp_path / "cache")
    again = file_digests(files, ["c", "a"], tmp_path / "cache")
    assert sorted(read) == ["a", "a", "b", "c", "c"], "few files have an index of their own"
    read.clear()
    np.testing.assert_array_equal(file_digests(files, ["a", "b", "c"], tmp_path / "cache"), first)
    np.testing.assert_array_equal(again, first[[2, 0]])
    assert read == []


def test_a_file_of_the_same_name_size_and_time_is_read_again(files, tmp_path, read):
    before = file_digests(files, ["a", "b", "c"], tmp_path / "cache")
    read.clear()
    times = (files / "b").stat()
    (files / "b").write_text("B" * 10)
    os.utime(files / "b", ns=(times.st_atime_ns, times.st_mtime_ns))
    after = file_digests(files, ["a", "b", "c"], tmp_path / "cache")
    assert read == ["b"]
    assert (before != after).any(1).tolist() == [False, True, False]


def test_a_file_that_has_only_just_changed_is_not_trusted(files, tmp_path, read, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED", 60.0)
    for _ in range(2):
        file_digests(files, ["a"], tmp_path / "cache")
    assert read == ["a", "a"]


@pytest.mark.parametrize("harm", [b"", b"PK\x03\x04 no zip", "cut", "flip"])
def test_a_damaged_index_is_thrown_away(files, tmp_path, harm):
    wanted = file_digests(files, ["a", "b", "c"], tmp_path / "cache")
    (index,) = (tmp_path / "cache" / "digests").glob("*.npz")
    content = index.read_bytes()
    flipped = content[:200] + bytes([content[200] ^ 255]) + content[201:]
    index.write_bytes({"cut": content[:-40], "flip": flipped}.get(harm, harm))
    np.testing.assert_array_equal(file_digests(files, ["a", "b", "c"], tmp_path / "cache"), wanted)
    assert index.read_bytes() != harm


def test_an_index_with_any_bit_of_its_directory_flipped_only_costs_another_reading(files, tmp_path):
    wanted = file_digests(files, ["a", "b", "c"], tmp_path / "cache")
    (index,) = (tmp_path / "cache" / "digests").glob("*.npz")
    content = index.read_bytes()
    for at in range(content.index(b"PK\x01\x02"), len(content)):
        index.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        np.testing.assert_array_equal(file_digests(files, ["a", "b", "c"], tmp_path / "cache"), wanted)


def test_an_unreadable_file_has_no_digest_and_is_not_kept(files, tmp_path, read):
    found = file_digests(files, ["a", "nothing"], tmp_path / "cache")
    assert found.any(1).tolist() == [True, False]
    (files / "nothing").write_text("now there")
    assert file_digests(files, ["a", "nothing"], tmp_path / "cache").any(1).all()


def test_a_cache_that_cannot_be_written_only_costs_another_reading(files, tmp_path):
    (tmp_path / "file").touch()
    assert file_digests(files, ["a"], tmp_path / "file" / "cache").any()


def test_many_files_are_read_in_threads_in_their_order(tmp_path):
    names = [f"{k:03d}" for k in range(200)]
    for name in names:
        (tmp_path / name).write_text(name)
    alone = np.concatenate([file_digests(tmp_path, [name], tmp_path / "cache") for name in names[::50]])
    np.testing.assert_array_equal(file_digests(tmp_path, names, tmp_path / "cache")[::50], alone)
