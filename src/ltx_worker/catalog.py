"""The model files of each family, as data, and which of them a ComfyUI offers.

File names live in `catalog.toml` alone. A workflow binds a role ("distilled_checkpoint"); the
installed file for it is looked up here, so a caller can never name a path.
"""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

Variant = Literal["fp8", "fp16"]

_CATALOG = Path(__file__).with_name("catalog.toml")


@dataclass(frozen=True)
class ModelFile:
    """One published file. `bytes` is its size; `name` is how ComfyUI lists it."""

    family: str
    role: str
    repository: str
    path: str
    folder: str
    bytes: int
    variant: Variant | None = None
    gated: bool = False

    @property
    def name(self) -> str:
        """The file's name, without the folders of its repository."""
        return PurePosixPath(self.path).name

    def serves(self, family: str, role: str) -> bool:
        """Whether this file can play `role` for `family`."""
        return self.role == role and self.family in (family, "any")

    def fits(self, variant: Variant | None) -> bool:
        """Whether this file can be used at `variant`; None stands for any."""
        return variant is None or self.variant in (variant, None)

    def describe(self) -> str:
        """Name, size and source, as error messages show it."""
        return f"{self.name} ({self.bytes / 1e9:.1f} GB, {self.repository}, folder {self.folder})"

    @property
    def command(self) -> str:
        """The command that fetches the file into ComfyUI's folder for it."""
        return f"hf download {self.repository} {self.path} --local-dir models/{self.folder}"


@dataclass(frozen=True)
class LoaderInput:
    """A loader node's input that lists the files of one of ComfyUI's model folders."""

    node_class: str
    input: str
    folder: str


@dataclass(frozen=True)
class Catalog:
    """All known model files, in order of preference, and the loader inputs that list them.

    `groups` are names for several roles, as downloads take them.
    """

    files: tuple[ModelFile, ...]
    loaders: tuple[LoaderInput, ...]
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def families(self) -> tuple[str, ...]:
        """The model families, in the catalogue's order."""
        return tuple(dict.fromkeys(f.family for f in self.files if f.family != "any"))

    def roles(self, family: str) -> frozenset[str]:
        """The roles that some file can play for `family`."""
        return frozenset(file.role for file in self.files if file.family in (family, "any"))

    def candidates(self, family: str, role: str, variant: Variant | None) -> list[ModelFile]:
        """The files that can play `role` for `family`; only those of `variant` if one is given."""
        return [file for file in self.files if file.serves(family, role) and file.fits(variant)]

    def names(
        self, families: Iterable[str] | None = None, variant: Variant | None = None
    ) -> dict[str, list[str]]:
        """The names of the files of these families and this variant (None: all), by folder."""
        wanted = {*(families or self.families), "any"}
        names: dict[str, list[str]] = {}
        for file in self.files:
            if file.family in wanted and file.fits(variant):
                names.setdefault(file.folder, []).append(file.name)
        return names

    def offer(
        self, node_info: Mapping[str, Any], names: Mapping[str, Sequence[str]]
    ) -> dict[str, Any]:
        """ComfyUI's node info as if these files (by folder) were installed, and no others."""
        offering = dict(node_info)
        for loader in self.loaders:
            if loader.node_class not in offering:
                continue
            node = offering[loader.node_class] = copy.deepcopy(offering[loader.node_class])
            spec: list[Any] = node["input"]["required"][loader.input]
            offered = list(names.get(loader.folder, ()))
            if isinstance(spec[0], list):
                spec[0] = offered
            else:
                spec[1]["options"] = offered
        return offering


@dataclass(frozen=True)
class Inventory:
    """The catalogue's files that a ComfyUI offers: (folder, name) pairs."""

    catalog: Catalog
    offered: frozenset[tuple[str, str]]
    variant: Variant | None = None
    preferred: Variant | None = None

    @classmethod
    def from_node_info(
        cls,
        catalog: Catalog,
        node_info: Mapping[str, Any],
        variant: Variant | None = None,
        preferred: Variant | None = None,
    ) -> Inventory:
        """Read what the loader nodes of ComfyUI's `/object_info` offer.

        Only files of `variant` count where one is given; those of `preferred` go before others.
        """
        offered = {
            (loader.folder, name)
            for loader in catalog.loaders
            for name in _options(node_info, loader)
        }
        return cls(catalog, frozenset(offered), variant, preferred)

    def find(self, family: str, role: str) -> ModelFile | None:
        """The first offered file for `role`, or None."""
        candidates = self._candidates(family, role)
        return next((f for f in candidates if (f.folder, f.name) in self.offered), None)

    def choose(self, family: str, role: str) -> ModelFile:
        """The offered file for `role`, else the one to install; KeyError when none is published."""
        candidates = self._candidates(family, role)
        if not candidates:
            raise KeyError(f"no file is published for {role} of {family}")
        return self.find(family, role) or candidates[0]

    def _candidates(self, family: str, role: str) -> list[ModelFile]:
        files = self.catalog.candidates(family, role, self.variant)
        if self.preferred is None:
            return files
        return sorted(files, key=lambda file: file.variant != self.preferred)

    def missing(self, graph: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ModelFile | None]]:
        """The names that the graph's loaders ask for and ComfyUI does not offer.

        Each comes with its catalogue entry, if it has one.
        """
        folders = {(row.node_class, row.input): row.folder for row in self.catalog.loaders}
        known = {(file.folder, file.name): file for file in self.catalog.files}
        asked = {
            (folder, value): None
            for node in graph.values()
            for name, value in node["inputs"].items()
            if (folder := folders.get((node["class_type"], name))) and isinstance(value, str)
        }
        return [(pair[1], known.get(pair)) for pair in asked if pair not in self.offered]

    @property
    def loras(self) -> tuple[str, ...]:
        """The names of all LoRA files that ComfyUI offers."""
        return tuple(sorted(name for folder, name in self.offered if folder == "loras"))


def _options(node_info: Mapping[str, Any], loader: LoaderInput) -> list[str]:
    """The values a loader's combo input takes; empty when the class or input is absent."""
    inputs = node_info.get(loader.node_class, {}).get("input", {}).get("required", {})
    spec = inputs.get(loader.input, [[]])
    return spec[0] if isinstance(spec[0], list) else spec[1].get("options", [])


@cache
def load_catalog() -> Catalog:
    """Read `catalog.toml`."""
    data = tomllib.loads(_CATALOG.read_text(encoding="utf-8"))
    loaders = (LoaderInput(row["class"], row["input"], row["folder"]) for row in data["loaders"])
    groups = {name: tuple(roles) for name, roles in data["groups"].items()}
    return Catalog(tuple(ModelFile(**row) for row in data["files"]), tuple(loaders), groups)
