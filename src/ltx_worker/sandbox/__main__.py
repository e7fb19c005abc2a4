"""`python -m ltx_worker.sandbox`: serve the sandbox until the process is told to end.

Prints one line when it listens. SIGTERM ends it at once, as it ends ComfyUI.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from aiohttp import web

from ltx_worker.catalog import Catalog, load_catalog
from ltx_worker.sandbox.engine import Engine
from ltx_worker.sandbox.folders import Folders
from ltx_worker.sandbox.server import Server
from ltx_worker.sandbox.sockets import Sockets
from ltx_worker.workflow.node_inputs import NodeInfo
from ltx_worker.workflow.nodes import load_node_schema


def _arguments(catalog: Catalog) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m ltx_worker.sandbox", description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True, help="0 takes a free port")
    parser.add_argument("--input-directory", type=Path, required=True)
    parser.add_argument("--output-directory", type=Path, required=True)
    parser.add_argument("--temp-directory", type=Path)
    parser.add_argument(
        "--families", default=",".join(catalog.families), help="model families, with commas"
    )
    parser.add_argument("--variant", choices=("fp8", "fp16"), default="fp8")
    parser.add_argument(
        "--node-info", type=Path, help="an /object_info to serve in place of the recorded one"
    )
    parser.add_argument(
        "--speed", type=float, default=1.0, help="scales a step's time; 0 takes none"
    )
    return parser.parse_args()


def _node_info(arguments: argparse.Namespace, catalog: Catalog) -> NodeInfo:
    if arguments.node_info:
        return json.loads(arguments.node_info.read_text(encoding="utf-8"))
    families = arguments.families.split(",")
    if unknown := set(families) - set(catalog.families):
        raise SystemExit(f"no family {min(unknown)!r}; there are: {', '.join(catalog.families)}")
    return catalog.offer(load_node_schema(), catalog.names(families, arguments.variant))


def _folders(arguments: argparse.Namespace) -> Folders:
    temp: Path = arguments.temp_directory or Path(tempfile.gettempdir()) / "ltx-sandbox"
    given = (arguments.input_directory, arguments.output_directory, temp)
    for folder in given:
        folder.mkdir(parents=True, exist_ok=True)
    return Folders(*(folder.resolve() for folder in given))


async def _serve(arguments: argparse.Namespace, node_info: NodeInfo, folders: Folders) -> None:
    sockets = Sockets()
    engine = Engine(node_info, folders, sockets, arguments.speed)
    runner = web.AppRunner(Server(engine, sockets).application(), access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, arguments.host, arguments.port)
    await site.start()
    engine.start()
    host, port, *_ = runner.addresses[0]
    sys.stdout.write(f"sandbox listening on http://{host}:{port}\n")
    sys.stdout.flush()
    await sockets.publish()


def main() -> None:
    """Read the command line and serve."""
    catalog = load_catalog()
    arguments = _arguments(catalog)
    asyncio.run(_serve(arguments, _node_info(arguments, catalog), _folders(arguments)))


if __name__ == "__main__":
    main()
