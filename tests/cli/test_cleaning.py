"""`sslkit clean` and what `sslkit doctor` reports of disks."""

import os

import pytest

from sslkit.config.resolve import resolve
from sslkit.runs.checkpoint import Checkpoint
from sslkit.runs.run import Run

DEAD = ".evaluations.jsonl.4194303@{}.0a1b2c3d.tmp"


@pytest.fixture
def run(tmp_path):
    run = Run.create(resolve(["method=simclr", f"out={tmp_path / 'runs/r'}", "keep_checkpoints=9"]))
    for epoch in (1, 2, 3):
        run.save_checkpoint(Checkpoint(epoch, {}, {}, {}), f"epoch-{epoch:04d}")
    return run


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with a pack used now, one 40 days ago, features and a download."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SSLKIT_CACHE", str(folder))
    for name in ("new[1].beton", "new[1].beton.json", "old.beton", "old.beton.json", "features/f", "downloads/d"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x" * 1000)
    long_ago = (folder / "old.beton").stat().st_mtime - 40 * 24 * 3600
    os.utime(folder / "old.beton", (long_ago, long_ago))
    return folder


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_dry_run_lists_and_removes_nothing(run, cache, sslkit, tmp_path):
    before = files(tmp_path)
    done = sslkit("clean", str(run.path), "--cache", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "epoch-0001: an older checkpoint" in done.stdout
    assert "2 kB  " in done.stdout
    assert "old.beton: not used for 40 days" in done.stdout
    assert "would be free" in done.stdout
    assert files(tmp_path) == before


def test_old_checkpoints_and_leftovers_of_the_dead_are_removed(run, sslkit):
    own = next(p for p in [run.path / f".a.{os.getpid()}@x.0a1b2c3d.tmp"])
    from sslkit.machine import atomic

    dead = run.path / DEAD.format(atomic._host())
    for path in (own, dead):
        path.touch()
    assert sslkit("clean", str(run.path), "--keep", "2").returncode == 0
    assert [path.name for path in run.checkpoints] == ["epoch-0002", "epoch-0003"]
    assert (own.exists(), dead.exists()) == (True, False)


def test_a_run_in_use_is_left_alone(run, sslkit):
    held = Run.open(run.path).place.take()
    done = sslkit("clean", str(run.path))
    held.release()
    assert (done.returncode, "is in use by process" in done.stderr) == (2, True)
    assert len(run.checkpoints) == 3


def test_the_cache_loses_what_is_unused_and_then_what_is_too_much(cache, sslkit):
    assert sslkit("clean", "--cache").returncode == 0
    assert files(cache) == ["downloads/d", "features/f", "new[1].beton", "new[1].beton.json"]
    assert sslkit("clean", "--cache", "--max-gb", "0").returncode == 0
    assert files(cache) == ["downloads/d"]


def test_nothing_named_is_a_mistake(sslkit, tmp_path):
    assert (sslkit("clean").returncode, sslkit("clean", str(tmp_path)).returncode) == (2, 2)


def test_doctor_shows_what_lies_where(run, cache, sslkit, tmp_path):
    text = sslkit("doctor").stdout
    assert "packed images: 2 files, 2 kB" in text
    assert "1 runs" in text
    assert "of it checkpoints" in text
