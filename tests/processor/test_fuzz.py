"""Whatever bytes a VMM, an owner or a peer hands to the firmware, a command ends with one of its own status codes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealift.errors import StreamError, UserError
from sealift.sev import session
from sealift.sev.policy import Policy
from sealift.sev.status import Status
from sealift.silicon.processor import platformkeys
from sealift.silicon.processor.identity import PlatformIdentity
from sealift.silicon.processor.platformkeys import PlatformKeys
from sealift.silicon.processor.states import Command, GuestState, PlatformState

from .bench import Bench

Edits = list[tuple[int, bytes]]
EDITS = st.lists(st.tuples(st.integers(0, 1 << 14), st.binary(min_size=1, max_size=40)), min_size=1, max_size=3)
"""Pieces that overwrite bytes; places wrap around, so that every field is hit."""
CUTS = st.sampled_from([None, None, None, -1, 0, 16])
ONE_BENCH = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


def _edited(data: bytes, edits: Edits, cut: int | None) -> bytes:
    edited = bytearray(data)
    for place, piece in edits:
        start = place % len(data)
        edited[start : start + len(piece)] = piece[: len(data) - start]
    return bytes(edited[:cut])


@pytest.fixture
def bench(make: Callable[[], Bench]) -> Bench:
    return make()


@ONE_BENCH
@given(edits=EDITS, cut=CUTS, spoiled=st.sampled_from(["pek", "oca"]))
def test_altered_certificates_of_owners(bench: Bench, edits: Edits, cut: int | None, spoiled: str) -> None:
    """Test that an owner is let in only with certificates that hold, and otherwise nothing changes."""
    bench.put(PlatformState.INIT)
    arguments = bench.arguments(Command.PEK_CERT_IMPORT)
    altered = _edited(arguments[spoiled], edits, cut)
    status = bench.call(Command.PEK_CERT_IMPORT, {**arguments, spoiled: altered})
    told = {Status.SUCCESS, Status.INVALID_LENGTH, Status.INVALID_CERTIFICATE, Status.BAD_SIGNATURE}
    assert status in told
    assert (status is Status.INVALID_LENGTH) == (len(altered) != 2084)
    assert bench.processor._keys().externally_owned == (status is Status.SUCCESS)
    if status is Status.SUCCESS:
        assert altered[:1044] == arguments[spoiled][:1044], "what a signature covers cannot have changed"
        bench.processor.pek_gen()


@ONE_BENCH
@given(
    edits=EDITS, cut=CUTS, spoiled=st.sampled_from(["pdh", "plat_certs", "amd_certs"]), policy=st.sampled_from([0, 32])
)
def test_altered_chains_of_targets(bench: Bench, edits: Edits, cut: int | None, spoiled: str, policy: int) -> None:
    """Test that with SEV a guest goes only to a chain whose signed bytes are as they were."""
    bench.put(PlatformState.WORKING, GuestState.RUNNING)
    bench.guest.policy = Policy(policy)
    arguments = bench.arguments(Command.SEND_START)
    altered = _edited(arguments[spoiled], edits, cut)
    status = bench.call(Command.SEND_START, {**arguments, spoiled: altered})
    assert status in {Status.SUCCESS, Status.POLICY_FAILURE, Status.INVALID_LENGTH, Status.INVALID_CERTIFICATE}
    if status is Status.SUCCESS and policy:
        assert altered[:1044] == arguments[spoiled][:1044]
    else:
        assert status is not Status.POLICY_FAILURE or policy


@ONE_BENCH
@given(edits=EDITS, cut=CUTS, spoiled=st.sampled_from(["pdh", "send_session"]), policy=st.integers(0, 0xFFFF_FFFF))
def test_altered_sessions(bench: Bench, edits: Edits, cut: int | None, spoiled: str, policy: int) -> None:
    offered = session.offer(bench.processor._keys().pdh, Policy(policy))
    arguments = {"pdh": offered.dh_cert, "send_session": offered.session}
    altered = _edited(arguments[spoiled], edits, cut)
    given_to = {"memory": bench.memory, "policy": policy, **arguments, spoiled: altered}
    status = bench.call(Command.RECEIVE_START, given_to)
    assert status in {
        Status.SUCCESS,
        Status.INVALID_LENGTH,
        Status.INVALID_CERTIFICATE,
        Status.BAD_MEASUREMENT,
        Status.POLICY_FAILURE,
    }


@ONE_BENCH
@given(edits=EDITS, cut=CUTS, spoiled=st.sampled_from(["header", "payload"]), registers=st.booleans())
def test_altered_packets(bench: Bench, edits: Edits, cut: int | None, spoiled: str, registers: bool) -> None:  # noqa: FBT001
    """Test that no altered packet reaches the guest's memory."""
    command = Command.RECEIVE_UPDATE_VMSA if registers else Command.RECEIVE_UPDATE_DATA
    bench.put(PlatformState.WORKING, GuestState.RUPDATE)
    arguments = bench.arguments(command)
    altered = _edited(arguments[spoiled], edits, cut)
    before = bytes(bench.memory.private)
    status = bench.call(command, {**arguments, spoiled: altered})
    assert status in {Status.SUCCESS, Status.INVALID_LENGTH, Status.BAD_MEASUREMENT, Status.UNSUPPORTED}
    if status is Status.SUCCESS:
        assert altered == arguments[spoiled]
    else:
        assert bytes(bench.memory.private) == before


