"""What is to be measured: scenarios and configurations, from `gpu.toml` and the command line."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Kind = Literal["start", "first", "warm", "new_prompt"]
ALL = "all"
_DATA = Path(__file__).with_name("gpu.toml")


@dataclass(frozen=True)
class Scenario:
    """Jobs of one kind and size."""

    name: str
    kind: Kind
    request: Mapping[str, Any]

    @property
    def is_of_a_fresh_worker(self) -> bool:
        return self.kind in ("start", "first")


@dataclass(frozen=True)
class Launch:
    """How a worker is started; two configurations with the same one can share a worker."""

    content: Literal["natural", "noise"] = "natural"
    node_pack: bool = True
    comfy_args: str = ""
    environment: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Configuration:
    """A way to start a worker, and what of its node package is switched (`all` for every one)."""

    name: str
    launch: Launch
    switches: Mapping[str, bool] = field(default_factory=dict[str, bool])

    def switched(self, known: Mapping[str, bool]) -> dict[str, bool]:
        """Every switch of the package, as this configuration wants it; raises ValueError."""
        wanted = {name: on for name, on in self.switches.items() if name != ALL}
        if missing := sorted(wanted.keys() - known.keys()):
            raise ValueError(f"{self.name}: no switch {missing[0]}; there are {sorted(known)}")
        base = dict.fromkeys(known, self.switches[ALL]) if ALL in self.switches else dict(known)
        return base | wanted


@dataclass(frozen=True)
class Plan:
    """The data of `gpu.toml`."""

    prompts: tuple[str, ...]
    scenarios: Mapping[str, Scenario]
    configurations: Mapping[str, Configuration]

    def configuration(self, text: str) -> Configuration:
        """`NAME` or `NAME,-switch,+switch`; raises ValueError."""
        name, *changes = text.split(",")
        found = self.configurations.get(name)
        if found is None:
            raise ValueError(f"no configuration {name!r}; there are {sorted(self.configurations)}")
        wrong = [change for change in changes if change[:1] not in ("+", "-")]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is neither -switch nor +switch")
        switches = {change[1:]: change[0] == "+" for change in changes}
        return replace(found, name=text, switches={**found.switches, **switches})

    def scenario(self, name: str, size: str | None) -> Scenario:
        """A scenario, at another size (WxHxFRAMES) where one is given; raises ValueError."""
        found = self.scenarios.get(name)
        if found is None:
            raise ValueError(f"no scenario {name!r}; there are {sorted(self.scenarios)}")
        if size is None:
            return found
        width, height, frames = (int(part) for part in size.split("x"))
        request = {**found.request, "resolution": f"{width}x{height}", "num_frames": frames}
        return replace(found, name=f"{found.kind}-{size}", request=request)


def load_plan(path: Path = _DATA) -> Plan:
    """Read the data."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    scenarios = [Scenario(**row) for row in data["scenarios"]]
    return Plan(
        tuple(data["prompts"]),
        {scenario.name: scenario for scenario in scenarios},
        {name: _configuration(name, row) for name, row in data["configurations"].items()},
    )


def _configuration(name: str, row: dict[str, Any]) -> Configuration:
    switches = row.pop("switches", {})
    environment = tuple(row.pop("environment", {}).items())
    return Configuration(name, Launch(**row, environment=environment), switches)
