"""A guest owner in a directory: verifies platforms, makes launch sessions, verifies measurements, releases secrets.

A launch takes two steps. `begin` looks at the platform and writes down what must be measured; `release` looks at
the measurement, and a secret exists only after it was found equal. A VMM that asks in any other order, twice, or
for another's launch, gets a `RefusedError`, and a line in the owner's log.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from sealift.errors import PeerError, RefusedError, sentence
from sealift.launch.image import GuestRecipe
from sealift.launch.secrets import INSTANCE_ID_SIZE, KEY_SIZE, MigrationFlags, MigrationSecret, pair_key, snapshot_key
from sealift.owner import settings
from sealift.owner.definition import GuestDefinition
from sealift.owner.ledger import Launch, Ledger, fresh_launch_id
from sealift.owner.settings import ReceiverRule, RestoreRule, Settings
from sealift.privatefiles import PrivateDirectory
from sealift.sev import measurement, secret, session
from sealift.sev.ca import CaCertificate
from sealift.sev.chain import PlatformChain
from sealift.sev.measurement import FirmwareVersion
from sealift.sev.policy import Policy
from sealift.wire.handshake import Hello, decode_snapshot
from sealift.wire.owner import PlatformEvidence, SecretGrant, SessionGrant

LOG_FILE: Final = "owner.log"


@dataclass(frozen=True, slots=True)
class _Platform:
    """A platform that was verified."""

    chain: PlatformChain
    version: FirmwareVersion
    handler_digest: bytes

    @property
    def host(self) -> bytes:
        """Fingerprint of the chip."""
        return self.chain.cek.fingerprint()


class Owner:
    """One owner; implements `sealift.wire.owner.OwnerService`.

    Args:
        path: the owner's directory, private to the user.
        guest: what it launches; without, it only serves receivers and releases of launches it knows.
        clock: seconds since the epoch, for the log.

    Raises:
        UserError: the directory is damaged or open to others.
    """

    def __init__(
        self, path: Path, guest: GuestDefinition | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self._directory = PrivateDirectory(path, "owner")
        self._ledger = Ledger(path)
        self._guest = guest
        self._clock = clock

    # --- for the owner's user ---------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """Whom the owner trusts."""
        return settings.load(self._directory)

    @property
    def ledger(self) -> Ledger:
        """The owner's launches."""
        return self._ledger

    def trust(self, ark: bytes) -> None:
        """Pin a root: an ARK certificate the user has from a source it trusts.

        Raises:
            StreamError: it is no ARK certificate.
        """
        fingerprint = CaCertificate.decode(ark).fingerprint()
        self._change(lambda old: msgspec.structs.replace(old, roots=settings.including(old.roots, fingerprint)))

    def accept_handler(self, digest: bytes) -> None:
        """Let platforms run the migration handler with this digest."""
        self._change(lambda old: msgspec.structs.replace(old, handlers=settings.including(old.handlers, digest)))

    def approve_host(self, fingerprint: bytes) -> None:
        """Put a host, by its CEK's fingerprint, on the list that rule LISTED asks for."""
        self._change(lambda old: msgspec.structs.replace(old, hosts=settings.including(old.hosts, fingerprint)))

    def set_receivers(self, rule: ReceiverRule) -> None:
        """Say where guests may go."""
        self._change(lambda old: msgspec.structs.replace(old, receivers=rule))

    def set_restores(self, rule: RestoreRule) -> None:
        """Say whether snapshots may be restored."""
        self._change(lambda old: msgspec.structs.replace(old, restores=rule))

    # --- for a VMM --------------------------------------------------------------------------------------------

    def begin(self, evidence: PlatformEvidence) -> SessionGrant:
        """Start a launch of the guest; see `OwnerService.begin`."""
        with self._judging("a launch"):
            if self._guest is None:
                raise RefusedError("this owner was given no guest to launch")
            platform = self._verify(evidence, self.settings)
            guest = self._guest
            return self._open(platform, guest.recipe, _fresh(guest))

    def begin_receiver(self, evidence: PlatformEvidence, source_measure: bytes) -> SessionGrant:
        """Start a launch that is to receive a guest; see `OwnerService.begin_receiver`."""
        with self._judging("a receiver"):
            source = self._released(source_measure)
            platform = self._verify_receiver(evidence, self.settings)
            return self._open(platform, source.receiver, _following(source))

    def begin_restore(self, evidence: PlatformEvidence, header: bytes) -> SessionGrant:
        """Start a launch that is to restore a snapshot; see `OwnerService.begin_restore`."""
        with self._judging("a restore"):
            trusted = self.settings
            hello = decode_snapshot(header)
            if trusted.restores is RestoreRule.REFUSED:
                raise RefusedError(
                    f"the owner lets no snapshot be restored, and so not {hello.migration.hex()}; it can change its "
                    "mind: sealift owner restores allowed"
                )
            source = self._released(hello.party.measure)
            _check_snapshot(hello, source)
            platform = self._verify_receiver(evidence, trusted)
            return self._open(platform, source.receiver, _following(source, header))

    def release(self, launch_id: str, measure: bytes) -> SecretGrant:
        """Verify what was launched and release its secret; see `OwnerService.release`."""
        with self._judging("a secret"), self._ledger.alone():
            launch = self._ledger.find(launch_id)
            if launch is None:
                raise RefusedError(f"there is no launch {launch_id!r:.80}")
            if launch.transport is None:
                raise RefusedError(f"the secret of launch {launch_id} has been released before")
            policy = Policy(launch.policy)
            tik = launch.transport.tik
            if not measurement.matches(measure, tik, launch.version, policy, launch.launch_digest):
                raise RefusedError(f"launch {launch_id} is not what it must be: its measurement differs")
            table = secret.build_table((*launch.entries, self._migration_secret(launch, measure).entry()))
            header, payload = secret.make_packet(launch.transport, measure, table)
            self._ledger.record(launch.released(measure))
            self._log(f"released the secret of launch {launch_id}, measurement {measure.hex()}")
            return SecretGrant(header, payload)

    # --- inside -----------------------------------------------------------------------------------------------

    def _released(self, measure: bytes) -> Launch:
        """The launch that a guest is to leave, or that a snapshot is of."""
        found = self._ledger.find_released(measure)
        if found is None:
            raise RefusedError(f"no released launch has the measurement {measure[:48].hex()}")
        return found

    def _verify_receiver(self, evidence: PlatformEvidence, trusted: Settings) -> _Platform:
        """Demand a platform to which guests may go."""
        platform = self._verify(evidence, trusted)
        if trusted.receivers is ReceiverRule.LISTED and platform.host not in trusted.hosts:
            raise RefusedError(f"host {platform.host.hex()} is not on the owner's list of receivers")
        return platform

    def _verify(self, evidence: PlatformEvidence, trusted: Settings) -> _Platform:
        """Demand a genuine platform whose handler is accepted."""
        chain = PlatformChain.decode(evidence.pdh, evidence.cert_chain, evidence.ca_chain)
        chain.verify(trusted.roots)
        version = FirmwareVersion(evidence.api_major, evidence.api_minor, evidence.build_id)
        if version.api < measurement.OLDEST_API:
            raise RefusedError(f"firmware with API {version.api} does not bind its version to measurements")
        if evidence.handler_digest not in trusted.handlers:
            raise RefusedError(f"the migration handler {evidence.handler_digest.hex()} is not an accepted one")
        return _Platform(chain, version, evidence.handler_digest)

    def _open(self, platform: _Platform, recipe: GuestRecipe, terms: _Terms) -> SessionGrant:
        """Make the session, and write down what must be measured before anybody can use it."""
        recipe = replace(recipe, handler_digest=platform.handler_digest).under(terms.policy)
        offered = session.offer(platform.chain.pdh, terms.policy)
        launch = Launch(
            launch_id=fresh_launch_id(),
            source=terms.source,
            instance_id=terms.instance_id,
            host=platform.host,
            version=platform.version,
            policy=int(terms.policy),
            launch_digest=recipe.launch_digest(),
            receiver=recipe.receiver(),
            key=os.urandom(KEY_SIZE),
            flags=int(terms.flags),
            entries=terms.entries,
            transport=offered.transport,
            snapshot=terms.snapshot,
        )
        self._ledger.record(launch)
        self._log(f"began launch {launch.launch_id} of {_purpose(terms)} on host {platform.host.hex()}")
        return SessionGrant(launch.launch_id, launch.policy, offered.dh_cert, offered.session)

    def _migration_secret(self, launch: Launch, measure: bytes) -> MigrationSecret:
        """What the launch's handler gets; a receiver shares a key with the handler whose guest it takes."""
        mine = MigrationSecret(launch.instance_id, launch.key, flags=MigrationFlags(launch.flags))
        if launch.source is None:
            return mine
        source = self._ledger.find(launch.source)
        if source is None:
            raise RefusedError(f"the launch {launch.source} it receives from is no longer on record")
        if launch.snapshot is None:
            return replace(mine, pair_key=pair_key(source.key, measure))
        if self.settings.restores is RestoreRule.REFUSED:
            raise RefusedError("the owner has come to let no snapshot be restored")
        return replace(mine, snapshot_key=snapshot_key(source.key, launch.snapshot))

    def _change(self, edit: Callable[[Settings], Settings]) -> None:
        settings.change(self._directory, edit)

    @contextmanager
    def _judging(self, what: str) -> Iterator[None]:
        """Turn whatever is wrong with a request into a refusal, and log it."""
        try:
            yield
        except PeerError as error:
            self._log(f"refused {what}: {sentence(error)}")
            if isinstance(error, RefusedError):
                raise
            raise RefusedError(f"the owner refuses {what}") from error

    def _log(self, line: str) -> None:
        """Write one line; what a VMM put into a message cannot make it two."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock()))
        printable = "".join(char if char.isprintable() else "?" for char in line)
        self._directory.append(LOG_FILE, f"{stamp} {printable}")


@dataclass(frozen=True, slots=True)
class _Terms:
    """What a launch is granted, whatever platform it is on."""

    source: str | None
    policy: Policy
    instance_id: bytes
    flags: MigrationFlags
    entries: tuple[secret.SecretEntry, ...]
    snapshot: bytes | None = None


def _fresh(guest: GuestDefinition) -> _Terms:
    """The terms of a guest's own launch: a new instance, with the guest's secrets."""
    return _Terms(None, guest.policy, os.urandom(INSTANCE_ID_SIZE), guest.flags, guest.entries)


def _following(source: Launch, snapshot: bytes | None = None) -> _Terms:
    """The terms of a receiver: those of the guest that is to arrive, whose secrets come with its memory."""
    flags = MigrationFlags(source.flags)
    return _Terms(source.launch_id, Policy(source.policy), source.instance_id, flags, (), snapshot)


def _purpose(terms: _Terms) -> str:
    """What a launch is for, in the log's words."""
    if terms.source is None:
        return "the guest"
    if terms.snapshot is None:
        return f"a receiver for launch {terms.source}"
    return f"a restore of snapshot {decode_snapshot(terms.snapshot).migration.hex()} of launch {terms.source}"


def _check_snapshot(hello: Hello, source: Launch) -> None:
    """A header must say of the guest what is on record; the handler, which knows more, looks again.

    Raises:
        RefusedError: it does not.
    """
    claimed, known = hello.party, source.receiver
    stated = {
        "instance id": (claimed.instance, source.instance_id),
        "policy": (claimed.policy, source.policy),
        "RAMBlock table": (claimed.layout, known.layout),
        "number of vCPUs": (claimed.vcpus, known.vcpus),
    }
    differing = [what for what, (says, is_) in stated.items() if says != is_]
    if differing:
        raise RefusedError(f"snapshot {hello.migration.hex()} is not of that launch: its {', '.join(differing)} differ")
