"""``sealift run``: a guest in the foreground."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import click
from click.core import ParameterSource

from sealift.cli import guest_options as defaults
from sealift.cli.image_options import config_argument, image_options
from sealift.cli.options import engine_option, examples, file_option, host_option
from sealift.cli.places import Host, Places, default_manufacturer, default_owner, owner_place

_LAUNCH_ONLY: Final = (
    *("memory", "vcpus", "kernel", "initrd", "payload", "append", "policy", "secret", "zero_pages"),
    *("dh_cert_file", "session_file", "launch_secret", "no_owner", "paused", "cpu"),
)


@click.command(
    "run",
    short_help="Launch a guest, or wait for one to arrive, and run it here.",
    epilog=examples(
        "sealift run --name demo --kernel ledger --memory 64M",
        "sealift run guest.toml --secret disk.key",
        "sealift run --kernel vmlinuz --initrd initrd.img --append console=ttyS0",
        "sealift run --name demo --host /srv/other --incoming tcp:0.0.0.0:4444",
        "sealift run --name again --restore demo.snap",
        "sealift run --name demo --owner tcp:192.0.2.7:4450",
        "sealift run --name open --type plain",
        "sealift run --kernel vmlinuz --cpu ./both-hosts.json",
        "sealift run --policy nodbg,nosend --dh-cert-file vm_godh.b64 --session-file vm_session.b64",
    ),
)
@config_argument
@click.option("--name", default=defaults.DEFAULT_NAME, show_default=True, help="What to call the guest on this host.")
@click.option(
    "--type",
    type=click.Choice([kind.value for kind in defaults.GuestType]),
    default=defaults.GuestType.SEV.value,
    show_default=True,
    help="Confidential (sev; sev-es is up to --policy), or plain: nothing is encrypted, and the host sees everything. "
    "With --incoming: what may arrive.",
)
@image_options
@file_option("--secret", "File whose content the owner plants for the guest.")
@click.option(
    "--zero-pages",
    is_flag=True,
    help="Let the guest's migration handler leave out what zero pages contain: faster, but hosts learn which they are.",
)
@click.option(
    "--disk",
    "disks",
    metavar="PATH[,ro]",
    multiple=True,
    help="Disk image for Linux's /dev/vda, then /dev/vdb; with --incoming and --restore those that the guest has.",
)
@engine_option
@click.option(
    "--cpu",
    metavar="MODEL|FILE|host",
    default=defaults.DEFAULT_CPU,
    show_default=True,
    help="The CPU that the guest sees, as `sealift cpu` has them (EPYC-v1,-svm), so that it can move to every host "
    "that can give it; host is all that the engine can give here.",
)
@file_option(
    "--dh-cert-file", "Diffie-Hellman certificate of an owner elsewhere, raw or base64; the local one is not asked."
)
@file_option(
    "--session-file", "Launch session that this owner made for the host's PDH and for --policy, raw or base64."
)
@click.option(
    "--launch-secret",
    metavar="HEADER:PAYLOAD",
    help="Files in which this owner will leave its secret, raw or base64: when both are there, the guest is started.",
)
@click.option(
    "--no-owner",
    is_flag=True,
    help="Ask no owner and launch without a session, as QEMU does by default; proves nothing to anybody.",
)
@click.option(
    "-S",
    "--paused",
    is_flag=True,
    help="Do not start the guest until QMP's cont; implied by --session-file, so that the measurement can be "
    "validated and a secret injected first.",
)
@click.option(
    "--incoming",
    metavar="URI",
    help="Wait for a guest to arrive at tcp:HOST:PORT, unix:PATH, fd:N or exec:COMMAND; with `defer`, where QMP's "
    "migrate-incoming says. With file:PATH[,offset=N]: load a plain guest that was migrated to that file.",
)
@click.option(
    "--qmp",
    metavar="URI",
    multiple=True,
    help="Serve QMP at unix:PATH, or on this machine at tcp:127.0.0.1:PORT, too.",
)
@click.option(
    "--monitor",
    metavar="URI",
    multiple=True,
    help="Serve the human monitor (`sealift monitor`) at unix:PATH, or on this machine at tcp:127.0.0.1:PORT, too.",
)
@click.option(
    "--gdb",
    metavar="URI",
    help="Serve gdb at unix:PATH, or on this machine at tcp::PORT (`target remote`), as far as the policy allows it.",
)
@file_option("--restore", "Run the guest that `sealift snapshot` saved to this file, if its owner releases it.")
@click.option(
    "--downtime-limit",
    type=click.IntRange(min=0),
    default=defaults.DEFAULT_DOWNTIME_LIMIT_MS,
    show_default=True,
    metavar="MS",
    help="For migrations away from here.",
)
@click.option(
    "--tls-creds",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="With --incoming: take guests over TLS only. The directory holds ca-cert.pem, server-cert.pem and "
    "server-key.pem, or keys.psk, as QEMU's; for migrations away from here client-cert.pem and client-key.pem.",
)
@click.option(
    "--prealloc", is_flag=True, help="With --incoming or --restore: touch all guest memory first, which is faster."
)
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="Serve metrics for Prometheus there, or at unix:PATH; whoever can connect can read them.",
)
@click.option("--quiet", is_flag=True, help="Do not show the guest's console.")
@click.option("-v", "--verbose", is_flag=True, help="Say which engine runs the guest, and why.")
@click.option(
    "--owner",
    metavar="DIRECTORY|URI",
    default=default_owner,
    show_default="the user's own",
    help="The guest owner: its directory, or where `sealift owner serve` listens (tcp:HOST:PORT or unix:PATH).",
)
@host_option
def command(
    host: Host,
    owner: str | Path,
    incoming: str | None,
    restore: Path | None,
    disks: tuple[str, ...],
    launch_secret: str | None,
    *,
    quiet: bool,
    **settings: Any,  # noqa: ANN401  # GuestOptions says
) -> int:
    """Run one guest in the foreground, its console on standard output.

    CONFIG is a TOML file with the options' long names as keys; options given here win. Ctrl-C ends the guest.

    A guest is launched by the local owner unless another one's session is given: then it is measured and waits, like
    QEMU's sev-guest, for its secret (QMP: sev-inject-launch-secret) and for the word to run (QMP: cont).
    """
    from sealift.cli.foreground import Endpoints, run_in_foreground
    from sealift.cli.rundir import check_name
    from sealift.cli.wiring import HostedGuest, start_guest, start_incoming, start_restored
    from sealift.vmm.metrics import MetricsEndpoint

    endpoints = Endpoints(**{name: settings.pop(name) for name in ("qmp", "monitor", "gdb")})
    metrics = settings.pop("metrics")
    options = defaults.GuestOptions(
        downtime_limit_ms=settings.pop("downtime_limit"),
        disks=tuple(defaults.DiskPath.parse(disk) for disk in disks),
        type=defaults.GuestType(settings.pop("type")),
        launch_secret=None if launch_secret is None else defaults.SecretFiles.parse(launch_secret),
        **settings,
    )
    if incoming is not None and restore is not None:
        raise click.UsageError("a guest comes either by --incoming or by --restore", click.get_current_context())
    check_name(options.name)
    places = Places(host, owner_place(owner), default_manufacturer())

    def start() -> HostedGuest:
        if metrics is None:
            return begin()
        endpoint = MetricsEndpoint(metrics)
        try:
            hosted = begin()
        except BaseException:
            endpoint.close()
            raise
        endpoint.serve(hosted.guest)
        hosted.end_with(endpoint.close)
        _say(f"metrics are at {endpoint.shown}")
        return hosted

    def begin() -> HostedGuest:
        if restore is not None:
            _check_unused(click.get_current_context(), "--restore")
            if options.type is defaults.GuestType.PLAIN:
                raise click.UsageError("no snapshot holds a plain guest; it comes back with --incoming file:PATH")
            return start_restored(restore, options, places, _say)
        if incoming is None:
            if options.prealloc:
                raise click.UsageError("--prealloc is for a guest that arrives; it needs --incoming or --restore")
            return start_guest(options, places, _say)
        _check_unused(click.get_current_context(), "--incoming")
        return start_incoming(incoming, options, places, _say)

    return run_in_foreground(host, options.name, start, _say, None if quiet else sys.stdout.buffer, endpoints)


def _check_unused(ctx: click.Context, way: str) -> None:
    """Refuse options that say how a guest is launched; a configuration file may serve both of its hosts."""
    for name in _LAUNCH_ONLY:
        if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"--{name.replace('_', '-')} has no use with {way}: the guest that comes was launched elsewhere",
                ctx,
            )


def _say(sentence: str) -> None:
    click.echo(f"sealift: {sentence}", err=True)
