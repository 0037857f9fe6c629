"""The folder of a run: claimed by one process, held while it trains, and free again however that ends."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.paths import PYTHONPATH

import sslkit as library
from sslkit.config.resolve import resolve
from sslkit.errors import UserError
from sslkit.machine import atomic
from sslkit.runs import place
from sslkit.runs.display import Display
from sslkit.runs.run import Run
from sslkit.training import engine

HOLD = "import sys; from pathlib import Path; from sslkit.runs.place import Place; "
HOLD += "p = Place(Path(sys.argv[1])).take(); print('held', flush=True); sys.stdin.read()"


def another(code, *words, cwd):
    """Another process, which has said its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        cwd=cwd, env={**os.environ, "PYTHONPATH": PYTHONPATH}, stdin=-1, stdout=-1, text=True,
    )  # fmt: skip
    process.stdout.readline()
    return process


@pytest.fixture
def held(tmp_path):
    """A run that another process is training."""
    run = Run.create(resolve(["method=simclr", f"out={tmp_path / 'run'}"]))
    with another(HOLD, run.path, cwd=tmp_path) as process:
        yield run, process
        process.kill()


def test_processes_that_start_together_get_a_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with multiprocessing.get_context("fork").Pool(4) as pool:
        folders = pool.map(made, range(12), chunksize=1)
    assert len(set(folders)) == 12
    assert {str(path) for path in Path("runs").iterdir()} == set(folders)


def made(_: int) -> str:
    return str(Run.create(resolve(["method=simclr"])).path)


def test_a_run_in_use_is_refused_and_its_process_named(held, sslkit):
    run, process = held
    for words in (["resume", str(run.path)], ["run", "method=simclr", f"out={run.path}"]):
        refused = sslkit(*words)
        assert refused.returncode == 2
        assert f"{run.path} " in refused.stderr
    with pytest.raises(UserError, match=rf"is in use by process {process.pid} on \S+; wait until that has ended"):
        engine.resume(run.path, Display(quiet=True))


def test_a_kill_frees_the_run(held):
    run, process = held
    process.send_signal(signal.SIGKILL)
    process.wait()
    run.place.take()
    run.place.release()


def test_out_is_refused_while_another_makes_a_run_there(tmp_path):
    (tmp_path / "run").mkdir()
    config = resolve(["method=simclr", f"out={tmp_path / 'run'}"]).config
    with another(HOLD, tmp_path / "run", cwd=tmp_path) as process:
        with pytest.raises(UserError, match=f"in use by process {process.pid}"):
            place.claim(config)
        process.kill()


def test_what_a_kill_left_while_the_folder_was_made_is_usable_and_taken_away(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (place.LOCK, ".config.yaml.1@abc.0a1b2c3d.tmp"):
        (folder / name).touch()
    config = resolve(["method=simclr", f"out={folder}"]).config
    assert place.problem(config) is None
    place.claim(config).discard()
    assert folder.is_dir(), "it was there before"


def test_a_run_without_a_name_that_writes_nothing_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError):
        library.run(method="simclr", data={"name": "shapes", "n_train": 40}, batch_size=32, accumulate=9, quiet=True)
    assert list(Path("runs").iterdir()) == []


def unusable(folder):
    (folder / "file").touch()
    (folder / "dangling").symlink_to(folder / "nothing")
    return {
        "file/x": "not a directory",
        "dangling": "a link to nothing",
        "file": "not a directory",
        "x" * 300: "file name too long",
        "/proc/x/y": "cannot be written",
    }


@pytest.mark.parametrize("number", range(5))
def test_an_out_that_cannot_be_made_is_told_before_images_are_packed(tmp_path, sslkit, number):
    name, words = list(unusable(tmp_path).items())[number]
    done = sslkit("run", "method=simclr", "data=shapes", "data.n_train=64", "batch_size=32", f"out={name}")
    assert done.returncode == 2
    assert words in done.stderr
    assert "out" in done.stderr
    assert "packing" not in done.stderr


def test_default_names_are_short_enough_and_keep_a_folder_s_version(tmp_path):
    def name(folder):
        (tmp_path / folder).mkdir()
        return next(place.default_paths(resolve(["method=simclr", f"data={tmp_path / folder}"]).config)).name

    assert name("photos.v2") == "simclr-shufflenetv2-photos.v2"
    assert len(name("x" * 250)) < 130
    assert len(name("猫" * 80).encode()) < 130


def test_a_run_sweeps_away_what_a_killed_one_left_in_its_folder(tmp_path):
    writer = another("print(1, flush=True); input()", cwd=tmp_path)
    with atomic.replacing(tmp_path / "run/config.yaml") as own:
        left = own.with_name(own.name.replace(f".{os.getpid()}@", f".{writer.pid}@"))
        own.touch()
    (tmp_path / "run/config.yaml").unlink()
    left.touch()
    writer.kill()
    writer.communicate()
    taken = place.claim(resolve(["method=simclr", f"out={tmp_path / 'run'}"]).config)
    assert os.listdir(tmp_path / "run") == [place.LOCK]
    taken.release()


def test_temporary_files_go_with_their_writer(tmp_path):
    with atomic.replacing(tmp_path / "a") as own:
        own.touch()
        writer = another("import sys; print(1, flush=True); sys.stdin.read()", cwd=tmp_path)
        other = own.with_name(own.name.replace(f".{os.getpid()}@", f".{writer.pid}@"))
        other.touch()
        atomic.recover(tmp_path)
        assert other.exists()
        writer.kill()
        writer.communicate()
        atomic.recover(tmp_path)
        assert (own.exists(), other.exists()) == (True, False)
