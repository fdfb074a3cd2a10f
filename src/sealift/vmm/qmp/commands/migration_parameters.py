"""A migration's parameters and capabilities under QEMU's names: all the guest's, or those of one command alone."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import msgspec

from sealift.vmm.migration.parameters import Capability, Parameters, Throttling
from sealift.wire.handover import Method, Transfer

T = TypeVar("T")


class CapabilityStatus(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """QEMU's MigrationCapabilityStatus."""

    capability: Capability
    state: bool


class MigrationParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", omit_defaults=True):
    """QEMU's MigrationParameters as far as they exist here; milliseconds, and bytes a second.

    `x_sealift_method` says who encrypts the guest, and then `x_sealift_transfer` how records leave the migration
    handler (mh) and, with capability multifd, `multifd_channels` in how many streams; `x_sealift_packet_pages` how
    large packets are (psp). For `x_sealift_resume_window` seconds a target keeps what had come when its source was lost
    (mh). `tls_creds` is a directory here, since there are no QEMU objects to name.
    """

    downtime_limit: int | None = None
    max_bandwidth: int | None = None
    max_postcopy_bandwidth: int | None = None
    multifd_channels: int | None = None
    cpu_throttle_initial: int | None = None
    cpu_throttle_increment: int | None = None
    cpu_throttle_tailslow: bool | None = None
    max_cpu_throttle: int | None = None
    throttle_trigger_threshold: int | None = None
    tls_creds: str | None = None
    tls_hostname: str | None = None
    x_sealift_transfer: Transfer | None = None
    x_sealift_method: Method | None = None
    x_sealift_packet_pages: int | None = None
    x_sealift_resume_window: int | None = None

    @classmethod
    def of(cls, parameters: Parameters) -> MigrationParameters:
        """In QEMU's names."""
        throttling = parameters.throttling
        return cls(
            downtime_limit=parameters.downtime_limit_ms,
            max_bandwidth=parameters.max_bandwidth,
            max_postcopy_bandwidth=parameters.max_postcopy_bandwidth,
            multifd_channels=parameters.multifd_channels,
            cpu_throttle_initial=throttling.initial,
            cpu_throttle_increment=throttling.increment,
            cpu_throttle_tailslow=throttling.tailslow,
            max_cpu_throttle=throttling.maximum,
            throttle_trigger_threshold=throttling.trigger_threshold,
            tls_creds=parameters.tls_creds,
            tls_hostname=parameters.tls_hostname,
            x_sealift_transfer=parameters.transfer,
            x_sealift_method=parameters.method,
            x_sealift_packet_pages=parameters.packet_pages,
            x_sealift_resume_window=parameters.resume_window_s,
        )

    def apply(self, to: Parameters) -> Parameters:
        """The parameters with those changed that are given."""
        return replace(
            to,
            downtime_limit_ms=_or(self.downtime_limit, to.downtime_limit_ms),
            max_bandwidth=_or(self.max_bandwidth, to.max_bandwidth),
            max_postcopy_bandwidth=_or(self.max_postcopy_bandwidth, to.max_postcopy_bandwidth),
            multifd_channels=_or(self.multifd_channels, to.multifd_channels),
            throttling=self._throttling(to.throttling),
            tls_creds=_or(self.tls_creds, to.tls_creds),
            tls_hostname=_or(self.tls_hostname, to.tls_hostname),
            transfer=self.x_sealift_transfer or to.transfer,
            method=self.x_sealift_method or to.method,
            packet_pages=_or(self.x_sealift_packet_pages, to.packet_pages),
            resume_window_s=_or(self.x_sealift_resume_window, to.resume_window_s),
        )

    def _throttling(self, to: Throttling) -> Throttling:
        return Throttling(
            initial=_or(self.cpu_throttle_initial, to.initial),
            increment=_or(self.cpu_throttle_increment, to.increment),
            tailslow=_or(self.cpu_throttle_tailslow, to.tailslow),
            maximum=_or(self.max_cpu_throttle, to.maximum),
            trigger_threshold=_or(self.throttle_trigger_threshold, to.trigger_threshold),
        )


class Once(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a command wants otherwise than the guest's parameters are, for itself alone."""

    parameters: MigrationParameters = msgspec.field(default_factory=MigrationParameters, name="x-sealift-parameters")
    capabilities: tuple[CapabilityStatus, ...] = msgspec.field(default=(), name="x-sealift-capabilities")

    def apply(self, to: Parameters) -> Parameters:
        """The guest's parameters with that."""
        wanted = dict.fromkeys(to.capabilities, True) | {each.capability: each.state for each in self.capabilities}
        on = frozenset(capability for capability, is_on in wanted.items() if is_on)
        return replace(self.parameters.apply(to), capabilities=on)


def _or(value: T | None, default: T) -> T:
    return default if value is None else value
