/*
 * What an SEV-ES guest needs to go on as if it were none: the handler of #VC, and each vCPU's GHCB.
 *
 * The processor raises #VC where another guest would exit. The handler tells the hypervisor what the instruction
 * needs, takes back what it brings, and steps over it; nothing else of the registers ever leaves. What a VMM can
 * write to the page meanwhile it could have answered as well, so an answer is only looked at for being complete; one
 * that is not ends the guest.
 *
 * It must not execute anything that raises #VC itself. RDMSR and WRMSR of the GHCB MSR do not.
 */
#include "ghcb.h"

/* As startup.S leaves them on the stack, below what the processor pushed. */
struct frame {
	u64 r15, r14, r13, r12, r11, r10, r9, r8, rbp, rdi, rsi, rdx, rcx, rbx, rax;
	u64 error_code; /* the exit code */
	u64 rip;
};

struct instruction {
	u32 length;
	u64 info; /* EXITINFO1 */
};

/* EXITINFO1 of IOIO (AMD64 APM volume 2, 15.10.2) */
#define IO_IN 1ul
#define IO_SIZE_8 0x10ul
#define IO_SIZE_16 0x20ul
#define IO_SIZE_32 0x40ul
#define IO_PORT_SHIFT 16

_Noreturn static void terminate(void)
{
	for (;;) {
		write_msr(MSR_GHCB, GHCB_TERMINATE);
		vmgexit();
	}
}

/* This vCPU's page; it is mapped where it lies, without the C-bit. */
static volatile u64 *own_ghcb(void)
{
	u64 gpa = read_msr(MSR_GHCB);
	if (!gpa || gpa & GHCB_INFO)
		terminate();
	return (volatile u64 *)gpa;
}

static bool is_valid(const volatile u64 *ghcb, u32 word)
{
	return ghcb[GHCB_VALID + word / 64] >> word % 64 & 1;
}

static void put(volatile u64 *ghcb, u32 word, u64 value)
{
	ghcb[word] = value;
	ghcb[GHCB_VALID + word / 64] |= 1ul << word % 64;
}

/* A field of the answer, which must have it. */
static u64 take(const volatile u64 *ghcb, u32 word)
{
	if (!is_valid(ghcb, word))
		terminate();
	return ghcb[word];
}

static volatile u64 *begin(void)
{
	volatile u64 *ghcb = own_ghcb();
	ghcb[GHCB_VALID] = ghcb[GHCB_VALID + 1] = 0;
	ghcb[GHCB_VERSION_WORD] = GHCB_VERSION;
	return ghcb;
}

static void ask(volatile u64 *ghcb, u64 exit_code, u64 info)
{
	put(ghcb, GHCB_EXIT_CODE, exit_code);
	put(ghcb, GHCB_EXIT_INFO_1, info);
	put(ghcb, GHCB_EXIT_INFO_2, 0);
	vmgexit();
	if ((u32)take(ghcb, GHCB_EXIT_INFO_1))
		terminate(); /* refused, or an exception, for which nobody here has a handler */
}

/*
 * By the MSR: the page is in the VMM's reach, and a VMM that could say where the C-bit is would have the guest lay
 * everything open. There are no subleaves that way; programs here ask for none.
 */
static void handle_cpuid(struct frame *frame)
{
	u64 *result[4] = {&frame->rax, &frame->rbx, &frame->rcx, &frame->rdx};
	u64 leaf = (u32)frame->rax, page = read_msr(MSR_GHCB);
	for (u64 i = 0; i < 4; i++) {
		write_msr(MSR_GHCB, leaf << GHCB_CPUID_LEAF_SHIFT | i << GHCB_CPUID_REGISTER_SHIFT | GHCB_CPUID);
		vmgexit();
		u64 response = read_msr(MSR_GHCB);
		if ((response & GHCB_INFO) != GHCB_CPUID_DONE)
			terminate();
		*result[i] = response >> 32;
	}
	write_msr(MSR_GHCB, page);
	frame->rip += 2;
}

/* IN and OUT in all forms but those with strings. */
static struct instruction decode_io(const struct frame *frame)
{
	const u8 *code = (const u8 *)frame->rip;
	u64 wide = IO_SIZE_32;
	u32 length = 1;
	if (*code == 0x66) {
		wide = IO_SIZE_16;
		code++;
		length++;
	}
	u8 opcode = *code;
	u64 info = (opcode & 1 ? wide : IO_SIZE_8) | (opcode & 2 ? 0 : IO_IN);
	switch (opcode & 0xfc) {
	case 0xe4:
		return (struct instruction){length + 1, info | (u64)code[1] << IO_PORT_SHIFT};
	case 0xec:
		return (struct instruction){length, info | (u64)(u16)frame->rdx << IO_PORT_SHIFT};
	default:
		terminate();
	}
}

