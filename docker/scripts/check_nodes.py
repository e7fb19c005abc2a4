"""Import a node pack as ComfyUI does at its start, without a GPU, and fail when that fails.

    python check_nodes.py PACK_DIR

Run by ComfyUI's own interpreter while the image is built: ComfyUI itself only logs such a failure
and serves without the pack. The pack lies in ComfyUI's custom_nodes; its `.commit` is told.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path


def check(pack: Path) -> str:
    """What is offered by `pack`; ends the process with one line when it cannot be imported."""
    comfyui = pack.parents[1]
    # ComfyUI reads its own command line while it is imported.
    sys.argv = [str(comfyui / "main.py"), "--cpu"]
    sys.path.insert(0, str(comfyui))
    import comfy.options  # noqa: PLC0415 - as it is found only now

    comfy.options.enable_args_parsing()
    import nodes  # noqa: PLC0415

    if not asyncio.run(nodes.load_custom_node(str(pack), module_parent="custom_nodes")):
        sys.exit(f"❌ {pack.name} cannot be imported; the traceback above says why")
    offered = [
        name
        for name, node in nodes.NODE_CLASS_MAPPINGS.items()
        if getattr(node, "RELATIVE_PYTHON_MODULE", "") == f"custom_nodes.{pack.name}"
    ]
    if not offered:
        sys.exit(f"❌ {pack.name} was imported and offers no node")
    commit = (pack / ".commit").read_text(encoding="ascii").strip()
    return f"✅ {pack.name} {commit} ({len(offered)} nodes)"


if __name__ == "__main__":
    sys.stdout.write(check(Path(sys.argv[1]).resolve()) + "\n")
