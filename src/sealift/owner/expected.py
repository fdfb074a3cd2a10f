"""The measurement an owner expects, and what a measurement that differs is of.

`diagnose` changes one input at a time, then two, and keeps the changes that reproduce the measured value. Nothing is
guessed: an HMAC that comes out equal is of exactly these inputs. The owner's keys are needed for that, so nobody
else can do it.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from sealift.errors import StreamError, UserError
from sealift.owner.guestimage import GuestImage, digest_of
from sealift.sev import measurement
from sealift.sev.measurement import MEASUREMENT_SIZE, OLDEST_API, SIZE, FirmwareVersion
from sealift.sev.policy import Policy
from sealift.sev.session import TransportKeys

_FLAGS: Final = 1 << 6
"""Policies that differ in the flags alone."""
_BYTE: Final = 1 << 8
_TRIED_MAJORS: Final = 2
"""API majors there have been: 0 and 1."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a measurement binds besides the image.

    Attributes:
        transport: the launch session's keys.
        version: the firmware's, as the VMM says (QMP's query-sev).
        policy: the guest's.
    """

    transport: TransportKeys = field(repr=False)
    version: FirmwareVersion
    policy: Policy

    def measure(self, digest: bytes, mnonce: bytes) -> bytes:
        """The 48 bytes of LAUNCH_MEASURE."""
        return measurement.measure(self.transport.tik, self.version, self.policy, digest, mnonce)

    def matches(self, measured: bytes, digest: bytes) -> bool:
        """Whether `measured` is of this digest."""
        return hmac.compare_digest(self.measure(digest, measured[MEASUREMENT_SIZE:]), measured)

    def near(self) -> Iterator[tuple[str, Terms]]:
        """Terms that differ in one respect, those first that people get wrong most."""
        yield from self._other_policies()
        yield from self._other_keys()
        yield from self._other_builds()

    def far(self) -> Iterator[tuple[str, Terms]]:
        """More of them, too many to combine with other images: every firmware version there can be."""
        for major in range(_TRIED_MAJORS):
            for minor in range(_BYTE):
                for build in range(_BYTE):
                    yield from self._with_version(FirmwareVersion(major, minor, build))

    def _other_policies(self) -> Iterator[tuple[str, Terms]]:
        flags = sorted(range(_FLAGS), key=lambda changed: changed.bit_count())
        versions = Policy(self.policy & ~0xFFFF)
        for kept in dict.fromkeys((versions, Policy(0))):
            for changed in flags:
                policy = Policy((self.policy & 0xFFFF ^ changed) | kept)
                if policy != self.policy:
                    words = f"policy {_shown(policy)} instead of {_shown(self.policy)}"
                    yield words, replace(self, policy=policy)

    def _other_keys(self) -> Iterator[tuple[str, Terms]]:
        keys = self.transport
        yield "TEK and TIK in each other's place", replace(self, transport=TransportKeys(keys.tik, keys.tek))
        yield "no launch session (a TIK of zeros)", replace(self, transport=TransportKeys.absent())

    def _other_builds(self) -> Iterator[tuple[str, Terms]]:
        if self.version.api >= OLDEST_API:
            words = "the form of firmware before API 0.17, which binds no version"
            yield words, replace(self, version=FirmwareVersion(0, OLDEST_API[1] - 1, self.version.build_id))
        for number in range(_BYTE):
            yield from self._with_version(replace(self.version, build_id=number))
        for number in range(_BYTE):
            if (self.version.api_major, number) >= OLDEST_API:
                yield from self._with_version(replace(self.version, api_minor=number))

    def _with_version(self, version: FirmwareVersion) -> Iterator[tuple[str, Terms]]:
        if version != self.version and version.api >= OLDEST_API:
            yield f"firmware {version} instead of {self.version}", replace(self, version=version)


@dataclass(frozen=True, slots=True)
class Expectation:
    """Everything that a measurement is made from, but for its nonce."""

    image: GuestImage
    terms: Terms

    def matches(self, measured: bytes) -> bool:
        """Whether a LAUNCH_MEASURE output is the expected one.

        Raises:
            StreamError: wrong length.
            UserError: the image cannot be measured.
        """
        if len(measured) != SIZE:
            raise StreamError(f"a launch measurement has {SIZE} bytes, not {len(measured)}")
        return self.terms.matches(measured, digest_of(self.image.buffers()))

    def diagnose(self, measured: bytes) -> list[tuple[str, ...]]:
        """Which inputs would have to differ for `measured` to be right: sets of changes, as small as possible.

        Returns:
            Sets of one change, or of two if no single one does it; empty if none of those tried reproduces it.
        """
        own = digest_of(self.image.buffers())
        single: list[tuple[str, ...]] = [(words,) for words, terms in self.terms.near() if terms.matches(measured, own)]
        digests = list(self._other_digests())
        single += [(words,) for words, digest in digests if self.terms.matches(measured, digest)]
        single = single or [(words,) for words, terms in self.terms.far() if terms.matches(measured, own)]
        return single or [
            (there, here)
            for here, terms in self.terms.near()
            for there, digest in digests
            if terms.matches(measured, digest)
        ]

    def _other_digests(self) -> Iterator[tuple[str, bytes]]:
        seen = set()
        for words, image in self.image.variants():
            try:
                digest = digest_of(image.buffers())
            except (UserError, StreamError):
                continue  # such an image cannot be launched: the firmware has no place for it
            if digest not in seen:
                seen.add(digest)
                yield words, digest


def _shown(policy: Policy) -> str:
    return f"{int(policy):#x} ({policy.describe()})"
