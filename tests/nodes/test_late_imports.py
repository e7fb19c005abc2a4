"""A module of the list is loaded on its first use, once, and is then the module itself."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
from ltx_worker_nodes.late_imports import Late, LateFinder, LateName, install

# Each module writes its name down when it is executed.
PACKAGE = {
    "__init__": "from late_pack import inner\ndef double(x): return 2 * x\ntable = {'a': 1}\n"
    "class Base:\n    @classmethod\n    def make(cls): return cls()\nvalue = 7\n",
    "inner": "depth = 1\n",
    "other": "depth = 2\n",
    "broken": "raise ImportError('a library is missing')\n",
    "plain": "sign = '!'\ndef mark(function, sign='!'):\n"
    "    return lambda *args: f'{function(*args)}{sign}'\n",
}
NAMES = Late(names=frozenset({"double", "table", "Base"}))

Executed = list[str]


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Executed]:
    """The modules of `late_pack` that were executed, in order."""
    folder = tmp_path / "late_pack"
    folder.mkdir()
    for name, text in PACKAGE.items():
        head = "import builtins\nbuiltins.late_pack_executed.append(__name__)\n"
        (folder / f"{name}.py").write_text(head + text)
    monkeypatch.syspath_prepend(tmp_path)
    found: Executed = []
    monkeypatch.setattr("builtins.late_pack_executed", found, raising=False)
    yield found
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, LateFinder)]
    for name in [name for name in sys.modules if name.split(".")[0] == "late_pack"]:
        del sys.modules[name]


def imported(modules: Mapping[str, Late], name: str = "late_pack") -> Any:
    install(modules)
    return importlib.import_module(name)


def test_an_import_loads_nothing_and_the_first_use_does(executed: Executed) -> None:
    early = imported({"late_pack": Late()})
    assert importlib.import_module("late_pack") is early
    assert executed == []
    assert early.value == 7
    assert executed == ["late_pack", "late_pack.inner"]
    loaded = sys.modules["late_pack"]
    assert loaded is not early
    assert type(loaded) is type(sys)
    assert early.double is loaded.double
    early.value = 8
    assert loaded.value == 8


USES: Mapping[str, Callable[[Any], object]] = {
    "called": lambda pack: pack.double(4) == 8,
    "indexed": lambda pack: pack.table["a"] == 1,
    "asked for an attribute": lambda pack: pack.table.get("b", 3) == 3,
    "inherited from": lambda pack: isinstance(child_of(pack), pack.Base),
    "asked whether it is the class of something": lambda pack: not isinstance(1, pack.Base),
}


def child_of(pack: Any) -> Any:
    class Child(pack.Base):
        pass

    return Child.make()


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_listed_name_loads_its_module_when_it_is_used(
    executed: Executed, use: Callable[[Any], object]
) -> None:
    pack = imported({"late_pack": NAMES})
    names = [getattr(pack, name) for name in sorted(NAMES.names)]
    assert all(isinstance(name, LateName) for name in names)
    assert executed == []
    assert use(pack)
    assert executed == ["late_pack", "late_pack.inner"]


def test_a_listed_name_in_an_annotation_loads_nothing(executed: Executed) -> None:
    base = imported({"late_pack": NAMES}).Base
    assert base | None
    assert None | base
    assert "late_pack.Base" in repr(base)
    assert executed == []


def test_a_name_that_is_not_listed_is_the_modules_own(executed: Executed) -> None:
    install({"late_pack": NAMES})
    from late_pack import value  # pyright: ignore[reportMissingImports]

    assert value == 7
    assert executed == ["late_pack", "late_pack.inner"]


@pytest.mark.parametrize("name", ["inner", "other"])
def test_a_module_inside_one_is_executed_once_and_after_it(executed: Executed, name: str) -> None:
    """Also where the package around it imports it itself."""
    imported({"late_pack": Late()})
    inner = importlib.import_module(f"late_pack.{name}")
    assert executed.count(f"late_pack.{name}") == 1
    assert executed[0] == "late_pack"
    assert inner is sys.modules[f"late_pack.{name}"]
    assert getattr(sys.modules["late_pack"], name) is inner
    assert inner.__spec__.origin.endswith(f"{name}.py")


def test_the_use_of_a_module_loads_the_package_around_it(executed: Executed) -> None:
    inner = imported({"late_pack": Late(), "late_pack.inner": Late()}, "late_pack.inner")
    assert executed == []
    assert inner.depth == 1
    assert executed == ["late_pack", "late_pack.inner"]
    assert sys.modules["late_pack"].inner is sys.modules["late_pack.inner"]


def test_threads_that_use_it_at_once_load_it_once(executed: Executed) -> None:
    early = imported({"late_pack": NAMES})
    double = early.double
    start, found = threading.Barrier(8), list[int]()

    def use() -> None:
        start.wait()
        found.append(double(early.value))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [14] * 8
    assert executed == ["late_pack", "late_pack.inner"]


def test_a_module_that_is_not_there_is_missing_at_its_import(executed: Executed) -> None:
    install({"late_pack_missing": Late()})
    with pytest.raises(ModuleNotFoundError, match="late_pack_missing"):
        importlib.import_module("late_pack_missing")


def test_a_module_that_cannot_be_loaded_says_why_at_each_use(executed: Executed) -> None:
    broken = imported({"late_pack.broken": Late()}, "late_pack.broken")
    for _ in range(2):
        with pytest.raises(ImportError, match="a library is missing"):
            broken.value  # noqa: B018
    assert executed.count("late_pack.broken") == 2


def test_an_idle_decorator_takes_effect_when_its_module_is_loaded(executed: Executed) -> None:
    """Before, the function is called as it is; what was kept of the decorator is forgotten."""
    late = {"late_pack.plain": Late(idle={"mark": "kept"})}
    plain = imported(late, "late_pack.plain")

    def shout(word: str) -> str:
        return word.upper()

    marked = plain.mark(shout, sign="?")
    vars(shout)["kept"] = marked
    assert marked("who") == "WHO"
    assert "late_pack.plain" not in executed
    assert plain.sign == "!"
    assert not hasattr(shout, "kept")
    assert marked("who") == "WHO?"
    assert plain.mark(shout)("who") == "WHO!"


def test_what_is_imported_already_stays(executed: Executed) -> None:
    before = importlib.import_module("late_pack")
    assert imported({"late_pack": Late()}) is before
