"""Modules that ComfyUI imports as it starts and an LTX-2 job does not use: loaded on first use.

`late_imports.toml` lists them. An import of one finds a stand-in (`LateModule`). Whatever is asked
of that loads the module through Python's own import, locks and all, which then takes the stand-in's
place; who still holds the stand-in is passed on to the module. The names listed with a module may
be imported from it before: they are stand-ins too (`LateName`), and load it when they are used.

A module that is not there is still missing where it is imported; one that cannot be loaded says so
where it is first used. Must be importable before anything but the standard library.
"""

from __future__ import annotations

import functools
import importlib
import logging
import sys
import threading
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Union

_log = logging.getLogger(__name__)

# What introspection asks of every module in sys.modules; the import sets it where a module has it.
_SILENT = frozenset({"__file__", "__path__", "__cached__", "__wrapped__", "__warningregistry__"})


@dataclass(frozen=True)
class Late:
    """How a module is used before it is loaded.

    `names` are imported from it, and only called, indexed, inherited from, asked for attributes or
    written in an annotation. `idle` are decorators that have no effect until the module is loaded;
    with each, the attribute under which the decorated function keeps what they gave.
    """

    names: frozenset[str] = frozenset()
    idle: Mapping[str, str] = field(default_factory=dict[str, str])


def read_list(path: Path) -> dict[str, Late]:
    """The modules of a file as `late_imports.toml`, by name."""
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        name: Late(frozenset(row.get("names", ())), row.get("idle", {}))
        for name, row in data["late"].items()
    }


def install(modules: Mapping[str, Late]) -> LateFinder:
    """From now on, load these on their first use; those that are there already stay."""
    finder = LateFinder({name: late for name, late in modules.items() if name not in sys.modules})
    sys.meta_path.insert(0, finder)
    return finder


class LateFinder(MetaPathFinder):
    """Finds stand-ins for the modules of the list, and knows which are loaded."""

    def __init__(self, modules: Mapping[str, Late]) -> None:
        self._modules = modules
        self._lock = threading.Lock()
        self._waiting = set(modules)
        self._undecorated: list[tuple[str, FunctionType, str]] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """As Python's finders."""
        if fullname in self._waiting:
            found = PathFinder.find_spec(fullname, path, target)
            return found and _spec(found, _StandIn(self, self._modules[fullname], found.loader))
        parent = fullname.rpartition(".")[0]
        if isinstance(sys.modules.get(parent), LateModule):
            # A module inside one: that has to be there first, and has perhaps imported this one.
            self.load(parent)
            # One found in sys.modules now would be executed again; the loader puts it back.
            if (loaded := sys.modules.pop(fullname, None)) is not None:
                return ModuleSpec(fullname, _AlreadyThere(loaded))
        return None

    def is_waiting(self, name: str) -> bool:
        """Whether nothing has used the module so far."""
        return name in self._waiting

    def load(self, name: str) -> ModuleType:
        """The module itself. Raises what its import raises."""
        packages = [name[:end] for end, letter in enumerate(f"{name}.") if letter == "."]
        root = next(package for package in packages if package in self._modules)
        started = time.perf_counter()
        is_first = self._release(root)
        importlib.import_module(root)
        module = importlib.import_module(name)
        if is_first:
            seconds = time.perf_counter() - started
            _log.info("ltx_worker_nodes: %s is used first: loaded in %.2f s", name, seconds)
        return module

    def hold_off(self, module: str, decorator: _Idle, function: FunctionType) -> Any:
        """The function, decorated from when its module is loaded; None where it already is."""
        with self._lock:
            if module not in self._waiting:
                return None
            self._undecorated.append((module, function, decorator.kept_as))
        decorate = functools.cache(lambda: decorator.of(self.load(module))(function))

        @functools.wraps(function)
        def undecorated(*args: Any, **kwargs: Any) -> Any:
            called = function if self.is_waiting(module) else decorate()
            return called(*args, **kwargs)

        return undecorated

    def _release(self, root: str) -> bool:
        """Take out the stand-ins of a package, so that its import goes its usual way.

        Returns whether they had not been before.
        """
        with self._lock:
            is_first = root in self._waiting
            for name in self._modules:
                if f"{name}.".startswith(f"{root}."):
                    self._waiting.discard(name)
                    _remove(name)
            loaded = [row for row in self._undecorated if row[0] not in self._waiting]
            self._undecorated = [row for row in self._undecorated if row[0] in self._waiting]
        for _, function, attribute in loaded:
            function.__dict__.pop(attribute, None)
        return is_first


