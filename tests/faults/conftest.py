"""Cases, each on a worker in production, and the table that they make."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tests.comfyui.tiny_engine import comfyui_dir
from tests.faults import table
from tests.faults.case import Case, Row
from tests.faults.deployment import Deployment, OwnedEngine, RemoteEngine
from xdist.scheduler import LoadScopeScheduling

StartCase = Callable[..., Case]
_ROW = pytest.StashKey[Row]()


class Scheduling(LoadScopeScheduling):
    """One process runs all cases of the real ComfyUI, which takes long to start."""

    def _split_scope(self, nodeid: str) -> str:
        return "comfyui" if "comfyui]" in nodeid else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    """Share the cases out among processes."""
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that others run beside it."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Give a case's row to the report of its end."""
    report = yield
    row = _row_of(item)
    if report.when == "call" and report.passed and row.left is None:
        report.outcome, report.longrepr = "failed", "the case did not look at what is left"
    if report.when == "call" or not report.passed:
        report.fault_row = asdict(row)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the table; its last line counts."""
    path = terminalreporter.config.rootpath / "out" / "faults.md"
    count = table.write(path, [r for kind in terminalreporter.stats.values() for r in kind])
    terminalreporter.write_line(f"{path}: {count}")


def _row_of(item: pytest.Item) -> Row:
    if _ROW not in item.stash:
        assert isinstance(item, pytest.Function)
        engine, detail = "sandbox", ""
        if hasattr(item, "callspec"):
            engine = item.callspec.params.get("engine_name", engine)
            detail = item.callspec.id.removesuffix(engine).rstrip("-")
        name = item.originalname.removeprefix("test_").replace("_", " ")
        item.stash[_ROW] = Row(f"{name}: {detail}" if detail else name, engine)
    return item.stash[_ROW]


@pytest.fixture
def engine_name() -> str:
    """The sandbox, where a case does not name both engines."""
    return "sandbox"


class Engines:
    """Engines that cases share, one of each name."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._shared: dict[str, RemoteEngine] = {}
        self._count = 0

    def shared(self, name: str) -> RemoteEngine:
        """The engine of this name; discard it when it may be damaged."""
        if name not in self._shared:
            self._shared[name] = RemoteEngine(name, self.new_folder(name))
        return self._shared[name]

    def discard(self, name: str) -> None:
        """The next case has a new one."""
        if name in self._shared:
            self._shared.pop(name).close()

    def new_folder(self, name: str) -> Path:
        """A folder for one engine."""
        self._count += 1
        folder = self._folder / f"{name}-{self._count}"
        folder.mkdir()
        return folder


@pytest.fixture(scope="session")
def engines(
    tmp_path_factory: pytest.TempPathFactory, clean_environment: None
) -> Generator[Engines]:
    engines = Engines(tmp_path_factory.mktemp("engines"))
    yield engines
    for name in ("sandbox", "comfyui"):
        engines.discard(name)


@pytest.fixture
def start(
    request: pytest.FixtureRequest, engines: Engines, engine_name: str
) -> Generator[StartCase]:
    """Start a case: a worker with these settings on an engine of its own, or on the shared one."""
    row = _row_of(request.node)
    started: list[Deployment] = []

    def start_case(*, owned: bool = False, **settings: str) -> Case:
        engine = (
            OwnedEngine(engine_name, engines.new_folder(engine_name))
            if owned
            else engines.shared(engine_name)
        )
        started.append(Deployment(engine, settings))
        return Case(started[0], row)

    yield start_case
    for deployment in started:
        deployment.close()
    if row.left != 0:
        engines.discard(engine_name)


def real_comfyui() -> Any:
    """The engine `comfyui`, where there is one."""
    is_there = (comfyui_dir() / "main.py").exists()
    reason = "no real ComfyUI: set COMFYUI_DIR"
    return pytest.param("comfyui", marks=pytest.mark.skipif(not is_there, reason=reason))