static void handle_io(struct frame *frame)
{
	struct instruction instruction = decode_io(frame);
	u64 mask = instruction.info & IO_SIZE_8 ? 0xff : instruction.info & IO_SIZE_16 ? 0xffff : 0xffffffff;
	volatile u64 *ghcb = begin();
	if (!(instruction.info & IO_IN))
		put(ghcb, GHCB_RAX, frame->rax & mask);
	ask(ghcb, EXIT_IOIO, instruction.info);
	if (instruction.info & IO_IN) {
		u64 kept = instruction.info & IO_SIZE_32 ? 0 : frame->rax & ~mask;
		frame->rax = kept | (take(ghcb, GHCB_RAX) & mask);
	}
	frame->rip += instruction.length;
}

static void handle_msr(struct frame *frame)
{
	bool write = ((const u8 *)frame->rip)[1] == 0x30;
	volatile u64 *ghcb = begin();
	put(ghcb, GHCB_RCX, (u32)frame->rcx);
	if (write) {
		put(ghcb, GHCB_RAX, (u32)frame->rax);
		put(ghcb, GHCB_RDX, (u32)frame->rdx);
	}
	ask(ghcb, EXIT_MSR, write);
	if (!write) {
		frame->rax = (u32)take(ghcb, GHCB_RAX);
		frame->rdx = (u32)take(ghcb, GHCB_RDX);
	}
	frame->rip += 2;
}

/* Returns 0 or an errno. Keeps the MSR. */
static u64 change_page_state(u64 gpa, u64 state)
{
	u64 page = read_msr(MSR_GHCB);
	write_msr(MSR_GHCB, state | gpa | GHCB_PAGE_STATE);
	vmgexit();
	u64 response = read_msr(MSR_GHCB);
	if ((response & GHCB_INFO) != GHCB_PAGE_STATE_DONE)
		terminate();
	write_msr(MSR_GHCB, page);
	return response >> GHCB_ERROR_SHIFT;
}

/*
 * KVM_HC_MAP_GPA_RANGE, by the MSR as well: a VMM must not be able to ask for other pages in this guest's name, and
 * the platform takes it no other way.
 */
static u64 declare_range(const struct frame *frame)
{
	u64 state = frame->rdx & MAP_GPA_ENCRYPTED ? GHCB_PRIVATE : GHCB_SHARED;
	for (u64 i = 0; i < frame->rcx; i++) {
		u64 error = change_page_state(frame->rbx + i * PAGE_SIZE, state);
		if (error)
			return -error;
	}
	return 0;
}

/* Other hypercalls of KVM: a number, and up to four arguments. */
static u64 call(const struct frame *frame)
{
	volatile u64 *ghcb = begin();
	put(ghcb, GHCB_CPL, 0);
	put(ghcb, GHCB_RAX, frame->rax);
	put(ghcb, GHCB_RBX, frame->rbx);
	put(ghcb, GHCB_RCX, frame->rcx);
	put(ghcb, GHCB_RDX, frame->rdx);
	put(ghcb, GHCB_RSI, frame->rsi);
	ask(ghcb, EXIT_VMMCALL, 0);
	return take(ghcb, GHCB_RAX);
}

static void handle_hypercall(struct frame *frame)
{
	frame->rax = frame->rax == MAP_GPA_RANGE ? declare_range(frame) : call(frame);
	frame->rip += 3;
}

void startup_communicate(struct frame *frame)
{
	switch (frame->error_code) {
	case EXIT_CPUID:
		return handle_cpuid(frame);
	case EXIT_IOIO:
		return handle_io(frame);
	case EXIT_MSR:
		return handle_msr(frame);
	case EXIT_VMMCALL:
		return handle_hypercall(frame);
	default:
		terminate();
	}
}

/* Share this vCPU's page and let the hypervisor know of it. */
void startup_share_ghcb(const struct startup_table *table, u32 vcpu)
{
	u64 gpa = table->ghcbs.gpa + vcpu * PAGE_SIZE;
	if (change_page_state(gpa, GHCB_SHARED))
		terminate();
	write_msr(MSR_GHCB, gpa);
}
