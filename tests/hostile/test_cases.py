"""Each hostile input ends in one coded error that names its field, or in a file of ours."""

from __future__ import annotations

from typing import Any

import pytest
from tests.hostile.answers import CANARY
from tests.hostile.cases import CASES, NORMALISED, Case, World

from ltx_worker.errors import JobError

# What a message may not repeat: where the caller's URL led, and what it carried.
_SECRETS = (CANARY, "127.0.0.1", "169.254", "10.0.0", ".example", "passwd", "://", "::1")


def test_there_are_enough_cases(record_property: Any) -> None:
    """Every case has a name of its own, and none is lost unnoticed."""
    record_property("hostile inputs", len(CASES))
    assert len({case.name for case in CASES}) == len(CASES) >= 300


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_hostile_input_ends_as_it_should(case: Case, here: World) -> None:
    """It reaches nobody who is not public, and its error repeats nothing of it."""
    failure = _failure(case, here)
    assert (NORMALISED if failure is None else failure.code) == case.ends
    if failure is not None:
        assert {_root(problem.field) for problem in failure.details} == {_root(case.field)}
        # The names in a graph and of LoRA files are the caller's to see.
        if not case.name.startswith(("graph-", "lora-")):
            assert not [secret for secret in _SECRETS if secret in failure.to_json()]
    assert here.web.strays == []
    assert here.web.canary_hits == 0
    assert list(here.folder.rglob("*.*")) == []


def _failure(case: Case, here: World) -> JobError | None:
    try:
        case.act(here)
    except JobError as error:
        return error
    return None


def _root(field: str) -> str:
    return field.partition(".")[0]
