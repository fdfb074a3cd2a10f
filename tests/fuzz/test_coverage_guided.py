"""Whatever bytes a coverage-guided fuzzer finds, parsers end with a value or with a declared error."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import judges

from .parsers import PARSERS

LIMIT_S = 300.0
"""On a machine that is busy with all other tests."""

pytestmark = pytest.mark.timeout(LIMIT_S + 10)

TESTS = Path(__file__).parents[1]
RUNS = 4_000
TRAP_RUNS = 1_000_000


def fuzz(name: str, runs: int, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Fuzz one parser."""
    if importlib.util.find_spec("atheris") is None:
        judges.missing("atheris is not installed (it is a dependency of the tests, but from Python 3.14 on)")
    return subprocess.run(
        [sys.executable, "-m", "fuzz.run", name, str(runs), str(tmp_path)],
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.mark.parametrize("name", PARSERS)
def test_a_parser_ends_as_it_says(name: str, tmp_path: Path) -> None:
    ended = fuzz(name, RUNS, tmp_path)
    found = {path.name: path.read_bytes()[:200] for path in tmp_path.glob("crash-*")}
    assert (ended.returncode, found) == (0, {}), ended.stderr[-3000:]
    assert f"Done {RUNS} runs" in ended.stderr, ended.stderr[-500:]


def test_the_fuzzer_follows_branches_to_a_mistake(tmp_path: Path) -> None:
    """Test that the search finds something: else nothing found would say nothing."""
    ended = fuzz("trap", TRAP_RUNS, tmp_path)
    assert ended.returncode != 0
    assert "IndexError: a mistake" in ended.stdout + ended.stderr
    assert list(tmp_path.glob("crash-*"))
