"""A test whose judge is missing is skipped where somebody works, and fails where everything must be tested."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import judges


@pytest.fixture(params=["program", "file"])
def ask(request: pytest.FixtureRequest) -> Callable[[], object]:
    """Asks for a judge that no machine has."""
    if request.param == "program":
        return lambda: judges.program("no-such-judge", "none")
    return lambda: judges.file(Path("/no-such-judge"), "none")


@pytest.mark.parametrize("said", ["true", "1"])
def test_in_ci_it_is_a_failure(ask: Callable[[], object], monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("CI", said)
    with pytest.raises(pytest.fail.Exception, match="CI must test it"):
        ask()


def test_elsewhere_it_is_skipped_and_says_so(ask: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match=r"NOT TESTED: .*Debian"):
        ask()