@ONE_BENCH
@given(
    header=st.binary(max_size=60),
    payload=st.binary(max_size=64),
    gpa=st.integers(-32, 1 << 70),
    length=st.integers(-16, 1 << 40),
)
def test_arbitrary_secrets_and_packets(bench: Bench, header: bytes, payload: bytes, gpa: int, length: int) -> None:
    arguments = {"handle": bench.handle, "header": header, "payload": payload, "gpa": gpa, "length": length}
    for command, state in (
        (Command.LAUNCH_SECRET, GuestState.LSECRET),
        (Command.RECEIVE_UPDATE_DATA, GuestState.RUPDATE),
    ):
        bench.put(PlatformState.WORKING, state)
        status = bench.call(command, arguments)
        assert status in {
            Status.INVALID_LENGTH,
            Status.INVALID_ADDRESS,
            Status.BAD_MEASUREMENT,
            Status.UNSUPPORTED,
        }


@ONE_BENCH
@given(
    handle=st.integers(-1, 1 << 32),
    asid=st.integers(-5, 1 << 32),
    gpa=st.integers(-16, 1 << 70),
    length=st.integers(-1, 1 << 40),
)
def test_arbitrary_numbers(bench: Bench, handle: int, asid: int, gpa: int, length: int) -> None:
    """Test that numbers out of any range end with a status, whichever command they are given to."""
    bench.put(PlatformState.WORKING, GuestState.RUNNING)
    destination = memoryview(bytearray(max(length, 0) % 8192))
    for number in (handle, bench.handle):
        bench.call(Command.ACTIVATE, {"handle": number, "asid": asid})
        bench.call(Command.DBG_DECRYPT, {"handle": number, "gpa": gpa, "destination": destination})
        bench.call(Command.LAUNCH_UPDATE_DATA, {"handle": number, "gpa": gpa, "length": length})
        bench.call(Command.SEND_UPDATE_DATA, {"handle": number, "gpa": gpa, "length": length, "trans_room": length})
        bench.call(Command.SEND_UPDATE_VMSA, {"handle": number, "vcpu": asid})
        bench.call(Command.GUEST_STATUS, {"handle": number})
    assert bench.processor.guest_status(bench.handle).state is GuestState.RUNNING


@given(edits=EDITS, cut=CUTS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_altered_platform_keys(identity: PlatformIdentity, edits: Edits, cut: int | None) -> None:
    """Test that a file of keys decodes to just these bytes, or is refused."""
    altered = _edited(identity.provision((1, 55)).encode(), edits, cut)
    try:
        assert PlatformKeys.decode(altered).encode() == altered
    except StreamError:
        return


def test_altered_platform_keys_on_disk(identity: PlatformIdentity, host_path: Path) -> None:
    """Test every byte of the head of the file, one after the other."""
    stored = host_path / "platform.keys"
    whole = identity.provision((1, 55)).encode()
    try:
        for place in range(104):
            stored.write_bytes(whole[:place] + bytes([whole[place] ^ 0x40]) + whole[place + 1 :])
            with pytest.raises(UserError, match="tampered with"):
                PlatformIdentity(host_path, Path("/nonexistent")).keys()
    finally:
        stored.write_bytes(whole)
    assert len(whole) == platformkeys.SIZE
