/* How an SEV-ES guest asks its hypervisor: the GHCB protocol; sealift.sev.ghcb is the other end. */
#ifndef SEALIFT_GHCB_H
#define SEALIFT_GHCB_H

#include "machine.h"

#define MSR_GHCB 0xc0010130u

/* Requests in the MSR; a response has its number in the same 12 bits. */
#define GHCB_INFO 0xffful
#define GHCB_CPUID 0x004ul
#define GHCB_CPUID_REGISTER_SHIFT 30
#define GHCB_CPUID_LEAF_SHIFT 32
#define GHCB_CPUID_DONE 0x005ul
#define GHCB_PAGE_STATE 0x014ul
#define GHCB_PAGE_STATE_DONE 0x015ul
#define GHCB_PRIVATE (1ul << 52)
#define GHCB_SHARED (2ul << 52)
#define GHCB_ERROR_SHIFT 32
#define GHCB_TERMINATE 0x100ul

/* Exit codes, as #VC has them for its error code. */
#define EXIT_CPUID 0x72ul
#define EXIT_IOIO 0x7bul
#define EXIT_MSR 0x7cul
#define EXIT_VMMCALL 0x81ul

/* Fields of the page, in words of 8 bytes; each has its bit in the valid bitmap. */
#define GHCB_CPL (0x0c8 / 8) /* its byte 3 */
#define GHCB_RAX (0x1f8 / 8)
#define GHCB_RCX (0x308 / 8)
#define GHCB_RDX (0x310 / 8)
#define GHCB_RBX (0x318 / 8)
#define GHCB_RSI (0x330 / 8)
#define GHCB_EXIT_CODE (0x390 / 8)
#define GHCB_EXIT_INFO_1 (0x398 / 8)
#define GHCB_EXIT_INFO_2 (0x3a0 / 8)
#define GHCB_VALID (0x3f0 / 8)
#define GHCB_VERSION_WORD (0xff8 / 8)
#define GHCB_VERSION (2ul << 16) /* u16 at 0xffa; usage, at 0xffc, is 0 */

static inline u64 read_msr(u32 number)
{
	u32 low, high;
	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
	return (u64)high << 32 | low;
}

static inline void write_msr(u32 number, u64 value)
{
	__asm__ volatile("wrmsr" : : "c"(number), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

static inline void vmgexit(void)
{
	__asm__ volatile("rep; vmmcall" : : : "memory");
}

#endif
