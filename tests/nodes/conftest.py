"""The node pack and the benches' clips, importable as ComfyUI and the benches import them."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

sys.path[:0] = [str(ROOT / "docker" / "custom_nodes"), str(ROOT / "bench")]
