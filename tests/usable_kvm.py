"""Whether this machine's KVM can run guests, so that tests of its engine can be run."""

from __future__ import annotations

import functools

from sealift.errors import UserError, sentence
from sealift.silicon.engines.kvm import usable


@functools.cache
def why_not() -> str:
    """Why KVM is of no use here; empty if it is."""
    try:
        usable.check()
    except UserError as error:
        return sentence(error)
    return ""
