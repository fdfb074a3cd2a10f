"""``sealift owner serve``: an owner at a socket, for VMMs that are somewhere else."""

from __future__ import annotations

import queue
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sealift.cli import guest_options as defaults
from sealift.cli.image_options import config_argument, image_options
from sealift.cli.options import examples, file_option
from sealift.cli.owner_options import chip_or_root
from sealift.cli.places import default_manufacturer, default_owner
from sealift.errors import UserError

if TYPE_CHECKING:
    from sealift.cli.owner_desk import OwnerDesk

_FOR_THE_USER = 0o600


@click.command(
    "serve",
    short_help="Answer VMMs elsewhere at a socket.",
    epilog=examples(
        "sealift owner serve --listen unix:/run/user/1000/owner.sock guest.toml --secret disk.key",
        "sealift owner serve --listen tcp:192.0.2.7:4450 --trust manufacturer.cert --kernel ledger --memory 64M",
        "sealift owner serve --listen tcp:127.0.0.1:4450 --receivers-only",
    ),
)
@config_argument
@click.option("--listen", "uri", metavar="URI", required=True, help="tcp:HOST:PORT or unix:PATH (for this user alone).")
@image_options
@file_option("--secret", "File whose content the owner plants for the guest.")
@click.option("--zero-pages", is_flag=True, help="Let the guest's migration handler leave out zero pages; see `run`.")
@click.option("--receivers-only", is_flag=True, help="Launch no guest; only say which hosts receive those it has.")
@click.option(
    "--trust", metavar="FILE|FINGERPRINT", multiple=True, help="Trust this root from now on; hosts must lead to one."
)
@click.option(
    "--owner",
    "directory",
    type=click.Path(path_type=Path),
    default=default_owner,
    show_default="the user's own",
    help="Directory of the guest owner.",
)
def command(
    uri: str,
    directory: Path,
    trust: tuple[str, ...],
    *,
    receivers_only: bool,
    **settings: Any,  # noqa: ANN401  # GuestOptions says
) -> None:
    """Be the owner of a guest for VMMs that ask at a socket (`sealift run --owner URI`), until Ctrl-C.

    CONFIG and options say which guest may be launched, as they do for `sealift run`: whatever a VMM loads, only this
    gets secrets. Several guests take as many servers, which may share a directory. Whoever can connect may ask; the
    answer is of use only to a genuine platform that launched this very guest.
    """
    from sealift.cli.owner_link import owner_address
    from sealift.cli.owner_server import OwnerServer
    from sealift.vmm.migration.transport import Listener

    desk = _desk(directory.absolute(), trust, None if receivers_only else defaults.GuestOptions(**settings))
    listener = Listener(owner_address(uri), unix_mode=_FOR_THE_USER)
    server = OwnerServer(listener, desk.answer, _say)
    ended: queue.SimpleQueue[int] = queue.SimpleQueue()  # putting is safe in a signal handler
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda which, _: ended.put(which))
    thread = threading.Thread(target=server.serve, name="owner-server", daemon=True)
    thread.start()
    _say(f"the owner answers at {listener.address}")
    ended.get()
    server.close()
    thread.join()


def _desk(directory: Path, trust: tuple[str, ...], options: defaults.GuestOptions | None) -> OwnerDesk:
    """The owner in a directory, for the guest that the options describe.

    Raises:
        UserError: it trusts no root, or the guest's files cannot be read.
    """
    from sealift.cli.assignment import assignment_of
    from sealift.cli.owner_desk import OwnerDesk, accept_installed_handler, definition_of, policy_warnings
    from sealift.owner.owner import Owner

    guest = None if options is None else definition_of(assignment_of(options, directory, default_manufacturer()))
    owner = Owner(directory, guest)
    for root in trust:
        owner.pin(chip_or_root(root, root=True))
    if not owner.settings.roots:
        raise UserError("this owner trusts no root, so no host can prove to be genuine; name one with --trust")
    for note in (*accept_installed_handler(owner), *policy_warnings(guest)):
        _say(note)
    return OwnerDesk(owner)


def _say(sentence: str) -> None:
    click.echo(f"sealift: {sentence}", err=True)
