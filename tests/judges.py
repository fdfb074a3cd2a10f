"""Judges that others wrote: programs, headers and firmware images the tests compare with.

Where one is not installed, its tests say so and are skipped; where everything must be (``CI=true``), they fail.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

import pytest


def missing(what: str) -> NoReturn:
    """Say what a judge lacks: skips the test, or fails it in CI."""
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(f"NOT TESTED, and CI must test it: {what}", pytrace=False)
    pytest.skip(f"NOT TESTED: {what}")


def program(name: str, package: str) -> str:
    """The path of a program that Debian has in `package`."""
    found = shutil.which(name)
    if found is None:
        missing(f"{name} is not installed (Debian: {package})")
    return found


def file(path: Path, package: str) -> Path:
    """A file that Debian has in `package`."""
    if not path.exists():
        missing(f"there is no {path} (Debian: {package})")
    return path


def header_values(directory: Path, headers: Sequence[str], expressions: Mapping[str, str]) -> dict[str, int]:
    """What a C compiler makes of expressions over Linux's headers, by label.

    Raises:
        AssertionError: one is no expression there; with what the compiler says.
    """
    if platform.machine() != "x86_64":
        pytest.skip(f"NOT TESTED: the headers here are those of {platform.machine()}, and these are x86's")
    compiler = program("gcc", "gcc, libc6-dev")
    source, compiled = directory / "probe.c", directory / "probe"
    includes = "\n".join(f"#include <{header}>" for header in (*headers, "stddef.h", "stdio.h", "string.h"))
    source.write_text(includes)
    if subprocess.run([compiler, "-E", source], capture_output=True, check=False).returncode:
        missing(f"there are no headers {', '.join(headers)} (Debian: linux-libc-dev)")
    lines = (f'printf("%s=%lld\\n", "{label}", (long long)({c}));' for label, c in expressions.items())
    source.write_text("\n".join((includes, "int main(void) {", *lines, "return 0; }")))
    made = subprocess.run([compiler, "-o", compiled, source], capture_output=True, text=True, check=False)
    assert not made.returncode, made.stderr
    said = subprocess.run([compiled], capture_output=True, text=True, check=True).stdout
    return {label: int(value) for label, value in (line.split("=") for line in said.splitlines())}
