"""The rig: a machine with a real kvm-amd, anywhere: ``python -m sealift.cli.linux.rig COMMAND …``.

QEMU's software emulation has SVM with nested paging. A Debian kernel is booted in it, sees this machine's whole file
system over 9p with a layer of memory above (so everything can be written, and nothing is), and runs one command as
root::

    this machine                     in QEMU
    COMMAND's stdout, stderr  ◄────  virtio serial ports ◄── COMMAND, with /dev/kvm
    exit status               ◄────  another one
    a beat from each CPU      ◄────  another one             the rig fails if it stops
    log of the kernel         ◄────  ttyS0                   shown only if the rig fails

It is about 20 times slower than the machine it runs on. Inside, physical addresses have 40 bits, so the C-bit is 39
at most. Exit status: the command's own; 124 if it took too long, 125 if the rig failed.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import click

from sealift.cli.linux.cpio import Archive
from sealift.cli.linux.initramfs import initramfs
from sealift.cli.linux.kernels import KernelWish, kernel
from sealift.cli.linux.packages import tool
from sealift.cli.places import cache_directory
from sealift.cli.scratch import scratch
from sealift.errors import InternalError, SealiftError, sentence

KERNEL: Final = KernelWish(
    r"linux-image-6\.1\.0-[0-9]+-amd64",  # the cloud kernels have no 9p
    ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay", "kvm-amd"),
)

TIMED_OUT: Final = 124
FAILED: Final = 125
INTERRUPTED: Final = 130

_COMMAND_LINE: Final = (
    "console=ttyS0 quiet panic=-1 mitigations=off nowatchdog tsc=reliable no_timer_check cryptomgr.notests=1 "
    "random.trust_cpu=on"  # else getrandom() blocks for want of interrupts
)
_CPU: Final = "EPYC-Rome,+svm,+npt,-xsave"
"""Without XSAVE, and so without AVX: QEMU's emulation lets a nested guest set XCR0 behind KVM's back (it ignores the
intercept of XSETBV), so that KVM would neither show nor save what the guest has there."""

_PASSED_ON: Final = ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "COLUMNS", "CI", "NO_COLOR", "FORCE_COLOR")
"""Variables of the environment that the command sees too."""

_PATIENCE_S: Final = 10.0
"""For QEMU's end, and for output that is on its way when the exit status has come."""

_STEP_S: Final = 1.0
"""Between the end of QEMU's connections and that of QEMU."""

_PORTS: Final = ("out", "err", "status", "beat")
"""By the names that rig_init.sh finds them by."""

_CHUNK: Final = 65536
_LOG_LINES: Final = 20
_NOISE: Final = "TCG doesn't support requested feature"
"""QEMU says so of every feature of the named CPU that its emulation lacks."""

