"""Where things are kept: hosts, the local owner and the manufacturer under the user's state directory.

::

    $XDG_STATE_HOME/sealift/        ~/.local/state/sealift by default
    ├── hosts/default/              a host: what `--host` names
    │   ├── identity/               the platform's keys, which survive its guests
    │   ├── run/NAME/               one directory a running guest (`sealift.cli.rundir`)
    │   ├── history.jsonl           migrations from here, as predicted and as they went
    │   └── tokens/NAME.token       what settles a migration to here whose source was lost
    ├── manufacturer/               who endorses chips in AMD's place
    └── owner/                      the local guest owner

What can be fetched or made again is under $XDG_CACHE_HOME/sealift/, ~/.cache/sealift by default.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path


def state_directory() -> Path:
    """The user's directory of this program (XDG Base Directory Specification)."""
    return _base("XDG_STATE_HOME", ".local/state") / "sealift"


def cache_directory() -> Path:
    """The user's directory of what this program can get again."""
    return _base("XDG_CACHE_HOME", ".cache") / "sealift"


def _base(variable: str, default: str) -> Path:
    base = os.environ.get(variable, "")
    # The specification has relative paths ignored.
    return Path(base) if Path(base).is_absolute() else Path.home() / default


@dataclass(frozen=True, slots=True)
class Host:
    """A host is a directory; several on one machine are several hosts."""

    path: Path

    @property
    def identity(self) -> Path:
        """The platform's persistent keys."""
        return self.path / "identity"

    @property
    def run(self) -> Path:
        """Running guests."""
        return self.path / "run"

    @property
    def tokens(self) -> Path:
        """Tokens that targets here left for sources that they lost."""
        return self.path / "tokens"

    @property
    def history(self) -> Path:
        """What migrations from here were expected to cost, and what they did."""
        return self.path / "history.jsonl"

    @property
    def option(self) -> str:
        """What to add to a command line that is to mean this host: nothing for the default one."""
        return "" if self == default_host() else f" --host {shlex.quote(str(self.path))}"


def default_host() -> Host:
    """The host that is meant when none is named."""
    return Host(state_directory() / "hosts" / "default")


def default_owner() -> Path:
    """The local owner's directory."""
    return state_directory() / "owner"


def default_manufacturer() -> Path:
    """The manufacturer whose chips all local hosts have."""
    return state_directory() / "manufacturer"


def owner_place(text: str | Path) -> Path | str:
    """Where an owner is: a directory, or the URI (``unix:PATH``, ``tcp:HOST:PORT``) where it is served."""
    return text if isinstance(text, str) and text.startswith(("unix:", "tcp:")) else Path(text).absolute()


@dataclass(frozen=True, slots=True)
class Places:
    """Where one guest's three parties keep what is theirs; `owner` may be the URI where one is served instead."""

    host: Host
    owner: Path | str
    manufacturer: Path
