"""A LoRA that does not fit is refused before ComfyUI, which would report success, sees it."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tests.conftest import SMALL, settings_for

from ltx_worker.engines import Engine
from ltx_worker.errors import JobError
from ltx_worker.worker import Worker


@pytest.fixture
def strange_lora(engine: Engine) -> Generator[str]:
    """A LoRA of another model, among the engine's files."""
    path = engine.folders.models_dirs[0] / "loras" / "of-another-model.safetensors"
    weights = {
        f"diffusion_model.double_blocks.0.img_attn.qkv.lora_{half}.weight": np.zeros(
            (4, 4), np.float32
        )
        for half in "AB"
    }
    save_file(weights, path)
    yield path.name
    path.unlink()


def start(engine: Engine, models_dirs: tuple[Path, ...]) -> Worker:
    worker = Worker(settings_for(engine).model_copy(update={"comfy_models_dirs": models_dirs}))
    worker.start()
    return worker


def test_a_lora_of_another_model_is_an_error_that_names_both(
    engine: Engine, strange_lora: str
) -> None:
    """The file and the family are in the message; nothing was queued."""
    worker = start(engine, engine.folders.models_dirs)
    with pytest.raises(JobError) as failure:
        worker.run({"id": "strange", "input": SMALL | {"loras": [{"name": strange_lora}]}})
    worker.close()
    assert failure.value.code == "invalid_request"
    assert strange_lora in failure.value.message
    assert "ltx-2" in failure.value.message
    assert json.loads(failure.value.to_json())["details"][0]["field"] == "loras"


def test_comfyui_itself_reports_success_with_it(engine: Engine, strange_lora: str) -> None:
    """Why the check is there: where the worker cannot read the files, the clip is made."""
    worker = start(engine, ())
    result = worker.run({"id": "blind", "input": SMALL | {"loras": [{"name": strange_lora}]}})
    worker.close()
    assert result.metadata.num_frames == 9
