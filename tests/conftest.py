"""What many tests share: the command line in a subprocess, and the shared real images."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Packed data sets of the tests stay away from the user's, and are packed once a session."""
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def sslkit(tmp_path):
    """Run `sslkit words...` as a user would, in an empty folder; returns the finished process."""

    def call(*words, env=None, cwd=None, timeout=240):
        return subprocess.run(
            [sys.executable, "-m", "sslkit", *words],
            cwd=cwd or tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return call


@pytest.fixture(scope="session")
def shared():
    """The folder of real images; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real images in {SHARED}")
    return SHARED
