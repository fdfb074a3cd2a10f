"""One libvirt for all tests of a session's CPUs."""

from __future__ import annotations

import pytest

from libvirt import Virsh


@pytest.fixture(scope="module")
def virsh(tmp_path_factory: pytest.TempPathFactory) -> Virsh:
    return Virsh(tmp_path_factory.mktemp("libvirt"))
