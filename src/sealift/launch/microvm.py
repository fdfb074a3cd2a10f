"""The microvm machine: where a Linux guest finds its devices and tables, after QEMU's machine of that name.

Both sides need the same map: the launch image describes it to the guest (ACPI, e820), the VMM answers there.

::

    0x0000_0000  RAM; 0x9_fc00-0x10_0000 is not for the kernel, and holds the ACPI tables
    0x0001_0000  boot_params, 0x2_0000 command line
    0x0080_0000  start-up area, one MiB that the guest's e820 map reserves (see `sealift.launch.areas`)
    0x0100_0000  Linux
    0xc000_0000  end of RAM below 4 GiB; what is more goes on at 4 GiB
    0xfeb0_0000  virtio-mmio slots
    0xfec0_0000  I/O APIC, 0xfee0_0000 local APIC (both in KVM)
"""

from __future__ import annotations

from typing import Final

BOOT_PARAMS: Final = 0x1_0000
COMMAND_LINE: Final = 0x2_0000

LOW_MEMORY_END: Final = 0x9_FC00
"""A PC's firmware keeps the last KiB below 640 KiB for itself."""
ACPI_TABLES: Final = 0xE_0000
ACPI_TABLES_END: Final = 0xF_0000
HIGH_MEMORY: Final = 0x10_0000
"""Where memory goes on that is the kernel's."""

START_UP: Final = 0x80_0000
START_UP_END: Final = 0x90_0000
"""Everything that the start-up code or the platform uses is between these, and never handed to Linux."""

KERNEL: Final = 0x100_0000

LOW_RAM_LIMIT: Final = 0xC000_0000
"""First address below 4 GiB that is never RAM."""

HIGH_RAM: Final = 1 << 32
"""Where RAM goes on that has no room below."""

VIRTIO_BASE: Final = 0xFEB0_0000
VIRTIO_STRIDE: Final = 0x200
VIRTIO_SLOTS: Final = 4
"""The guest's tables describe all of them; a slot without a device says so by device id 0."""
VIRTIO_FIRST_GSI: Final = 16
"""Slot n interrupts through I/O APIC pin 16 + n, edge triggered."""

IO_APIC: Final = 0xFEC0_0000
LOCAL_APIC: Final = 0xFEE0_0000

SERIAL_PORT: Final = 0x3F8
SERIAL_GSI: Final = 4

KEYBOARD_DATA_PORT: Final = 0x60
KEYBOARD_COMMAND_PORT: Final = 0x64
RESET_VALUE: Final = 0xFE
"""Written to the keyboard controller's command port, this resets a PC."""

RTC_PORT: Final = 0x70
RTC_GSI: Final = 8

PM_EVENT_PORT: Final = 0x600
"""ACPI PM1a event block: status and enable, 16 bits each."""
PM_CONTROL_PORT: Final = 0x604
"""ACPI PM1a control block, 16 bits."""
PM_GSI: Final = 9
"""The system control interrupt."""
SLEEP_TYPE_OFF: Final = 5
"""SLP_TYP of S5, soft off."""
