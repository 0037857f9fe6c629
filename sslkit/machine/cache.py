"""Location of cached files, and short names for their content."""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def cache_dir(configured: Path | None = None) -> Path:
    """Return the folder of cached files: `configured`, else $SSLKIT_CACHE, else ~/.cache/sslkit."""
    return configured or Path(os.environ.get("SSLKIT_CACHE") or "~/.cache/sslkit").expanduser()


def digest(*parts: Any) -> str:
    """Return a short hash of JSON-serialisable content, for use as a file name."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=10).hexdigest()
