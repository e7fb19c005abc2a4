"""The model files that the sandbox pretends to have."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ltx_worker.catalog import Catalog
from ltx_worker.workflow.node_inputs import NodeInfo, is_list


def published(catalog: Catalog, families: Collection[str], variant: str) -> dict[str, list[str]]:
    """The catalogue's files for these families in one variant: folder -> names."""
    names: dict[str, list[str]] = {}
    for file in catalog.files:
        if file.family in (*families, "any") and file.variant in (variant, None):
            names.setdefault(file.folder, []).append(file.name)
    return names


def offer(
    node_info: NodeInfo, catalog: Catalog, names: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """The node info with these files (folder -> names) in the lists of the loaders."""
    offering = copy.deepcopy(dict(node_info))
    for loader in catalog.loaders:
        spec: list[Any] = offering[loader.node_class]["input"]["required"][loader.input]
        offered = list(names.get(loader.folder, ()))
        if is_list(spec[0]):
            spec[0] = offered
        else:
            spec[1]["options"] = offered
    return offering
