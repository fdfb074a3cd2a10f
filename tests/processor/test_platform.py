"""Platform commands: keys, owners, certificates, ids, and several processors on one host."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from sealift.errors import FirmwareError, SealError
from sealift.sev import keys
from sealift.sev.certificate import Certificate, Usage
from sealift.sev.chain import PlatformChain
from sealift.sev.keys import Algorithm
from sealift.sev.policy import DEFAULT_POLICY
from sealift.sev.status import Status
from sealift.silicon.processor.firmware import INIT_ES, SecureProcessor
from sealift.silicon.processor.identity import PlatformIdentity
from sealift.silicon.processor.room import ShortBufferError
from sealift.silicon.processor.states import PlatformState

from .bench import sign_as_owner
from .memory import Memory, offer, status_of


def _chain(processor: SecureProcessor) -> PlatformChain:
    certificates = processor.endorsed_certificates()
    return PlatformChain.decode(certificates.pdh, certificates.cert_chain, processor.ca_chain)


@pytest.fixture
def processor(identity: PlatformIdentity) -> Iterator[SecureProcessor]:
    """A self-owned platform in state INIT."""
    made = SecureProcessor(identity)
    made.init()
    made.pek_gen()
    yield made
    made.close()


@pytest.fixture
def neighbour(processor: SecureProcessor, host_path: Path) -> Iterator[SecureProcessor]:
    """Another socket of the same host."""
    assert processor.platform_status().state is PlatformState.INIT
    made = SecureProcessor(PlatformIdentity(host_path, Path("/nonexistent")))
    made.init()
    yield made
    made.close()


# --- status and id ------------------------------------------------------------------------------------------------


def test_the_status_buffer_has_twelve_bytes(processor: SecureProcessor, memory: Memory) -> None:
    """Test the buffer byte by byte: API, state, owner, configuration, build, number of guests."""
    assert processor.platform_status().encode().hex() == "01370100" + "0000" + "00" + "19" + "00000000"
    processor.launch_start(memory, 0, b"", b"")
    assert processor.platform_status().encode().hex() == "01370200" + "0000" + "00" + "19" + "01000000"
    processor.shutdown()
    processor.init(INIT_ES)
    processor.pek_cert_import(*_signed(processor, keys.generate()))
    assert processor.platform_status().encode().hex() == "01370101" + "0100" + "00" + "19" + "00000000"
    processor.shutdown()
    assert processor.platform_status().encode().hex() == "01370000" + "0000" + "00" + "19" + "00000000"


def test_a_chips_id_is_a_point_that_lasts(processor: SecureProcessor, target: SecureProcessor) -> None:
    before = processor.get_id()
    processor.shutdown()
    assert processor.get_id() == before != target.get_id(), "in any state"
    processor.platform_reset()
    assert processor.get_id() == before, "a reset makes no other chip"
    x, y = int.from_bytes(before[:32], "big"), int.from_bytes(before[32:], "big")
    assert (y * y - x**3 - 7) % (2**256 - 2**32 - 977) == 0, "on secp256k1"


@pytest.mark.parametrize(
    ("command", "rooms", "required"),
    [
        ("get_id", (63,), (64,)),
        ("get_id", (0,), (64,)),
        ("pek_csr", (0,), (2084,)),
        ("pdh_cert_export", (0, 0), (2084, 6252)),
        ("pdh_cert_export", (2083, 6252), (2084, 6252)),
    ],
)
def test_short_buffers_are_told_the_size(
    processor: SecureProcessor, command: str, rooms: tuple[int, ...], required: tuple[int, ...]
) -> None:
    with pytest.raises(ShortBufferError) as caught:
        getattr(processor, command)(*rooms)
    assert (caught.value.status, caught.value.required) == (Status.INVALID_LENGTH, required)


# --- keys ---------------------------------------------------------------------------------------------------------


def test_pek_gen_makes_all_keys_new(processor: SecureProcessor) -> None:
    before = _chain(processor)
    processor.pek_gen()
    after = _chain(processor)
    after.verify({after.ark.fingerprint()})
    for usage in ("oca", "pek", "pdh"):
        assert getattr(before, usage).fingerprint() != getattr(after, usage).fingerprint()
    assert before.cek == after.cek


def test_pdh_gen_makes_a_new_pdh_alone_even_while_guests_exist(processor: SecureProcessor, memory: Memory) -> None:
    offered = offer(processor)
    processor.launch_start(memory, DEFAULT_POLICY, offered.dh_cert, offered.session)
    before = _chain(processor)
    processor.pdh_gen()
    after = _chain(processor)
    after.verify({after.ark.fingerprint()})
    assert (before.pek, before.oca) == (after.pek, after.oca)
    assert before.pdh.fingerprint() != after.pdh.fingerprint()
    refused = status_of(processor.launch_start, memory, DEFAULT_POLICY, offered.dh_cert, offered.session)
    assert refused is Status.BAD_MEASUREMENT, "a session made for the old PDH"


def test_a_reset_erases_all_keys_and_the_owner(processor: SecureProcessor) -> None:
    processor.pek_cert_import(*_signed(processor, keys.generate()))
    before = _chain(processor)
    processor.shutdown()
    processor.platform_reset()
    processor.init()
    after = _chain(processor)
    after.verify({after.ark.fingerprint()})
    assert not processor.platform_status().owned
    assert {before.oca.fingerprint(), before.pek.fingerprint()}.isdisjoint(
        {after.oca.fingerprint(), after.pek.fingerprint()}
    )


def test_firmware_exports_the_cek_unsigned_and_the_key_server_serves_it_signed(
    processor: SecureProcessor,
) -> None:
    exported, endorsed = processor.pdh_cert_export(), _chain(processor)
    roots = {endorsed.ark.fingerprint()}
    endorsed.verify(roots)
    bare = PlatformChain.decode(exported.pdh, exported.cert_chain, processor.ca_chain)
    assert all(slot.empty for slot in bare.cek.signatures)
    bare.verify_owner()
    with pytest.raises(SealError, match="the CEK is unsigned"):
        bare.verify(roots)


# --- owners -------------------------------------------------------------------------------------------------------


def _signed(processor: SecureProcessor, oca_key: ec.EllipticCurvePrivateKey) -> tuple[bytes, bytes]:
    pek, oca = sign_as_owner(Certificate.decode(processor.pek_csr()), oca_key)
    return pek.encode(), oca.encode()


def test_a_csr_is_the_pek_without_signatures(processor: SecureProcessor) -> None:
    csr = Certificate.decode(processor.pek_csr())
    assert csr.body() == _chain(processor).pek.body()
    assert all(slot.empty for slot in csr.signatures)


def test_an_owner_is_let_in_and_lasts(processor: SecureProcessor, host_path: Path) -> None:
    """Test that owner, PEK and endorsement hold together, that the PDH is new, and that a reboot changes nothing."""
    before, oca_key = _chain(processor), keys.generate()
    pek, oca = _signed(processor, oca_key)
    processor.pek_cert_import(pek, oca)
    after = _chain(processor)
    after.verify({after.ark.fingerprint()})
    assert after.oca.encode() == oca
    assert after.pek.body() == before.pek.body()
    assert after.pek.signatures[0] == Certificate.decode(pek).signatures[0]
    assert after.pek.signatures[1] in before.pek.signatures, "the chip's own endorsement, carried over"
    assert after.pdh.fingerprint() != before.pdh.fingerprint()
    assert processor.platform_status().owned
    again = SecureProcessor(PlatformIdentity(host_path, Path("/nonexistent")))
    again.init()
    assert again.platform_status().owned
    assert _chain(again) == after
    assert status_of(again.pek_cert_import, pek, oca) is Status.ALREADY_OWNED
    again.pek_gen()
    assert not processor.platform_status().owned


def test_an_owner_may_sign_the_second_slot(processor: SecureProcessor) -> None:
    pek, oca = (Certificate.decode(blob) for blob in _signed(processor, keys.generate()))
    data = pek.encode()
    swapped = data[:1044] + data[1564:] + data[1044:1564]
    processor.pek_cert_import(swapped, oca.encode())
    after = _chain(processor)
    after.verify({after.ark.fingerprint()})
    assert after.pek.signatures[1].usage == Usage.OCA
    assert after.pek.signatures[0].usage == Usage.CEK


def test_a_pek_without_a_free_slot_is_refused(processor: SecureProcessor) -> None:
    pek, oca = (Certificate.decode(blob) for blob in _signed(processor, keys.generate()))
    full = pek.encode()[:1564] + pek.encode()[1044:1564]
    with pytest.raises(FirmwareError, match="no free signature slot") as caught:
        processor.pek_cert_import(full, oca.encode())
    assert caught.value.status == Status.INVALID_CERTIFICATE
    assert not processor.platform_status().owned


def test_an_owner_whose_key_is_no_key_is_refused(processor: SecureProcessor) -> None:
    pek, oca = _signed(processor, keys.generate())
    off_curve = oca[:0x14] + bytes(72) + oca[0x5C:]
    with pytest.raises(FirmwareError, match="the OCA certificate is malformed") as caught:
        processor.pek_cert_import(pek, off_curve)
    assert caught.value.status == Status.INVALID_CERTIFICATE


def test_signatures_with_sha_384_are_taken_too(processor: SecureProcessor) -> None:
    oca_key = keys.generate()
    csr = Certificate.decode(processor.pek_csr())
    pek = csr.signed(Usage.OCA, oca_key, Algorithm.ECDSA_SHA384)
    oca = Certificate.of(Usage.OCA, Algorithm.ECDSA_SHA384, oca_key.public_key())
    processor.pek_cert_import(pek.encode(), oca.signed(Usage.OCA, oca_key, Algorithm.ECDSA_SHA384).encode())
    chain = _chain(processor)
    chain.verify({chain.ark.fingerprint()})


def test_what_an_owner_signed_for_another_platform_is_refused(
    processor: SecureProcessor, target: SecureProcessor
) -> None:
    pek, oca = _signed(target, keys.generate())
    with pytest.raises(FirmwareError, match="not the one of this platform's PEK_CSR"):
        processor.pek_cert_import(pek, oca)


# --- one host, several processors ---------------------------------------------------------------------------------


def test_keys_change_only_while_no_other_process_has_guests(
    processor: SecureProcessor, neighbour: SecureProcessor, memory: Memory
) -> None:
    """Test every command that changes keys while a neighbour has a guest: refused, and nothing has changed."""
    handle = neighbour.launch_start(memory, 0, b"", b"")
    before, signed = _chain(processor), _signed(processor, keys.generate())
    for change in (processor.pek_gen, processor.pdh_gen, lambda: processor.pek_cert_import(*signed)):
        with pytest.raises(FirmwareError, match="another process of this host has guests") as caught:
            change()
        assert caught.value.status == Status.INVALID_PLATFORM_STATE
    processor.shutdown()
    assert status_of(processor.platform_reset) is Status.INVALID_PLATFORM_STATE
    processor.init()
    assert _chain(processor) == before
    neighbour.decommission(handle)
    processor.pek_gen()
    assert _chain(neighbour) == _chain(processor) != before


def test_a_launch_uses_the_keys_of_now(processor: SecureProcessor, neighbour: SecureProcessor, memory: Memory) -> None:
    """Test that keys which another process changed count at once."""
    before = offer(processor)
    neighbour.pek_gen()
    refused = status_of(processor.launch_start, memory, DEFAULT_POLICY, before.dh_cert, before.session)
    assert refused is Status.BAD_MEASUREMENT
    now = offer(processor)
    processor.launch_start(memory, DEFAULT_POLICY, now.dh_cert, now.session)


def test_processors_of_one_host_have_guests_at_once(
    processor: SecureProcessor, neighbour: SecureProcessor, memory: Memory
) -> None:
    """Test that sockets share keys and id, but neither handles nor ASIDs nor the count of guests."""
    for socket in (processor, neighbour):
        offered = offer(processor)
        handle = socket.launch_start(memory, DEFAULT_POLICY, offered.dh_cert, offered.session)
        socket.activate(handle, 100)
        assert socket.platform_status().guests == 1
    assert processor.get_id() == neighbour.get_id()
    for socket in (processor, neighbour):
        assert status_of(socket.pdh_gen) is Status.INVALID_PLATFORM_STATE
    neighbour.shutdown()
    processor.pdh_gen()


def test_a_process_that_dies_lets_the_keys_go(processor: SecureProcessor, host_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from sealift.silicon.processor.firmware import SecureProcessor\n"
        "from sealift.silicon.processor.identity import PlatformIdentity\n"
        "made = SecureProcessor(PlatformIdentity(pathlib.Path(sys.argv[1]), pathlib.Path('/nonexistent')))\n"
        "made.init()\n"
        "made.launch_start(None, 0, b'', b'')\n"
        "print('launched', flush=True)\n"
        "sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", program, str(host_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "launched\n"
        assert status_of(processor.pek_gen) is Status.INVALID_PLATFORM_STATE
        child.kill()
    processor.pek_gen()


def test_keys_erased_behind_a_platforms_back_are_missed(
    processor: SecureProcessor, neighbour: SecureProcessor, memory: Memory
) -> None:
    neighbour.shutdown()
    neighbour.platform_reset()
    assert status_of(processor.launch_start, memory, 0, b"", b"") is Status.SECURE_DATA_INVALID
    assert status_of(processor.pek_csr) is Status.SECURE_DATA_INVALID
    assert processor.platform_status().state is PlatformState.INIT
    processor.shutdown()
    processor.init()
    processor.launch_start(memory, 0, b"", b"")


def test_shutdown_ends_guests_and_lets_the_keys_change(
    processor: SecureProcessor, neighbour: SecureProcessor, memory: Memory
) -> None:
    handle = processor.launch_start(memory, 0, b"", b"")
    processor.activate(handle, 100)
    processor.shutdown()
    neighbour.pek_gen()
    processor.init()
    assert processor.platform_status().guests == 0
    second = processor.launch_start(memory, 0, b"", b"")
    assert status_of(processor.activate, second, 100) is Status.DFFLUSH_REQUIRED, "caches survive a shutdown"


def test_the_chips_id_is_not_its_secret(processor: SecureProcessor, host_path: Path) -> None:
    secret = (host_path / "chip.secret").read_bytes()
    assert secret not in processor.get_id()
    assert hashlib.sha256(secret).digest() not in processor.get_id()