_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be run.

    Attributes:
        command: program and arguments.
        directory: where.
        variables: its environment, beside what every command has.
        limit_s: how long it may take, from the start of QEMU.
        silence_s: how long it may be without a beat from each CPU, until the rig is held to stand still.
        memory: of the rig, MiB.
        cpus: of the rig.
        one_thread: whether one thread emulates them all.
    """

    command: Sequence[str]
    directory: Path
    variables: Mapping[str, str]
    limit_s: float
    silence_s: float
    memory: int
    cpus: int
    one_thread: bool

    def script(self) -> bytes:
        """As a shell script."""
        variables = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
        # Downloads of this machine serve the rig too, which has neither a network nor a way to keep any.
        variables |= {"HOME": "/run/home", "TMPDIR": "/tmp", "XDG_CACHE_HOME": str(cache_directory().parent)}  # noqa: S108
        variables |= self.variables
        exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())
        return f"{exports}cd {shlex.quote(str(self.directory))} && exec {shlex.join(self.command)}\n".encode()


def run(job: Job) -> int:
    """Run a job, its output passed on as it comes.

    Returns:
        The command's exit status, or TIMED_OUT.

    Raises:
        UserError: something is missing here.
        InternalError: the rig came to its end or to a standstill without an exit status; the message has its last
            words.
    """
    with scratch("rig") as place:
        qemu = _Qemu(job, place.path)
        place.ending.callback(qemu.close)
        return qemu.wait(job.limit_s, job.silence_s)


class _Qemu:
    """The running rig, and the sockets that its ports are."""

    def __init__(self, job: Job, directory: Path) -> None:
        self._log = directory / "log"
        wanted = kernel(KERNEL)
        command = Archive()
        command.file("command", job.script())
        initrd = directory / "initrd"
        initrd.write_bytes(initramfs(wanted, "rig_init.sh").compressed() + command.compressed())
        pairs = [socket.socketpair() for _ in _PORTS]
        self._ports = [ours for ours, _ in pairs]
        theirs = [sock.fileno() for _, sock in pairs]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *_machine(job),
                    *("-kernel", str(wanted.vmlinuz), "-initrd", str(initrd), "-append", _COMMAND_LINE),
                    *(word for name, fd in zip(_PORTS, theirs, strict=True) for word in _port(name, fd)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=theirs,
                start_new_session=True,  # Ctrl-C is for this process, which ends QEMU itself
                preexec_fn=_die_with_parent,  # noqa: PLW1509  # there is no thread yet
            )
        for _, sock in pairs:
            sock.close()

    def wait(self, limit_s: float, silence_s: float) -> int:
        """Pass on output until the command has ended."""
        now = time.monotonic()
        deadline, still = now + limit_s, now + silence_s
        status = bytearray()
        takers = (_writer(sys.stdout.buffer), _writer(sys.stderr.buffer), status.extend, None)
        with selectors.DefaultSelector() as selector:
            for sock, take in zip(self._ports, takers, strict=True):
                selector.register(sock, selectors.EVENT_READ, (sock, take))
            while selector.get_map() and (now := time.monotonic()) < min(deadline, still):
                for key, _ in selector.select(min(deadline, still) - now):
                    sock, take = key.data
                    if not (data := sock.recv(_CHUNK)):
                        selector.unregister(sock)
                    elif take is not None:
                        take(data)
                    else:
                        still = time.monotonic() + silence_s
                if status:  # what was printed before it still comes
                    deadline = min(deadline, time.monotonic() + _PATIENCE_S)
        if not status.strip() and still < deadline and not self._ends():
            raise InternalError(self._last_words(f"one of the rig's CPUs has stood still for {silence_s:.0f} s"))
        return self._judged(status, limit_s)

    def _judged(self, status: bytearray, limit_s: float) -> int:
        if status.strip():
            return int(status)
        if not self._ends():
            click.echo(f"rig: the command took more than {limit_s:.0f} s and was ended", err=True)
            return TIMED_OUT
        raise InternalError(self._last_words("the rig ended before its command did"))

    def _last_words(self, what: str) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        words = [line for line in lines if _NOISE not in line][-_LOG_LINES:]
        return "\n".join([f"{what}; its kernel's last words:", *words])

    def _ends(self) -> bool:
        """Whether QEMU ends of its own accord, now or in a moment."""
        try:
            self._process.wait(_STEP_S)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """End it; returns when it is gone."""
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for sock in self._ports:
            sock.close()


def _machine(job: Job) -> list[str]:
    return [
        tool("qemu-system-x86_64", "qemu-system-x86"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-accel", f"tcg,thread={'single' if job.one_thread else 'multi'}", "-cpu", _CPU),
        *("-smp", str(job.cpus), "-m", f"{job.memory}M"),
        *("-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"),
        *("-serial", "stdio", "-device", "virtio-serial"),
    ]


def _port(name: str, fd: int) -> tuple[str, ...]:
    """A virtio serial port: found by its name inside, our socket `fd` here."""
    return ("-chardev", f"socket,id={name},fd={fd}", "-device", f"virtserialport,chardev={name},name={name}")


def _writer(sink: BinaryIO) -> Callable[[bytes], None]:
    def write(data: bytes) -> None:
        sink.write(data)
        sink.flush()

    return write


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@click.command("rig", context_settings={"allow_interspersed_args": False})
@click.option("-C", "directory", type=click.Path(path_type=Path), default=Path.cwd, help="Where to run the command.")
@click.option("--env", "variables", multiple=True, metavar="NAME=VALUE", help="A variable for the command.")
@click.option("--limit", "limit_s", type=float, default=600, show_default=True, metavar="SECONDS")
@click.option(
    "--silence",
    "silence_s",
    type=float,
    default=180,
    show_default=True,
    metavar="SECONDS",
    help="When to give up a rig one of whose CPUs stands still, as happens to emulation by several threads.",
)
@click.option("--memory", type=int, default=3072, show_default=True, metavar="MIB")
@click.option("--cpus", type=int, default=2, show_default=True)
@click.option(
    "--one-thread",
    is_flag=True,
    help="Emulate all CPUs by one thread: surer for nested guests of several vCPUs, slower where much runs at once.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def main(  # noqa: PLR0913  # one for each option
    directory: Path,
    variables: tuple[str, ...],
    limit_s: float,
    silence_s: float,
    memory: int,
    cpus: int,
    command: tuple[str, ...],
    *,
    one_thread: bool,
) -> None:
    """Run COMMAND where /dev/kvm works: in QEMU's software emulation, on this machine's file system."""
    pairs = dict(variable.partition("=")[::2] for variable in variables)
    job = Job(command, directory.absolute(), pairs, limit_s, silence_s, memory, cpus, one_thread)
    try:
        status = run(job)
    except SealiftError as error:
        click.echo(f"rig: {sentence(error)}", err=True)
        status = FAILED
    except KeyboardInterrupt:
        click.echo("rig: interrupted", err=True)
        status = INTERRUPTED
    sys.exit(status)


if __name__ == "__main__":
    main()
