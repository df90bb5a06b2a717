"""Make the shared nets importable under pytest's importlib mode, which adds no folder itself."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
