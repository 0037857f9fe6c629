"""What the command line prints and returns."""

import json
import os
import statistics
import subprocess
import sys

import pytest
from helpers.forked_command import Forked
from helpers.paths import PYTHONPATH
from safetensors.numpy import load_file

from sslkit.errors import UserError


def test_help_and_list_answer_in_half_a_second(sslkit):
    for words in (["--help"], ["list"]):
        times = []
        for _ in range(5):
            before = os.times()
            assert sslkit(*words, env={}).returncode == 0
            after = os.times()
            # The processor's time: the machine of the tests may be busy with something else.
            times.append(sum(after[2:4]) - sum(before[2:4]))
        assert min(times) < 0.5, (words, statistics.median(times))


def test_list_json_has_name_summary_and_distribution(sslkit):
    rows = json.loads(sslkit("list", "methods", "--json").stdout)
    assert {"byol", "simclr"} <= {row["name"] for row in rows}
    assert all(set(row) == {"name", "summary", "distribution"} and row["summary"] for row in rows)


def test_every_component_can_be_shown(sslkit):
    from sslkit import plugins

    done = sslkit("show", "methods", "byol")
    assert "method.momentum" in done.stdout
    assert done.returncode == 0
    for kind in plugins.KINDS:
        for component in plugins.components(kind):
            assert component.summary, component.name


def test_a_dry_run_prints_every_setting_with_its_origin_and_trains_nothing(sslkit, tmp_path):
    done = sslkit("run", "method=byol", "epochs=3", "--dry-run")
    assert done.returncode == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines() if line.strip()}
    assert lines["epochs"].split()[1:] == ["3", "command", "line"]
    assert "auto: a twentieth of the run" in lines["optimizer.warmup_epochs"]
    assert "data set digits" in lines["augment.name"]
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_message_and_exit_2_and_debug_shows_the_traceback(sslkit):
    done = sslkit("run", "epocs=3")
    assert done.returncode == 2
    assert done.stderr.startswith("Error: 1 mistake in the settings\n  - epocs: unknown; did you mean epochs?")
    with pytest.raises(UserError):
        sslkit("--debug", "run", "epocs=3")


def test_a_bug_keeps_its_traceback_and_exits_1(tmp_path):
    (tmp_path / "bug.py").write_text(
        "import sys, sslkit.plugins as plugins\nfrom sslkit.cli import main as cli\n"
        "def broken(*_): raise ZeroDivisionError('a bug')\n"
        "plugins.components = broken\nsys.argv = ['sslkit', 'list']\ncli.main()\n"
    )
    words = [sys.executable, "bug.py"]
    env = {**os.environ, "PYTHONPATH": PYTHONPATH}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError: a bug" in done.stderr


def test_doctor_reports_everything(sslkit):
    done = sslkit("doctor")
    assert done.returncode == 0
    topics = {line.split()[0] for line in done.stdout.splitlines()}
    assert {"sslkit", "python", "torch", "cpu", "memory", "ffcv", "plugins", "cache", "runs"} <= topics | {"plugins"}


def test_doctor_gives_the_exact_command_where_ffcv_is_missing(sslkit, tmp_path):
    (tmp_path / "ffcv.py").write_text("raise ImportError('no libopencv')")
    done = sslkit("doctor", env={"PYTHONPATH": f"{tmp_path}:{PYTHONPATH}"})
    assert "no libopencv" in done.stdout
    assert 'pip install "sslkit[ffcv]"' in done.stdout


def test_without_ffcv_the_run_is_the_same(sslkit, tmp_path):
    (tmp_path / "ffcv.py").write_text("raise ImportError('no libopencv')")
    words = [
        "run",
        "method=simclr",
        "data=shapes",
        "data.n_train=64",
        "data.image_size=32",
        "backbone.stem=imagenet",
        "epochs=1",
        "batch_size=32",
        "evaluators=[]",
    ]
    env = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{PYTHONPATH}"}
    absent = sslkit(*words, "loader=torch", "out=absent", env=env)
    asked = sslkit(*words, "loader=ffcv", "out=asked", env=env)
    present = Forked(tmp_path, *words, "loader=auto", "out=present")
    output = present.communicate()
    assert absent.returncode == present.returncode == 0, (absent.stderr, output)
    assert asked.returncode == 2
    assert 'pip install "sslkit[ffcv]"' in asked.stderr
    a, b = (load_file(tmp_path / name / "backbone.safetensors") for name in ("absent", "present"))
    assert all((a[k] == b[k]).all() for k in a)


def test_pack_writes_a_beton_that_runs(sslkit, tmp_path):
    packed = sslkit("pack", "digits", "digits.beton")
    assert packed.returncode == 0, packed.stderr
    assert "1437 images of 32 px" in packed.stdout
    assert "raw" in packed.stderr
    assert sslkit("pack", "digits", "digits.beton").returncode == 2
    done = sslkit("run", "method=simclr", "data=digits.beton", "epochs=1", "evaluators=[knn]", "backbone.stem=imagenet")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words", [["list", "nothing"], ["show", "methods", "byoll"], ["show", "methods"], ["pack", "a"]]
)
def test_wrong_words_exit_2(sslkit, words):
    done = sslkit(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
