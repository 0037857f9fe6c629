"""Where this checkout and the real images lie."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "data"
PYTHONPATH = os.pathsep.join(map(str, [ROOT, *sorted(ROOT.glob("plugins/*"))]))
"""The code of this checkout, for processes that tests start."""
