"""Make the nets of tests/training importable: importlib mode adds no folder itself."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "training"))
