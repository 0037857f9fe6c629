"""Download of an archive: pooch verifies its digest, and only the expected files are extracted."""

import shutil
import sys
import tarfile
from collections.abc import Collection
from pathlib import Path, PurePosixPath

from sslkit.errors import UserError
from sslkit.machine.atomic import replacing

TIMEOUT = 30
"""Seconds without a byte after which a download fails."""


def fetch_archive(url: str, md5: str, folder: Path, wanted: Collection[str]) -> None:
    """Download a .tar.gz and extract those of its files that are `wanted`, by base name, flat into `folder`.

    Raises UserError if the network, the digest or the archive fails.
    """
    try:
        with replacing(folder) as unpacked:
            unpacked.mkdir(parents=True)
            archive = _download(url, md5, unpacked)
            _extract(archive, unpacked, wanted)
            archive.unlink()
    except (OSError, tarfile.TarError, ValueError) as error:
        raise UserError(
            f"{url} cannot be downloaded to {folder} ({error}); put its files there by other means, "
            f"or give their folder as data.root="
        ) from error


def _download(url: str, md5: str, folder: Path) -> Path:
    import pooch

    pooch.get_logger().setLevel("WARNING")
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), timeout=TIMEOUT)
    return Path(pooch.retrieve(url, f"md5:{md5}", "archive.tar.gz", folder, downloader=downloader))


def _extract(archive: Path, folder: Path, wanted: Collection[str]) -> None:
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = PurePosixPath(member.name).name
            content = tar.extractfile(member) if member.isfile() and name in wanted else None
            if content is not None:
                with content, open(folder / name, "wb") as file:
                    shutil.copyfileobj(content, file)
