"""What DRAM holds for a page: the memory cipher a second time, one XTS call a page."""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from sealift.address import PAGE_SHIFT, RamLayout

from .windows import KEY, LAYOUT


def _cipher(page: int, layout: RamLayout) -> Cipher[modes.XTS]:
    gpa = layout.gpa(page << PAGE_SHIFT)
    return Cipher(algorithms.AES(KEY), modes.XTS(gpa.to_bytes(16, "little")))


def encrypted(page: int, plain: bytes, layout: RamLayout = LAYOUT) -> bytes:
    """Ciphertext of a page at its place."""
    encryptor = _cipher(page, layout).encryptor()
    return encryptor.update(plain) + encryptor.finalize()


def decrypted(page: int, cipher: bytes) -> bytes:
    """What the guest reads through the C-bit where DRAM holds `cipher`."""
    decryptor = _cipher(page, LAYOUT).decryptor()
    return decryptor.update(cipher) + decryptor.finalize()
