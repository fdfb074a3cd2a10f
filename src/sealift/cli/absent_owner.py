"""A guest's owner who is somewhere else: what it sends are files, as for QEMU's sev-guest.

::

    owner (other tools)                          sealift run
     │── DH certificate, session ──────────────►│ LAUNCH_START … LAUNCH_MEASURE; the guest is not started
     │◄────────────────── measurement ──────────│ as a sentence, and by query-sev-launch-measure
     │── secret: header, payload ──────────────►│ by sev-inject-launch-secret, or as files (--launch-secret)
     │── cont ─────────────────────────────────►│ LAUNCH_FINISH; with files nobody need ask for it

A secret is good for one measurement, whose nonce is fresh; so its files cannot be made before the launch, and are
waited for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from sealift.cli.guest_options import GuestOptions, SecretFiles
from sealift.errors import SealiftError, UserError, sentence
from sealift.launch.image import GuestRecipe
from sealift.owner.files import read
from sealift.owner.secretfiles import SealedSecret
from sealift.sev.policy import parse_policy
from sealift.sev.text import decode_base64
from sealift.vmm.guest import Guest
from sealift.vmm.launch import Launch, LaunchTerms, launch_for
from sealift.vmm.memory import SharedMemory
from sealift.vmm.platform import Platform

_LIMIT: Final = 4096
"""Bytes of a certificate (2780 as base64) or a session."""

_STEP_S: Final = 0.2
"""How often to look for the secret's files, and how long they must be still before they count as written."""


def is_absent(options: GuestOptions) -> bool:
    """Whether the guest's owner, if it has any, is not the local one.

    Raises:
        UserError: options that do not fit together.
    """
    given = (options.dh_cert_file, options.session_file)
    if given.count(None) == 1:
        raise UserError("--dh-cert-file and --session-file belong together: an owner makes both for one launch")
    absent = options.no_owner or options.session_file is not None
    if options.launch_secret is not None and not absent:
        raise UserError(
            "--launch-secret brings the secret of an owner who is not asked; give its --dh-cert-file and "
            "--session-file, too (or --no-owner)"
        )
    if options.secret is not None and absent:
        raise UserError(
            "--secret is planted by the local owner, which has no part in this launch; use --launch-secret, or "
            "sev-inject-launch-secret over QMP"
        )
    return absent


def starts_at_once(options: GuestOptions) -> bool:
    """Whether nobody need ask for the guest to be started: not if its measurement must be looked at first."""
    return not options.paused and options.session_file is None and options.launch_secret is None


class AbsentOwner:
    """Stands where the local owner would: its session is in files, and its secret comes later.

    Raises:
        UserError: a file cannot be read, or the policy is none.
    """

    def __init__(self, options: GuestOptions) -> None:
        policy = int(parse_policy(options.policy))
        if options.dh_cert_file is None or options.session_file is None:
            self._terms = LaunchTerms(policy)
        else:
            dh_cert = _read("DH certificate", options.dh_cert_file)
            self._terms = LaunchTerms(policy, dh_cert, _read("launch session", options.session_file))

    def prepare(self) -> tuple[str, ...]:
        """Nothing is to be set up."""
        return ()

    def launch(self, platform: Platform, memory: SharedMemory, recipe: GuestRecipe) -> Launch:
        """Launch the guest up to its measurement.

        Raises:
            FirmwareError: the session, the certificate or the policy does not fit; the message says which.
        """
        return launch_for(platform, memory, recipe, self._terms)

    def close(self) -> None:
        """Nothing was started."""


class SecretWatch:
    """Waits for the secret's files, plants what they hold and, with `start`, starts the guest.

    A packet that the platform refuses ends the guest with the platform's reason. `notify` takes a sentence for the
    user when the secret is planted.
    """

    def __init__(self, guest: Guest, files: SecretFiles, notify: Callable[[str], None], *, start: bool) -> None:
        self._guest = guest
        self._notify = notify
        self._files = files
        self._start = start
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="launch-secret", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Wait no longer."""
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        paths = (self._files.header, self._files.payload)
        before = None
        while not self._over.wait(_STEP_S) and not self._guest.started:
            now = _looks(paths)
            if now is not None and now == before:
                self._plant()
                return
            before = now

    def _plant(self) -> None:
        try:
            secret = SealedSecret.read(self._files.header, self._files.payload)
            self._guest.inject_secret(secret.header, secret.payload)
        except SealiftError as error:
            if not self._guest.started:
                self._guest.machine.cannot_start(sentence(error))
            return
        self._notify("the launch secret is in its place")
        if self._start:
            self._resume()

    def _resume(self) -> None:
        try:
            self._guest.resume()
        except SealiftError as error:
            self._guest.machine.cannot_start(sentence(error))


def _read(what: str, path: Path) -> bytes:
    """What a file holds, raw or as base64 text; whether it is of the right size the firmware says.

    Raises:
        UserError: it cannot be read, is empty, or has more bytes than any such file.
    """
    data = read(what, path, _LIMIT)
    if not data:
        raise UserError(f"the {what} {path} is empty")
    return decode_base64(data) or data


def _looks(paths: Sequence[Path]) -> list[tuple[int, int]] | None:
    """Size and time of change of every file; None while one is missing or empty."""
    try:
        found = [path.stat() for path in paths]
    except OSError:
        return None
    return [(status.st_size, status.st_mtime_ns) for status in found] if all(s.st_size for s in found) else None
