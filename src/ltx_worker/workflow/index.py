"""`workflows/index.md`: what every workflow does, what is bound to what, which files it loads.

Made from the workflows themselves; a test says when it is not current.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from ltx_worker.catalog import Catalog
from ltx_worker.recipes import load_recipe
from ltx_worker.workflow.template import Option, Target, Template, title_of
from ltx_worker.workflow.values import role_of

_HEAD = """\
# Workflows

This file is made by `ltx workflows --write`. Each workflow is `NAME.json`, in ComfyUI's API
format, and `NAME.toml`, which says what a request writes into it.

## Opening and changing one

1. Drop `NAME.json` onto ComfyUI's page. It holds everything that its mode can do; a job takes out
   what it does not ask for, so bypass what you do not want to run there.
2. Change it: move nodes, add nodes, set other values. Keep the titles of the nodes that are named
   below; their ids may change.
3. Export it with *Export (API)* over `NAME.json`.
4. `ltx workflows` checks the bindings. The worker checks them again at start, and the nodes against
   its ComfyUI, and names what does not fit.

A value that a binding writes comes from the request, from `recipes.toml` or from `catalog.toml`. To
keep a value of your own, take its binding out of `NAME.toml`.
"""


def index_text(templates: Iterable[Template], catalog: Catalog) -> str:
    """The whole file."""
    ordered = list(templates)
    parts = [_HEAD, *_overview(ordered)]
    for template in ordered:
        parts += ["", *_section(template, catalog)]
    return "\n".join(parts) + "\n"


def _overview(templates: list[Template]) -> Iterator[str]:
    yield "| workflow | mode | quality | |"
    yield "|---|---|---|---|"
    for t in templates:
        mode = f"{t.mode}, {t.variant}" if t.variant else t.mode
        yield f"| [{t.name}](#{t.name}) | {mode} | {t.quality} | {t.summary} |"


def _section(template: Template, catalog: Catalog) -> Iterator[str]:
    yield f"## {template.name}"
    yield ""
    yield template.summary
    yield ""
    sides = f"sides are multiples of {template.grid}"
    needs = f"; a job needs {', '.join(sorted(template.requires))}" if template.requires else ""
    yield f"{len(template.graph)} nodes, {template.passes} sampling passes, {sides}{needs}."
    yield ""
    yield "| bound | to |"
    yield "|---|---|"
    for name, targets in template.targets.items():
        yield f"| `{name}` | {_targets(template, targets)} |"
    for name, group in template.repeats.items():
        for key, targets in group.targets.items():
            yield f"| `{name}[].{key}` | {_targets(template, targets)} |"
    if template.lora_targets:
        yield f"| `loras`, `camera_motion` | before {_targets(template, template.lora_targets)} |"
    if template.options:
        yield ""
        yield "Options, and what goes without them:"
        yield ""
        for name, option in template.options.items():
            yield f"- `{name}`: {_left_out(template, option)}"
    yield ""
    yield "Files:"
    yield ""
    yield from _files(template, catalog)


def _targets(template: Template, targets: Iterable[Target]) -> str:
    return ", ".join(f"{title_of(template.graph[node])} · {name}" for node, name in targets)


def _left_out(template: Template, option: Option) -> str:
    titles = [title_of(template.graph[node]) for node in (*option.bypass, *option.remove)]
    titles += [f"{title_of(template.graph[node])} · {name}" for node, name in option.drop]
    return ", ".join(titles)


def _files(template: Template, catalog: Catalog) -> Iterator[str]:
    for family in catalog.families:
        recipe = load_recipe(family, template.quality)
        known = catalog.roles(family)
        roles = {role_of(binding, recipe, "union", known) for binding in template.targets}
        names = [f.name for f in catalog.files if any(f.serves(family, r) for r in roles)]
        yield f"- {family}: " + ", ".join(f"`{name}`" for name in names)
