"""Requests about the platform as such: what Linux's driver for ``/dev/sev`` does with the firmware's commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sealift.sev.status import Status, failure
from sealift.silicon.processor.firmware import INIT_ES, SecureProcessor
from sealift.silicon.processor.states import PlatformState
from sealift.wire import platform as wire


class PlatformService:
    """Answers them for one secure processor, which has been through INIT.

    Attributes:
        handlers: by type of request.
    """

    def __init__(self, processor: SecureProcessor) -> None:
        self._processor = processor
        self.handlers: dict[type[wire.Message], Callable[[Any], wire.Reply]] = {
            wire.GetPlatformStatus: self._status,
            wire.PlatformReset: self._reset,
            wire.PekGen: self._pek_gen,
            wire.PekCsr: self._pek_csr,
            wire.PekCertImport: self._pek_cert_import,
            wire.PdhGen: self._pdh_gen,
            wire.GetId: self._get_id,
        }

    def _status(self, _: wire.GetPlatformStatus) -> wire.PlatformStatus:
        status = self._processor.platform_status()
        return wire.PlatformStatus(
            api_major=status.version.api_major,
            api_minor=status.version.api_minor,
            build_id=status.version.build_id,
            state=status.state,
            owned=status.owned,
            es=status.es,
            guests=status.guests,
        )

    def _reset(self, _: wire.PlatformReset) -> wire.Done:
        """PLATFORM_RESET is for state UNINIT: shut down for it, and get ready again, as Linux's driver does.

        SHUTDOWN would end a guest without asking, so with one the answer is no.
        """
        before = self._processor.platform_status()
        if before.state is PlatformState.WORKING:
            raise failure(Status.INVALID_PLATFORM_STATE, "a guest is on this platform, which a reset would end")
        self._processor.shutdown()
        try:
            self._processor.platform_reset()
        finally:
            self._processor.init(INIT_ES if before.es else 0)
        return wire.Done()

    def _pek_gen(self, _: wire.PekGen) -> wire.Done:
        self._processor.pek_gen()
        return wire.Done()

    def _pek_csr(self, _: wire.PekCsr) -> wire.PekRequest:
        return wire.PekRequest(self._processor.pek_csr())

    def _pek_cert_import(self, request: wire.PekCertImport) -> wire.Done:
        self._processor.pek_cert_import(request.pek, request.oca)
        return wire.Done()

    def _pdh_gen(self, _: wire.PdhGen) -> wire.Done:
        self._processor.pdh_gen()
        return wire.Done()

    def _get_id(self, _: wire.GetId) -> wire.PlatformId:
        return wire.PlatformId(self._processor.get_id())
