"""The names of engines on the command line; `sealift.silicon.engines.given`, slower to import, has their meaning."""

from __future__ import annotations

from typing import Final

DEFAULT_ENGINE: Final = "auto"
ENGINES: Final = (DEFAULT_ENGINE, "kvm", "unicorn")
