"""Where cached files lie, and short names for what they hold."""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def cache_dir(configured: Path | None = None) -> Path:
    """Folder of packed files: as configured, else $SSLKIT_CACHE, else ~/.cache/sslkit."""
    return configured or Path(os.environ.get("SSLKIT_CACHE") or "~/.cache/sslkit").expanduser()


def digest(*parts: Any) -> str:
    """A short name for JSON-able content: equal exactly when the content is."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=10).hexdigest()
