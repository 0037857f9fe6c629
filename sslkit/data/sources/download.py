"""Download of an archive: verified by checksum, and only the expected files are extracted."""

import hashlib
import tarfile
import urllib.request
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from sslkit.data.packing.progress import progress
from sslkit.errors import UserError
from sslkit.machine.atomic import replacing

CHUNK = 1 << 20
TIMEOUT = 30
"""Seconds without a byte after which a download fails."""


def fetch_archive(url: str, md5: str, folder: Path, wanted: Collection[str]) -> None:
    """Download a .tar.gz and extract those of its files that are `wanted`, by base name, flat into `folder`.

    Raises UserError if the network, the checksum or the archive fails.
    """
    try:
        with replacing(folder) as unpacked:
            unpacked.mkdir(parents=True)
            archive = unpacked / "archive.tar.gz"
            _download(url, md5, archive)
            _extract(archive, unpacked, wanted)
            archive.unlink()
    except (OSError, tarfile.TarError, ValueError) as error:
        raise UserError(
            f"{url} cannot be downloaded to {folder} ({error}); put its files there by other means, "
            f"or give their folder as data.root="
        ) from error


def _download(url: str, md5: str, archive: Path) -> None:
    checksum = hashlib.md5(usedforsecurity=False)
    with (
        urllib.request.urlopen(url, timeout=TIMEOUT) as response,
        open(archive, "wb") as file,
        progress(f"downloading {PurePosixPath(url).name}", "MiB") as report,
    ):
        total = int(response.headers.get("Content-Length") or 0)
        done = 0
        while chunk := response.read(CHUNK):
            file.write(chunk)
            checksum.update(chunk)
            done += len(chunk)
            report(done // CHUNK, max(total, done) // CHUNK)
    if checksum.hexdigest() != md5:
        raise UserError(f"{url} is not the file expected (md5 {checksum.hexdigest()}, not {md5}); try again later")


def _extract(archive: Path, folder: Path, wanted: Collection[str]) -> None:
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = PurePosixPath(member.name).name
            content: Any = tar.extractfile(member) if member.isfile() and name in wanted else None
            if content is not None:
                _copy(content, folder / name)


def _copy(content: Any, path: Path) -> None:
    with open(path, "wb") as file:
        while chunk := content.read(CHUNK):
            file.write(chunk)
