"""``python -m fuzz.run PARSER RUNS DIRECTORY`` (in ``tests``): fuzz one parser; status 0 if nothing was found.

A process of its own, since libFuzzer ends the one it runs in, and since the parsers are instrumented as they are
imported. What breaks a parser is left in the directory as ``crash-…``.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sealift", "fuzz.parsers"]):
    from fuzz.parsers import PARSERS, TRAP
    from sealift.errors import SealiftError

_LONGEST = 7000


def main() -> None:
    """Fuzz; does not return."""
    name, runs, place = sys.argv[1:]
    parser = TRAP if name == "trap" else PARSERS[name]
    corpus = Path(place) / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(parser.seeds):
        (corpus / str(number)).write_bytes(seed)

    def look(data: bytes) -> None:
        with contextlib.suppress(SealiftError):
            parser.parse(data)

    flags = [
        f"-runs={runs}",
        "-seed=1",
        f"-max_len={_LONGEST}",
        f"-artifact_prefix={place}/",
        "-timeout=10",
        "-len_control=0",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus)], look)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
