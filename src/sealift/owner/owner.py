"""A guest owner in a directory: verifies platforms, makes launch sessions, verifies measurements, releases secrets.

A launch takes two steps. `begin` looks at the platform and writes down what must be measured; `release` looks at
the measurement, and a secret exists only after it was found equal. A VMM that asks in any other order, twice, or
for another's launch, gets a `RefusedError`, and the owner's log (`decisions`) says why.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from sealift.errors import PeerError, RefusedError, sentence
from sealift.launch.image import GuestRecipe
from sealift.launch.secrets import INSTANCE_ID_SIZE, KEY_SIZE, MigrationFlags, MigrationSecret, pair_key, snapshot_key
from sealift.owner import settings
from sealift.owner.decisions import Decision, DecisionLog, Outcome, timestamp
from sealift.owner.definition import GuestDefinition
from sealift.owner.ledger import Launch, Ledger, fresh_launch_id
from sealift.owner.receivers import ReceiverRule, require_approved, with_rule
from sealift.owner.resumption import judge
from sealift.owner.settings import RestoreRule, Settings
from sealift.privatefiles import PrivateDirectory
from sealift.sev import measurement, secret, session
from sealift.sev.ca import CaCertificate
from sealift.sev.chain import PlatformChain
from sealift.sev.measurement import FirmwareVersion
from sealift.sev.policy import Policy
from sealift.wire.handshake import Hello, decode_snapshot
from sealift.wire.obstacle import Code, Obstacle
from sealift.wire.owner import PlatformEvidence, SecretGrant, SessionGrant


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

    @property
    def root(self) -> bytes:
        """Fingerprint of the root its certificates lead to."""
        return self.chain.ark.fingerprint()


@dataclass(slots=True)
class _Case:
    """What is known of a request while it is judged, for the log."""

    what: str
    outcome: Outcome
    guest: bytes = b""
    host: bytes = b""
    launch: str = ""
    note: str = ""


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
        self._log = DecisionLog(self._directory)
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

    @property
    def log(self) -> DecisionLog:
        """What the owner decided."""
        return self._log

    def trust(self, ark: bytes) -> None:
        """Pin a root: an ARK certificate the user has from a source it trusts.

        Raises:
            StreamError: it is no ARK certificate.
        """
        self.pin(CaCertificate.decode(ark).fingerprint())

    def pin(self, fingerprint: bytes) -> None:
        """Pin a root by its ARK's fingerprint, 32 bytes.

        Raises:
            StreamError: another size.
        """
        self._change(lambda old: msgspec.structs.replace(old, roots=settings.including(old.roots, fingerprint)))

    def accept_handler(self, digest: bytes) -> None:
        """Let platforms run the migration handler with this digest."""
        self._change(lambda old: msgspec.structs.replace(old, handlers=settings.including(old.handlers, digest)))

    def set_receivers(self, rule: ReceiverRule) -> None:
        """Say where guests may go, by one more rule.

        Raises:
            StreamError: a fingerprint or an instance id of the wrong size.
        """
        self._change(lambda old: msgspec.structs.replace(old, receivers=with_rule(old.receivers, rule)))
        word = "approved" if rule.approved else "revoked"
        guest = "" if rule.guest is None else rule.guest.hex()
        decision = Decision(timestamp(self._clock()), Outcome.CHANGED, f"receivers: {word} {rule.name}", guest=guest)
        self._log.add(decision)

    def set_restores(self, rule: RestoreRule) -> None:
        """Say whether snapshots may be restored."""
        self._change(lambda old: msgspec.structs.replace(old, restores=rule))

    def resume(self, request: bytes, reason: str = "") -> bytes:
        """Let a guest run on at a source whose target was lost between FINAL and STARTED: the RESUME token.

        The caller knows that the target does not run the guest; nobody else can. The target's launch gets nothing more:
        neither a receiver nor a restore may follow from it. Asked again, the token is the same.

        Args:
            request: what the source's handler made (`sealift.wire.resume`).
            reason: why, for the log.

        Raises:
            StreamError, SealError: it does not parse, or is not of that handler.
            RefusedError: it names launches that this owner did not release for each other.
        """
        with self._judging("that a guest runs on where it was fenced", Outcome.RESUMED) as case:
            lost = judge(request, self._ledger)
            source, target = lost.source, lost.target
            case.launch, case.guest, case.host = source.launch_id, source.instance_id, source.host
            if (gone := self._ledger.why_disowned(source)) is not None:
                raise RefusedError(gone)
            migration = lost.migration.hex()
            self._ledger.disown(
                target, f"in migration {migration} the owner had the guest run on at launch {source.launch_id}"
            )
            case.note = f"migration {migration} to launch {target.launch_id} on host {target.host.hex()} is lost" + (
                f": {reason}" if reason else ""
            )
            return lost.token()

    # --- for a VMM --------------------------------------------------------------------------------------------

    def begin(self, evidence: PlatformEvidence) -> SessionGrant:
        """Start a launch of the guest; see `OwnerService.begin`."""
        with self._judging("a launch", Outcome.BEGAN) as case:
            if self._guest is None:
                raise RefusedError("this owner was given no guest to launch")
            platform = self._verify(evidence, self.settings, case)
            guest = self._guest
            return self._open(platform, guest.recipe, _fresh(guest), case)

    def begin_receiver(self, evidence: PlatformEvidence, source_measure: bytes) -> SessionGrant:
        """Start a launch that is to receive a guest; see `OwnerService.begin_receiver`."""
        with self._judging("a receiver", Outcome.BEGAN) as case:
            source = self._released(source_measure, case)
            platform = self._verify(evidence, trusted := self.settings, case)
            require_approved(trusted.receivers, platform.host, platform.root, source.instance_id)
            return self._open(platform, source.receiver, _following(source), case)

    def judge_receiver(self, evidence: PlatformEvidence, source_measure: bytes) -> tuple[Obstacle, ...]:
        """Say what `begin_receiver` would refuse; see `OwnerService.judge_receiver`."""
        obstacles, trusted = [], self.settings
        case = _Case("a receiver, asked about beforehand,", Outcome.REFUSED)
        source = self._ledger.find_released(source_measure)
        if source is None:
            obstacles.append(Obstacle(Code.OWNER, _unreleased(source_measure)))
        else:
            case.guest = source.instance_id
        if evidence.handler_digest not in trusted.handlers:
            obstacles.append(Obstacle(Code.HANDLER, _unaccepted(evidence.handler_digest)))
            trusted = msgspec.structs.replace(trusted, handlers=(*trusted.handlers, evidence.handler_digest))
        try:
            platform = self._verify(evidence, trusted, case)
            if source is not None:
                require_approved(trusted.receivers, platform.host, platform.root, source.instance_id)
        except PeerError as error:
            obstacles.append(Obstacle(Code.OWNER, sentence(error)))
        if obstacles:
            case.note = "; and ".join(obstacle.sentence for obstacle in obstacles)
            self._record(case)
        return tuple(obstacles)

    def begin_restore(self, evidence: PlatformEvidence, header: bytes) -> SessionGrant:
        """Start a launch that is to restore a snapshot; see `OwnerService.begin_restore`."""
        with self._judging("a restore", Outcome.BEGAN) as case:
            trusted = self.settings
            hello = decode_snapshot(header)
            case.what = f"a restore of snapshot {hello.migration.hex()}"
            if trusted.restores is RestoreRule.REFUSED:
                raise RefusedError(
                    f"the owner lets no snapshot be restored, and so not {hello.migration.hex()}; it can change its "
                    "mind: sealift owner restores allowed"
                )
            source = self._released(hello.party.measure, case)
            _check_snapshot(hello, source)
            platform = self._verify(evidence, trusted, case)
            require_approved(trusted.receivers, platform.host, platform.root, source.instance_id)
            return self._open(platform, source.receiver, _following(source, header), case)

    def release(self, launch_id: str, measure: bytes) -> SecretGrant:
        """Verify what was launched and release its secret; see `OwnerService.release`."""
        with self._judging("a secret", Outcome.RELEASED) as case, self._ledger.alone():
            launch = self._ledger.find(launch_id)
            if launch is None:
                raise RefusedError(f"there is no launch {launch_id!r:.80}")
            case.launch, case.guest, case.host = launch_id, launch.instance_id, launch.host
            if launch.transport is None:
                raise RefusedError(f"the secret of launch {launch_id} has been released before")
            policy = Policy(launch.policy)
            tik = launch.transport.tik
            if not measurement.matches(measure, tik, launch.version, policy, launch.launch_digest):
                raise RefusedError(f"launch {launch_id} is not what it must be: its measurement differs")
            table = secret.build_table((*launch.entries, self._migration_secret(launch, measure).entry()))
            header, payload = secret.make_packet(launch.transport, measure, table)
            self._ledger.record(launch.released(measure))
            case.note = f"its measurement is {measure.hex()}"
            return SecretGrant(header, payload)

    # --- inside -----------------------------------------------------------------------------------------------

    def _released(self, measure: bytes, case: _Case) -> Launch:
        """The launch that a guest is to leave, or that a snapshot is of."""
        found = self._ledger.find_released(measure)
        if found is None:
            raise RefusedError(_unreleased(measure))
        case.guest = found.instance_id
        if (reason := self._ledger.why_disowned(found)) is not None:
            raise RefusedError(f"what runs there must not be: {reason}")
        return found

    def _verify(self, evidence: PlatformEvidence, trusted: Settings, case: _Case) -> _Platform:
        """Demand a genuine platform whose handler is accepted."""
        chain = PlatformChain.decode(evidence.pdh, evidence.cert_chain, evidence.ca_chain)
        case.host = chain.cek.fingerprint()
        chain.verify(trusted.roots)
        version = FirmwareVersion(evidence.api_major, evidence.api_minor, evidence.build_id)
        if version.api < measurement.OLDEST_API:
            raise RefusedError(f"firmware with API {version.api} does not bind its version to measurements")
        if evidence.handler_digest not in trusted.handlers:
            raise RefusedError(_unaccepted(evidence.handler_digest))
        return _Platform(chain, version, evidence.handler_digest)

    def _open(self, platform: _Platform, recipe: GuestRecipe, terms: _Terms, case: _Case) -> SessionGrant:
        """Make the session, and write down what must be measured before anybody can use it."""
        recipe = replace(recipe, handler_digest=platform.handler_digest).under(terms.policy)
        offered = session.offer(platform.chain.pdh, terms.policy)
        launch = Launch(
            launch_id=fresh_launch_id(),
            source=terms.source,
            instance_id=terms.instance_id,
            host=platform.host,
            root=platform.root,
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
        case.launch, case.guest = launch.launch_id, launch.instance_id
        case.note = "" if terms.source is None else f"it is to follow launch {terms.source}"
        return SessionGrant(launch.launch_id, launch.policy, offered.dh_cert, offered.session)

    def _migration_secret(self, launch: Launch, measure: bytes) -> MigrationSecret:
        """What the launch's handler gets; a receiver shares a key with the handler whose guest it takes."""
        mine = MigrationSecret(launch.instance_id, launch.key, flags=MigrationFlags(launch.flags))
        if launch.source is None:
            return mine
        source = self._ledger.find(launch.source)
        if source is None:
            raise RefusedError(f"the launch {launch.source} it receives from is no longer on record")
        # Rules may have changed since the launch began.
        require_approved(self.settings.receivers, launch.host, launch.root, launch.instance_id)
        if launch.snapshot is None:
            return replace(mine, pair_key=pair_key(source.key, measure))
        if self.settings.restores is RestoreRule.REFUSED:
            raise RefusedError("the owner has come to let no snapshot be restored")
        return replace(mine, snapshot_key=snapshot_key(source.key, launch.snapshot))

    def _change(self, edit: Callable[[Settings], Settings]) -> None:
        settings.change(self._directory, edit)

    @contextmanager
    def _judging(self, what: str, outcome: Outcome) -> Iterator[_Case]:
        """Turn whatever is wrong with a request into a refusal, and log how it was decided.

        What the log does not take is not granted: the request fails with the log's error.
        """
        case = _Case(what, outcome)
        try:
            yield case
        except PeerError as error:
            case.outcome, case.note = Outcome.REFUSED, sentence(error)
            self._record(case)
            if isinstance(error, RefusedError):
                raise
            raise RefusedError(f"the owner refuses {what}") from error
        self._record(case)

    def _record(self, case: _Case) -> None:
        stamp, guest, host = timestamp(self._clock()), case.guest.hex(), case.host.hex()
        self._log.add(Decision(stamp, case.outcome, case.what, case.note, guest, host, case.launch))


def _unreleased(measure: bytes) -> str:
    return f"no released launch has the measurement {measure[:48].hex()}"


def _unaccepted(digest: bytes) -> str:
    return f"the migration handler {digest.hex()} is not an accepted one"


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
