"""LTX2_SPEED_OFF leaves out the speed-ups that it names, and the worker knows their names."""

from __future__ import annotations

import re
from dataclasses import asdict

import pytest
from ltx_worker_nodes.speed.switches import Switches, from_environment

from ltx_worker.settings import Settings, unknown_variables

NAMES = set(asdict(Switches()))
VARIABLE = "LTX2_SPEED_OFF"


@pytest.mark.parametrize(
    ("value", "off"),
    [("", set()), ("decoder", {"decoder"}), ("weights,transformer", {"weights", "transformer"})],
)
def test_what_is_named_is_off_and_all_else_on(
    monkeypatch: pytest.MonkeyPatch, value: str, off: set[str]
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    assert {name for name, is_on in asdict(from_environment()).items() if not is_on} == off


def test_all_are_on_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert all(asdict(from_environment()).values())


def test_a_name_that_is_none_is_refused_with_those_that_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever switches off the wrong thing should not measure the right one."""
    monkeypatch.setenv(VARIABLE, "decoder,encoder")
    with pytest.raises(ValueError, match="'encoder'") as refused:
        from_environment()
    assert all(name in str(refused.value) for name in NAMES)


def test_the_setting_is_known_and_names_them_all() -> None:
    assert unknown_variables({VARIABLE: "decoder"}) == {}
    described = Settings.model_fields["speed_off"].description or ""
    assert set(re.findall(r"\w+", described.rpartition(":")[2])) == NAMES
