"""Their packages, imported from a checkout, with what the measured path does not need replaced."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGES = ("ltx-core", "ltx-pipelines")


@dataclass(frozen=True)
class Official:
    """The parts of them that are used here, and what stands in for others."""

    torch: Any
    distilled: Any
    blocks: Any
    registry: Any
    quantization: Any
    attention: str
    versions: dict[str, str]
    replaced: list[str]


def load_official(ltx2: Path) -> Official:
    """Import them from a checkout of Lightricks/LTX-2.

    `OpenImageIO` is imported by their reader of HDR files, which is not on the measured path.
    """
    sys.path[:0] = [str(ltx2.resolve() / "packages" / name / "src") for name in PACKAGES]
    replaced = ["text encoder"]
    if importlib.util.find_spec("OpenImageIO") is None:
        sys.modules["OpenImageIO"] = ModuleType("OpenImageIO")
        replaced.append("OpenImageIO")
    # Before anything else of theirs imports it by name.
    checks: Any = importlib.import_module("ltx_core.utils")
    checks.check_config_value = check_stated_value
    distilled = importlib.import_module("ltx_pipelines.distilled")
    attention = importlib.import_module("ltx_core.model.transformer.attention")
    return Official(
        torch=importlib.import_module("torch"),
        distilled=distilled,
        blocks=importlib.import_module("ltx_pipelines.utils.blocks"),
        registry=importlib.import_module("ltx_core.loader.registry"),
        quantization=importlib.import_module("ltx_pipelines.utils.quantization_factory"),
        attention=attention.attention_label(attention.automatic_attention()),
        versions={name: version_of(ltx2 / "packages" / name) for name in PACKAGES},
        replaced=replaced,
    )


def check_stated_value(config: dict[str, Any], key: str, expected: Any) -> None:
    """Their check of a checkpoint's configuration, for the values that it states.

    They want the ones stated that can have one value only; a random checkpoint may leave them out.
    """
    if key in config and config[key] != expected:
        raise ValueError(f"the checkpoint's {key} is {config[key]}, not {expected}")


def version_of(package: Path) -> str:
    """The version that a package's pyproject.toml states."""
    return tomllib.loads((package / "pyproject.toml").read_text())["project"]["version"]


class Uninitialized(logging.Handler):
    """Hears their loader warn of tensors that the checkpoint did not have."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Uninitialized"):
            self.found.append(message)
