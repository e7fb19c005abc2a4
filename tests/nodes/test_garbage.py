"""After a job ComfyUI's main loop collects garbage: the answer goes first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PACKS = Path(__file__).parents[2] / "docker" / "custom_nodes"
# As ComfyUI's main.py, a script that imports gc and collects with it.
MAIN = """
import gc, sys, time, weakref
sys.path.insert(0, sys.argv[1])
from ltx_worker_nodes.speed import garbage

garbage.install()
gc.disable()

class Knot:
    pass

knot = Knot()
knot.itself = knot
left = weakref.ref(knot)
del knot
gc.collect()
print("at once" if left() is None else "not at once")
give_up = time.monotonic() + 20
while left() is not None and time.monotonic() < give_up:
    time.sleep(0.01)
print("later" if left() is None else "never")
"""


def test_it_is_collected_but_not_before_the_answer_is_out(tmp_path: Path) -> None:
    script = tmp_path / "main.py"
    script.write_text(MAIN)
    command = [sys.executable, str(script), str(PACKS)]
    done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
    assert done.stdout.split("\n")[:2] == ["not at once", "later"]
