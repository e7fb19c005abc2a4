"""What of this package is on. Benchmarks flip these while ComfyUI runs."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields


@dataclass
class Switches:
    """Each is one speed-up; all are on but those that LTX2_SPEED_OFF names, by commas."""

    imports: bool = True
    text: bool = True
    transformer: bool = True
    graphs: bool = True
    attention: bool = True
    upsampler: bool = True
    decoder: bool = True
    weights: bool = True


def from_environment() -> Switches:
    """Raises ValueError for a name that is none."""
    switches = Switches()
    known = {field.name for field in fields(Switches)}
    for name in filter(None, os.environ.get("LTX2_SPEED_OFF", "").split(",")):
        if name not in known:
            raise ValueError(f"LTX2_SPEED_OFF names {name!r}; there are {', '.join(sorted(known))}")
        setattr(switches, name, False)
    return switches


switches = from_environment()
