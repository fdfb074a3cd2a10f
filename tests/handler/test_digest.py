"""The digest speaks for all of the handler's code, and for nothing else."""

from __future__ import annotations

import ast
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import sealift.guest.handler as package
from sealift.guest.handler import digest


def origin(name: str) -> Path | None:
    """A module's source; None if there is no such module."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return Path(spec.origin) if spec and spec.origin else None


def imported(source: Path) -> set[str]:
    """Modules of this project that a source imports."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "sealift" and origin(name)}


def test_the_digest_covers_everything_the_handler_imports() -> None:
    todo = {f"{package.__name__}.{module.name}" for module in pkgutil.iter_modules(package.__path__)}
    found: set[str] = set()
    while todo:
        name = todo.pop()
        if name in found or name.startswith("sealift.sev"):
            continue
        found.add(name)
        source = origin(name)
        assert source is not None
        todo |= imported(source) | ({name.rpartition(".")[0]} - {""})
    assert found == set(digest.MODULES)


def test_the_digest_is_stable() -> None:
    assert digest.handler_digest() == digest.handler_digest()
    assert len(digest.handler_digest()) == 32


@pytest.mark.parametrize("name", digest.MODULES)
def test_a_change_in_any_module_changes_the_digest(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest.handler_digest()
    read = digest._source
    monkeypatch.setattr(digest, "_source", lambda each: read(each) + (b"\n" if each == name else b""))
    assert digest.handler_digest() != before