class LateModule(ModuleType):
    """Stands in for a module until that is loaded; then asks it."""

    def __getattr__(self, name: str) -> Any:
        if name in _SILENT:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        loader: _StandIn = self.__dict__["__loader__"]
        if loader.finder.is_waiting(self.__name__):
            early = loader.early(self.__name__, name)
            if early is not None:
                return early
        return getattr(loader.finder.load(self.__name__), name)

    def __setattr__(self, name: str, value: Any) -> None:
        # Python itself sets these names, and a module inside this one.
        if (name.startswith("__") and name.endswith("__")) or isinstance(value, LateModule):
            super().__setattr__(name, value)
        else:
            setattr(self.__dict__["__loader__"].finder.load(self.__name__), name, value)

    def __dir__(self) -> Iterable[str]:
        return dir(self.__dict__["__loader__"].finder.load(self.__name__))


class LateName:
    """Stands in for a name of a module: what is done with it loads that."""

    def __init__(self, finder: LateFinder, module: str, name: str) -> None:
        self._late = (finder, module, name)

    def _value(self) -> Any:
        finder, module, name = self._late
        return getattr(finder.load(module), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._value()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Introspection asks for attributes with such names, such as annotations' `__origin__`.
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return getattr(self._value(), name)

    def __getitem__(self, key: Any) -> Any:
        return self._value()[key]

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._value(),)

    def __instancecheck__(self, instance: Any) -> bool:
        return isinstance(instance, self._value())

    def __subclasscheck__(self, subclass: type) -> bool:
        return issubclass(subclass, self._value())

    def __or__(self, other: Any) -> Any:
        return Union[self, other]  # noqa: UP007 # `|` is what is defined here

    def __ror__(self, other: Any) -> Any:
        return Union[other, self]  # noqa: UP007

    def __repr__(self) -> str:
        return "<{1}.{2}, loaded on use>".format(*self._late)


class _StandIn(Loader):
    """Makes a stand-in, and loads nothing."""

    def __init__(self, finder: LateFinder, late: Late, loader: Loader | None) -> None:
        self.finder = finder
        self._late = late
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        """What else loaders offer, such as the source and the package's data files."""
        return getattr(self.__dict__["_loader"], name)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return LateModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass

    def early(self, module: str, name: str) -> Any:
        """What a name is before its module is loaded; None for one that loads it."""
        if name in self._late.names:
            return LateName(self.finder, module, name)
        kept_as = self._late.idle.get(name)
        if kept_as is None:
            return None

        def decorate(*args: Any, **kwargs: Any) -> Any:
            """As the module's own, which it calls when that is loaded."""
            if args and isinstance(args[0], FunctionType):
                decorator = _Idle(name, kept_as, args[1:], kwargs)
                undecorated = self.finder.hold_off(module, decorator, args[0])
                if undecorated is not None:
                    return undecorated
            return getattr(self.finder.load(module), name)(*args, **kwargs)

        return decorate


@dataclass(frozen=True)
class _Idle:
    """A decorator with its arguments; `kept_as` as in `Late.idle`."""

    name: str
    kept_as: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def of(self, module: ModuleType) -> Any:
        return lambda function: getattr(module, self.name)(function, *self.args, **self.kwargs)


class _AlreadyThere(Loader):
    """Gives an import the module that the package around it has imported meanwhile."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._spec = module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


def _spec(found: ModuleSpec, loader: Loader) -> ModuleSpec:
    """A stand-in's specification, which says where the module lies."""
    spec = ModuleSpec(found.name, loader, origin=found.origin)
    spec.submodule_search_locations = found.submodule_search_locations
    spec.has_location = found.has_location
    return spec


def _remove(name: str) -> None:
    module = sys.modules.get(name)
    if isinstance(module, LateModule):
        del sys.modules[name]
        package, _, last = name.rpartition(".")
        holder = sys.modules.get(package)
        if holder is not None and holder.__dict__.get(last) is module:
            del holder.__dict__[last]
