"""Writing whole or not at all: whatever fails or is killed, the old or the new content is there."""

import os
import shutil

import pytest

from sslkit.config.run import RunConfig
from sslkit.machine import atomic
from sslkit.runs.checkpoint import Checkpoint
from sslkit.runs.run import Run


def folder(path, text):
    path.mkdir()
    (path / "inside").write_text(text)


def replace(path, text):
    with atomic.replacing(path) as temporary:
        folder(temporary, text)


def content(path):
    return (path / "inside").read_text()


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs."""


STEPS = ["rename", "replace", "rmtree", "fsync"]


def stop(monkeypatch, step, after, how):
    """Let `step` fail, before or after its work; a kill lets nothing that is done to the disk work any more."""
    module = shutil if step == "rmtree" else os

    def gone(*words, **more):
        raise how("stopped")

    def stopping(*words, **more):
        if after:
            real(*words, **more)
        if how is Killed:
            for each in STEPS:
                monkeypatch.setattr(shutil if each == "rmtree" else os, each, gone)
        raise how("stopped")

    real = getattr(module, step)
    monkeypatch.setattr(module, step, stopping)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_folder(tmp_path, monkeypatch, step, after):
    path = tmp_path / "epoch-0005"
    folder(path, "old")
    with monkeypatch.context() as patch:
        stop(patch, step, after, Killed)
        with pytest.raises(Killed):
            replace(path, "new")
    if step == "replace" and not after:
        assert not path.exists(), "this is the moment without the name"
    atomic.recover(tmp_path)
    assert content(path) == ("new" if (step == "replace" and after) or step == "rmtree" else "old")
    replace(path, "newest")
    assert content(path) == "newest"
    assert not list(tmp_path.glob("*.old.tmp")), "nothing set aside is left"


@pytest.mark.parametrize("step", ["rename", "replace", "fsync"])
def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "epoch-0005"
    folder(path, "old")
    with monkeypatch.context() as patch:
        stop(patch, step, False, OSError)
        with pytest.raises(OSError, match="stopped"):
            replace(path, "new")
    assert content(path) == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-0005"]


def test_what_cannot_be_removed_is_no_failure_and_goes_later(tmp_path, monkeypatch):
    path = tmp_path / "epoch-0005"
    folder(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda folder, ignore_errors=False: None)
        replace(path, "new")
    assert content(path) == "new"
    assert len(list(tmp_path.iterdir())) == 2
    atomic.recover(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-0005"]


def test_two_writers_of_one_name_and_number_do_not_share_a_file(tmp_path):
    """As in two containers, whose processes count alike."""
    path = tmp_path / "a.txt"
    with atomic.replacing(path) as one, atomic.replacing(path) as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]


def test_only_remains_a_day_old_and_of_that_name_are_removed(tmp_path):
    with atomic.replacing(tmp_path / "a") as one, atomic.replacing(tmp_path / "b") as other:
        names = one.name, other.name
        one.touch()
        other.touch()
    old, foreign = (tmp_path / name for name in names)
    young = tmp_path / ".a.1.0a1b2c3d.tmp"
    folder(old, "half")
    for file in (foreign, young):
        file.touch()
    for file in (old, foreign):
        os.utime(file, (1, 1))
    atomic.recover(tmp_path, "a")
    assert (old.exists(), foreign.exists(), young.exists()) == (False, True, True)


def test_a_run_goes_on_from_a_checkpoint_that_a_kill_caught_between_its_names(tmp_path, monkeypatch):
    run = Run(tmp_path, RunConfig.model_construct(), {})
    for step in (1, 2):
        run.save_checkpoint(Checkpoint(step, {}, {}, {}), f"epoch-000{step}")
    with monkeypatch.context() as patch:
        stop(patch, "replace", False, Killed)
        with pytest.raises(Killed):
            run.save_checkpoint(Checkpoint(3, {}, {}, {}), "epoch-0002")
    assert [p.name for p in run.checkpoints] == ["epoch-0001"]
    found, complaints = run.newest_checkpoint()
    assert (found.step, complaints) == (2, [])
    assert [p.name for p in run.checkpoints] == ["epoch-0001", "epoch-0002"]
