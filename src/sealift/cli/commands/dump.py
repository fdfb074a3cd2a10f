"""``sealift dump``: a guest's memory and registers as a core file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from sealift.cli.options import SizeType, examples, host_option
from sealift.cli.places import Host
from sealift.errors import UserError


class _AddressType(click.ParamType[int]):
    """A guest physical address."""

    name = "address"

    def convert(self, value: str | int, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number."""
        try:
            number = value if isinstance(value, int) else int(value, 0)
        except ValueError:
            number = -1
        if not 0 <= number < 1 << 64:
            self.fail(f"{value!r} is no address; write it like 0x100000", param, ctx)
        return number


_MIB: Final = 1 << 20


@click.command(
    "dump",
    short_help="Write a guest's memory and registers to a core file.",
    epilog=examples(
        "sealift dump demo demo.core",
        "sealift dump demo demo.core --paging && gdb vmlinux demo.core",
        "sealift dump demo start.core --begin 0x100000 --length 4M",
        "sealift dump demo seen-by-the-host.core --raw",
    ),
)
@click.argument("name")
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option(
    "--raw",
    is_flag=True,
    help="Write what DRAM shows the host: private memory in ciphertext. The policy has no say in that.",
)
@click.option(
    "--paging",
    is_flag=True,
    help="Say where memory is virtually, as the first vCPU with paging on has it, and not physically: for gdb.",
)
@click.option("--begin", type=_AddressType(), metavar="GPA", help="Only memory from this physical address on.")
@click.option("--length", type=SizeType(), help="And so much of it at most.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as a JSON object (QEMU's DumpQueryResult).")
@host_option
def command(host: Host, name: str, path: Path, *, as_json: bool, **wanted: object) -> int:
    """Write memory and registers of the guest NAME to FILE, an ELF core file, which must not exist.

    gdb and readelf open it. The guest stands still meanwhile, and goes on. Private memory is decrypted by the
    platform's secure processor, which refuses if the guest's policy has NODBG, as it has unless its owner chose
    another. FILE holds whatever secrets the guest's memory holds; nobody else can read it.

    Ctrl-C gives it up and leaves no file.
    """
    import msgspec

    from sealift.cli.dumping import dump
    from sealift.cli.qmp_client import QmpClient
    from sealift.vmm.debug.dump import DumpStatus

    if (wanted["begin"] is None) is not (wanted["length"] is None):
        raise UserError("--begin and --length go together: where physical memory begins, and how much of it")
    with QmpClient(host.run, name) as qmp:
        result, seconds, error = dump(qmp, path.absolute(), **wanted)
    if result.status is not DumpStatus.COMPLETED:
        raise UserError(f"guest {name} was not dumped: {error}")
    if as_json:
        click.echo(msgspec.json.encode(result).decode())
    else:
        click.echo(f"guest {name} is dumped to {path}: {result.completed / _MIB:.1f} MiB of memory in {seconds:.2f} s")
    if result.x_sealift_note is not None:
        click.echo(f"sealift: {result.x_sealift_note}", err=True)
    return 0
