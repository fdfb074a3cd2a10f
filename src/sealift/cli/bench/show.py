"""Results as text for people."""

from __future__ import annotations

from collections.abc import Sequence

from sealift.cli.bench.boot import MARGIN, BootResult
from sealift.cli.bench.debug import DebugResult
from sealift.cli.bench.exits import ExitsResult
from sealift.cli.bench.idle import IdleResult
from sealift.cli.bench.migrate import MigrateResult


def show_migration(result: MigrateResult) -> str:
    """The runs, their medians, and what they say."""
    runs = len(result.sealed_runs)
    rows = [
        ("", *(f"run {run}" for run in range(1, runs + 1)), "median"),
        ("raw pipe", *map(_rate, result.raw_pipe_runs), _rate(result.raw_pipe_bytes_per_s)),
        ("sealed, by ring", *map(_rate, result.sealed_runs), _rate(result.sealed_bytes_per_s)),
        *_rows_of_qemu(result),
        ("sealed, by packets", *map(_rate, result.packets_runs), _rate(result.packets_bytes_per_s)),
        ("sealed, by mailbox", *map(_pages, result.mailbox_runs), _pages(result.mailbox_pages_per_s)),
    ]
    return "\n".join(
        (
            f"{result.size >> 20:,} MiB of random private memory over loopback TCP{_circumstances(result)}",
            "",
            *_aligned(rows),
            "",
            f"The ring reaches {result.ratio:.2f} of the raw pipe.",
            *_ratios_to_qemu(result),
            "",
            *_processor_time(result),
        )
    )


def _processor_time(result: MigrateResult) -> list[str]:
    """What all processes compute, and the rates that as many processors cannot exceed."""
    count = result.processors
    sealed, raw, page = result.sealed_cpu_s_per_byte, result.raw_pipe_cpu_s_per_byte, result.mailbox_cpu_s_per_page
    by_ring = f"{sealed * 1e9:.2f} s/GB by ring, {raw * 1e9:.2f} s/GB in the raw pipe"
    bounds = f"at most {_rate(count / sealed)} by ring and {_pages(count / page)} by mailbox"
    return [
        f"Processor time: {by_ring}, {_micros(page)} a page by mailbox.",
        f"With {count} processors that allows {bounds}.",
    ]


def _circumstances(result: MigrateResult) -> str:
    channels = f", {result.channels} channels" if result.channels > 1 else ""
    rate = result.dirty_rate / (1 << 20)
    return channels + (f", while the guest writes up to {rate:,.1f} MiB/s by ring" if rate else "")


def _rows_of_qemu(result: MigrateResult) -> list[tuple[str, ...]]:
    measured = (
        ("QEMU, plaintext", result.qemu_plain_runs, result.qemu_plain_bytes_per_s),
        ("QEMU, TLS", result.qemu_tls_runs, result.qemu_tls_bytes_per_s),
        ("QEMU, TLS, multifd", result.qemu_multifd_tls_runs, result.qemu_multifd_tls_bytes_per_s),
    )
    return [(name, *map(_rate, runs), _rate(median)) for name, runs, median in measured if median is not None]


def _ratios_to_qemu(result: MigrateResult) -> list[str]:
    if result.qemu_plain_ratio is None:
        return []
    return [
        f"It is {result.qemu_plain_ratio:.2f} times as fast as QEMU in plaintext,",
        f"{result.qemu_tls_ratio:.2f} times as fast as QEMU with TLS,",
        f"{result.qemu_multifd_tls_ratio:.2f} times as fast as QEMU with TLS on two multifd channels.",
    ]


def show_exits(result: ExitsResult) -> str:
    """The runs, their medians, and where the time goes."""
    runs = len(result.socket_runs)
    rows = [
        ("", *(f"run {run}" for run in range(1, runs + 1)), "median"),
        ("bare ping-pong", *map(_micros, result.socket_runs), _micros(result.socket_s)),
        ("a vCPU's exchange", *map(_micros, result.link_runs), _micros(result.link_s)),
        ("exits of a guest", *map(_micros, result.guest_runs), _micros(result.guest_s)),
    ]
    rest = _micros(result.guest_s - result.link_s)
    return "\n".join(
        (
            f"{result.exits:,} round trips between two processes; port writes of a guest on engine {result.engine}",
            "",
            *_aligned(rows),
            "",
            f"A vCPU's exchange takes {result.ratio:.2f} of the bare ping-pong.",
            f"A guest's exit takes {result.guest_ratio:.2f} of it: {rest} are the engine's and the vCPU threads'.",
        )
    )


