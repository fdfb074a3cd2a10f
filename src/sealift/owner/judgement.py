"""An owner's judgement of a platform by its certificates: do they hold together, up to a root that the owner trusts?"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from sealift.sev.ca import AMD_KEY_IDS, NOT_AMD, CaCertificate
from sealift.sev.certfile import CertificateSet, Layout, Link


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found.

    Attributes:
        links: every signature that could be checked.
        faults: all that keeps the certificates from proving anything, in sentences; empty for a genuine platform.
    """

    links: tuple[Link, ...]
    faults: tuple[str, ...]

    @property
    def genuine(self) -> bool:
        """Whether everything is there, valid, and under a trusted root."""
        return not self.faults


def judge(certificates: CertificateSet, roots: Collection[bytes]) -> Judgement:
    """Judge certificates by the fingerprints of the roots that are trusted.

    A file of a manufacturer's certificates alone is judged as such; anything else as a platform's chain.
    """
    links = tuple(certificates.links())
    faults = [link.fault for link in links if link.fault]
    # A PDH that no longer holds is named once, by its first link.
    return Judgement(links, tuple(dict.fromkeys((*faults, *_missing(certificates), *_untrusted(certificates, roots)))))


def whose(root: CaCertificate) -> str:
    """Whose root it says it is, in words for a person."""
    if root.key_id.startswith(NOT_AMD):
        return "a Sealift manufacturer's, not AMD's"
    generation = AMD_KEY_IDS.get(root.key_id)
    if generation is not None:
        return f"with the key id of AMD's {generation} root, which anybody can write; its fingerprint is what counts"
    return "of an unknown manufacturer"


def _missing(certificates: CertificateSet) -> Iterator[str]:
    authorities = set(Layout.CA.usages)
    needed = Layout.CA if authorities.issuperset(certificates.certificates) else Layout.FULL
    missing = certificates.missing(needed)
    if not missing:
        return
    names = _listed([usage.name for usage in missing])
    if authorities.issuperset(missing):
        yield f"the manufacturer's certificates ({names}) are missing: give them with --ca"
    else:
        yield f"the chain is incomplete: {names} {'is' if len(missing) == 1 else 'are'} missing"


def _untrusted(certificates: CertificateSet, roots: Collection[bytes]) -> Iterator[str]:
    root = certificates.root
    if root is not None and root.fingerprint() not in roots:
        yield (
            f"the root is {whose(root)}, and not one that is trusted here; if you have the same from a source you "
            f"trust, say --trust {root.fingerprint().hex()}"
        )


def _listed(names: list[str]) -> str:
    """``A``, ``A and B``, ``A, B and C``."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
