"""The guest's hypercalls (Linux: Documentation/virt/kvm/x86/hypercalls.rst)."""

from __future__ import annotations

from sealift.address import PAGE_SHIFT, page_aligned
from sealift.errors import GuestError
from sealift.silicon.engines.interface import MAP_GPA_ENCRYPTED, MAP_GPA_RANGE, Hypercall
from sealift.silicon.memory.guest_memory import GuestMemory
from sealift.silicon.memory.plain_memory import PlainMemory
from sealift.wire.platform import PageStateChange

_SIZE_MASK = 0xF  # preferred page size: a hint
_PAGES_AT_ONCE = 2048
"""Pages (8 MiB) converted while the rest of the machine waits; each page's conversion is complete by itself."""

_ENOSYS, _EINVAL, _ENOMEM = 1000, 22, 12  # KVM_ENOSYS, and the kernel's EINVAL and ENOMEM; returned negated


def carry_out(memory: GuestMemory, call: Hypercall) -> tuple[int, PageStateChange | None]:
    """The result for the guest, and the change of page states for the VMM if there was one."""
    if call.number != MAP_GPA_RANGE:
        return -_ENOSYS, None
    gpa, pages, attributes, _ = call.arguments
    offset = memory.layout.offset(gpa, pages << PAGE_SHIFT) if pages else None
    if offset is None or not page_aligned(gpa) or attributes & ~(_SIZE_MASK | MAP_GPA_ENCRYPTED):
        return -_EINVAL, None
    if isinstance(memory, PlainMemory):
        return 0, None  # whatever it says of its pages is true of none of them
    encrypted = bool(attributes & MAP_GPA_ENCRYPTED)
    first = offset >> PAGE_SHIFT
    done = 0
    try:
        while done < pages:
            count = min(_PAGES_AT_ONCE, pages - done)
            memory.convert(first + done, count, to_shared=not encrypted)
            done += count
    except GuestError:
        return -_ENOMEM, PageStateChange(gpa, done, encrypted) if done else None
    return 0, PageStateChange(gpa, pages, encrypted)
