"""The least that an async handler on RunPod's SDK does for a clip: a yardstick for `handler.py`.

It queues the ready graph in the file `MINIMAL_GRAPH`, with the job's seed and a file name of its
own, and sends the file back. No checks, no progress, no errors, nothing removed but the file.
"""

from __future__ import annotations

import base64
import json
import os
import uuid
from pathlib import Path
from typing import Any

import aiohttp
import runpod

URL = os.environ["COMFY_URL"]
OUTPUT_DIR = Path(os.environ["COMFY_OUTPUT_DIR"])
GRAPH: dict[str, Any] = json.loads(Path(os.environ["MINIMAL_GRAPH"]).read_text())


async def handle(job: dict[str, Any]) -> dict[str, Any]:
    client_id, prompt_id = uuid.uuid4().hex, str(uuid.uuid4())
    body = {
        "prompt": graph_for(job["input"]["seed"], prompt_id),
        "prompt_id": prompt_id,
        "client_id": client_id,
    }
    async with aiohttp.ClientSession(URL) as session:
        async with session.ws_connect(f"/ws?clientId={client_id}") as socket:
            async with session.post("/prompt", json=body, raise_for_status=True):
                pass
            async for frame in socket:
                if frame.type is aiohttp.WSMsgType.TEXT and is_end(frame.json(), prompt_id):
                    break
        async with session.get(f"/history/{prompt_id}") as response:
            history = (await response.json())[prompt_id]
    (file,) = next(iter(history["outputs"].values()))["images"]
    path = OUTPUT_DIR / file["subfolder"] / file["filename"]
    clip = path.read_bytes()
    path.unlink()
    stamps = [data["timestamp"] for _, data in history["status"]["messages"]]
    return {
        "video": base64.b64encode(clip).decode("ascii"),
        "timings": {"comfy_s": (max(stamps) - min(stamps)) / 1000},
    }


def graph_for(seed: int, prefix: str) -> dict[str, Any]:
    """The graph with a job's seed, saving under a name of its own."""
    for node in GRAPH.values():
        if node["class_type"] == "RandomNoise":
            node["inputs"]["noise_seed"] = seed
        elif node["class_type"] == "SaveVideo":
            node["inputs"]["filename_prefix"] = f"minimal/{prefix}"
    return GRAPH


def is_end(message: dict[str, Any], prompt_id: str) -> bool:
    data = message["data"]
    is_idle = message["type"] == "executing" and data["node"] is None
    return is_idle and data["prompt_id"] == prompt_id


if __name__ == "__main__":
    runpod.serverless.start({"handler": handle})
