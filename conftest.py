"""What many tests share: the command line in a subprocess, and the shared real images."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from helpers.paths import PYTHONPATH, SHARED

SPREAD = {"test_matrix.py", "test_learning.py", "test_resume.py"}
"""Files of long tests that share nothing, which any worker may take; the tests of other files stay on one."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return nodeid if Path(file).name in SPREAD else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Packed data sets of the tests stay away from the user's, and are packed once a session."""
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module", autouse=True)
def _imported_for_good():
    """Spare garbage collections the walk over all that is imported, most of a million objects that stay to the end.

    Nothing is shared or changed by it: what a test creates and drops is collected as before.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """The tests' networks and images are small: a second thread costs more in waiting than it brings."""
    torch.set_num_threads(1)


@pytest.fixture
def sslkit(tmp_path, monkeypatch):
    """Run `sslkit words...` in an empty folder: in this process, or in one of its own where `env` is given."""

    def call(*words, env=None, cwd=None):
        monkeypatch.chdir(cwd or tmp_path)
        if env is not None:
            return run_alone(*words, env=env, cwd=cwd or tmp_path)
        from sslkit import plugins
        from sslkit.cli.main import cli

        plugins.add_commands(cli)
        result = CliRunner().invoke(cli, words, prog_name="sslkit")
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)

    return call


def run_alone(*words, env, cwd, timeout=240):
    """`sslkit words...` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "sslkit", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": PYTHONPATH, "COLUMNS": "200", **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="session")
def shared():
    """The folder of real images; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real images in {SHARED}")
    return SHARED