def show_boot(result: BootResult) -> str:
    """The boots, the exits of the median one, and what they come to."""
    boot, vcpus = result.boot, f"{result.vcpus} vCPU{'s' if result.vcpus != 1 else ''}"
    rows = [
        ("", *(f"run {run}" for run in range(1, len(result.boot_runs) + 1)), "median"),
        ("to its init", *map(_seconds, result.boot_runs), _seconds(boot.seconds)),
    ]
    if result.against_s is not None:
        rows.append(("the other command", *map(_seconds, result.against_runs), _seconds(result.against_s)))
    exits = [(kind, f"{count:,}") for kind, count in boot.exits.items()] + [("all exits", f"{boot.count:,}")]
    return "\n".join(
        (
            f"Linux {boot.kernel} with {vcpus} and {result.memory >> 20:,} MiB boots on engine {result.engine}",
            "",
            *_aligned(rows),
            "",
            *_aligned(exits),
            "",
            f"A vCPU's exchange takes {_micros(result.link_s)}, a bare ping-pong {_micros(result.socket_s)}.",
            f"At an exchange each, the exits are {result.exits_share:.1%} of the boot.",
            *_bound(result),
        )
    )


def _bound(result: BootResult) -> list[str]:
    """How it stands beside the other command."""
    if result.bound_s is None:
        return []
    held = "keeps within" if result.boot.seconds <= result.bound_s else "is over"
    parts = f"the other command's time, a ping-pong for each exit, and {MARGIN:.0%}"
    return [f"The boot {held} {_seconds(result.bound_s)}: {parts}."]


def show_idle(result: IdleResult) -> str:
    """A line a guest."""
    span = result.guests[0].span_s
    rows = [("guest RAM", "VMM", "platform", "VMM's peak, sending", "receiving", "a round", "downtime")]
    rows += [
        (
            f"{guest.memory >> 20:,} MiB",
            f"{guest.vmm_cpu_s * 1e3:.1f} ms",
            f"{guest.platform_cpu_s * 1e3:.1f} ms",
            f"{guest.source_vmm_peak_bytes / (1 << 20):.1f} MiB",
            f"{guest.target_vmm_peak_bytes / (1 << 20):.1f} MiB",
            f"{guest.round_s * 1e3:.2f} ms",
            f"{guest.downtime_s * 1e3:.1f} ms",
        )
        for guest in result.guests
    ]
    title = f"Processor time of idle guests in {span:.0f} s, peak memory, and what their moves take beside pages"
    return "\n".join((title, "", *_aligned(rows)))


def show_debug(result: DebugResult) -> str:
    """The runs, their medians, and the ratio."""
    rows = [
        ("", *(f"run {run}" for run in range(1, len(result.read_runs) + 1)), "median"),
        ("reads, SEV", *map(_rate, result.read_runs), _rate(result.read_bytes_per_s)),
        ("reads, plain", *map(_rate, result.plain_read_runs), _rate(result.plain_read_bytes_per_s)),
        ("dump, SEV", *map(_rate, result.dump_runs), _rate(result.dump_bytes_per_s)),
        ("dump, plain", *map(_rate, result.plain_dump_runs), _rate(result.plain_dump_bytes_per_s)),
    ]
    title = f"{result.size >> 20:,} MiB of random memory, read by {result.read_size >> 10} KiB, and dumped to a file"
    ratio = f"A decrypted dump reaches {result.dump_ratio:.2f} of a plain guest's."
    return "\n".join((title, "", *_aligned(rows), "", ratio))


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns: the first to the left, figures to the right."""
    rows = [[f"  {first}", *rest] for first, *rest in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "   ".join(
            cell.ljust(width) if number == 0 else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _micros(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.2f} GB/s"


def _pages(pages_per_s: float) -> str:
    return f"{pages_per_s:,.0f} pages/s"
