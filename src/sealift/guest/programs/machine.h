/*
 * The machine as its programs see it: instructions, page-table bits, the start-up table.
 *
 * Used by the start-up code and by the kernels. Only general registers and accesses of at most 8 bytes, so that
 * an engine has nothing else to save or to split.
 */
#ifndef SEALIFT_MACHINE_H
#define SEALIFT_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define PAGE_SIZE 4096ul
#define LARGE_SIZE (2ul << 20)
#define PAGE_WORDS (PAGE_SIZE / sizeof(u64))
#define TABLE_ENTRIES 512ul

/* Page-table entries. Accessed and dirty are set at once, so that no walker ever has to write to a table. */
#define PTE_PRESENT 0x01ul
#define PTE_LARGE 0x80ul
#define PTE_FLAGS 0x63ul /* present, writable, accessed, dirty */
#define PTE_ADDRESS 0x000ffffffffff000ul

/* sealift.launch.startup has the same in Python. */
#define STARTUP_BLOCKS 16
#define STARTUP_COMMAND_LINE 1024

struct area {
	u64 gpa;
	u64 size;
};

struct ram_block {
	struct area area;
	char name[48];
};

struct startup_table {
	char magic[8];
	u32 version;
	u32 vcpus;
	u8 handler_digest[32];
	u64 entry; /* 0: a receiver, nothing to run */
	struct area secret;
	struct area mailbox;
	struct area payload;
	struct area page_tables;
	struct area stacks;
	u64 free; /* first GPA that a kernel may use as it likes */
	u32 blocks;
	u32 command_line_size;
	u64 boot_params; /* Linux's; 0: a kernel of our own */
	struct area ghcbs; /* a page for each vCPU; empty in a guest without SEV-ES */
	u8 reserved_b0[0x100 - 0xb0];
	struct ram_block block[STARTUP_BLOCKS];
	char command_line[STARTUP_COMMAND_LINE];
};

_Static_assert(offsetof(struct startup_table, boot_params) == 0x98, "start-up table");
_Static_assert(offsetof(struct startup_table, ghcbs) == 0xa0, "start-up table");
_Static_assert(offsetof(struct startup_table, block) == 0x100, "start-up table");
_Static_assert(offsetof(struct startup_table, command_line) == 0x500, "start-up table");

struct cpuid {
	u32 eax, ebx, ecx, edx;
};

static inline struct cpuid cpuid(u32 leaf)
{
	struct cpuid r;
	__asm__ volatile("cpuid" : "=a"(r.eax), "=b"(r.ebx), "=c"(r.ecx), "=d"(r.edx) : "a"(leaf), "c"(0));
	return r;
}

/* The C-bit as a mask for page-table entries; 0 in a guest whose memory is not encrypted. */
static inline u64 encryption_mask(void)
{
	if (cpuid(0x80000000).eax < 0x8000001f)
		return 0;
	struct cpuid memory = cpuid(0x8000001f);
	return memory.eax & 2 ? 1ul << (memory.ebx & 63) : 0;
}

#define MAP_GPA_RANGE 12ul
#define MAP_GPA_ENCRYPTED 0x10ul

/* KVM_HC_MAP_GPA_RANGE: tell the platform which plane the pages belong to. Returns 0 or a negative errno. */
static inline long declare_pages(u64 gpa, u64 pages, bool encrypted)
{
	long result;
	__asm__ volatile("vmmcall"
			 : "=a"(result)
			 : "a"(MAP_GPA_RANGE), "b"(gpa), "c"(pages), "d"(encrypted ? MAP_GPA_ENCRYPTED : 0ul)
			 : "memory");
	return result;
}

static inline void write_cr3(u64 value)
{
	__asm__ volatile("mov %0, %%cr3" : : "r"(value) : "memory");
}

static inline u64 read_cr3(void)
{
	u64 value;
	__asm__ volatile("mov %%cr3, %0" : "=r"(value));
	return value;
}

static inline void invalidate(const void *address)
{
	__asm__ volatile("invlpg (%0)" : : "r"(address) : "memory");
}

static inline void relax(void)
{
	__asm__ volatile("pause" : : : "memory");
}

_Noreturn static inline void halt(void)
{
	for (;;)
		__asm__ volatile("hlt" : : : "memory");
}

static inline void out8(u16 port, u8 value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline void out32(u16 port, u32 value)
{
	__asm__ volatile("outl %0, %1" : : "a"(value), "Nd"(port) : "memory");
}

static inline u8 in8(u16 port)
{
	u8 value;
	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
	return value;
}

#endif
