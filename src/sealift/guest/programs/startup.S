/*
 * The start-up code: the first instructions of every vCPU.
 *
 * It is a flat binary that ends at the anchor and is entered in 64-bit mode on the page tables below, which map
 * the first GiB one to one and without C-bit: until a page is declared shared, that reaches private memory.
 *
 *   vCPU 0   builds the real page tables (startup.c), switches to them, declares the mailbox shared,
 *            releases the others
 *   others   wait for the CR3 that vCPU 0 leaves
 *   all      call the kernel: rdi = start-up table, rsi = vCPU number
 *
 * In an SEV-ES guest, which the start-up table says it is by naming GHCBs, every vCPU loads descriptor tables with a
 * handler of #VC first, and shares its GHCB (es.c). What it asks before that it asks by the GHCB MSR.
 *
 * Linux is entered by vCPU 0 alone, as its 64-bit boot protocol says (Documentation/arch/x86/boot.rst). In a
 * receiver vCPU 0 tells the VMM that it is ready, and halts.
 *
 * Registers hold nothing on entry that is used: the vCPU's number comes from CPUID, the rest from the measured
 * start-up table. A failure ends in ud2: nothing handles it, so the guest ends there and the platform reports it.
 */

	/* sealift.launch.areas draws the map. */
	.set	ANCHOR,			0x810000
	.set	SECRET_BLOCK,		ANCHOR
	.set	SECRET_BLOCK_SIZE,	0x4000
	.set	STARTUP_TABLE,		0x814000
	.set	MAILBOX,		0x820000
	.set	MAILBOX_SIZE,		0x2000

	/* struct startup_table */
	.set	TABLE_VCPUS,		0x0c
	.set	TABLE_ENTRY,		0x30
	.set	TABLE_STACKS,		0x78
	.set	TABLE_BOOT_PARAMS,	0x98
	.set	TABLE_GHCBS_SIZE,	0xa8
	.set	STACK_SHIFT,		14

	/* sealift.launch.startup */
	.set	READY_PORT,		0x5ea1
	.set	READY_VALUE,		1

	/* The GHCB protocol: ghcb.h */
	.set	MSR_GHCB,		0xc0010130
	.set	GHCB_CPUID_1_EBX,	0x40000004	/* in the high half: 1 */
	.set	VC_VECTOR,		29
	.set	INTERRUPT_GATE,		0x8e00

	/* What Linux calls its segments until it has loaded its own. */
	.set	BOOT_CS,		0x10
	.set	BOOT_DS,		0x18

	.section .text
	.code64
	.globl	startup_entry
startup_entry:
	cld
	mov	$STARTUP_TABLE, %r12d
	cmpq	$0, TABLE_GHCBS_SIZE(%r12)
	jne	ask_number
	mov	$1, %eax
	xor	%ecx, %ecx
	cpuid
have_number:
	shr	$24, %ebx			/* initial APIC id = vCPU number */
	cmp	TABLE_VCPUS(%r12), %ebx
	jae	stop
	cmpq	$0, TABLE_ENTRY(%r12)		/* a receiver has nothing to run */
	je	receive

	lea	1(%rbx), %rsp			/* stacks grow down from the end of each vCPU's area */
	shl	$STACK_SHIFT, %rsp
	add	TABLE_STACKS(%r12), %rsp
	cmpq	$0, TABLE_GHCBS_SIZE(%r12)
	je	prepared
	call	prepare
prepared:

	test	%ebx, %ebx
	jnz	wait
	mov	%r12, %rdi
	call	startup_map_memory
	mov	%rax, %r13
	mov	%rax, %cr3
	mov	%r12, %rdi
	call	startup_share_mailbox
	mov	TABLE_BOOT_PARAMS(%r12), %rsi
	test	%rsi, %rsi
	jnz	enter_linux
	mov	%r13, startup_cr3
	jmp	run

wait:
	pause
	mov	startup_cr3, %rax
	test	%rax, %rax
	jz	wait
	mov	%rax, %cr3

run:
	mov	%r12, %rdi
	mov	%ebx, %esi
	call	*TABLE_ENTRY(%r12)

receive:
	test	%ebx, %ebx
	jnz	stop
	cmpq	$0, TABLE_GHCBS_SIZE(%r12)
	je	ready
	mov	$receiver_stack, %esp
	call	prepare
ready:
	mov	$READY_PORT, %dx
	mov	$READY_VALUE, %al
	out	%al, %dx

stop:
	hlt
	jmp	stop

ask_number:				/* the same CPUID, by the GHCB MSR: there is no stack yet for #VC */
	mov	$MSR_GHCB, %ecx
	mov	$GHCB_CPUID_1_EBX, %eax
	mov	$1, %edx
	wrmsr
	rep; vmmcall
	rdmsr
	mov	%edx, %ebx
	jmp	have_number

prepare:				/* of an SEV-ES guest; keeps rbx and r12 */
	mov	$communicate, %eax
	mov	%ax, gate			/* every vCPU writes the same */
	shr	$16, %eax
	mov	%ax, gate + 6
	lgdt	gdt_pointer
	lidt	idt_pointer
	mov	%r12, %rdi
	mov	%ebx, %esi
	jmp	startup_share_ghcb

communicate:				/* #VC; its error code is on the stack */
	push	%rax
	push	%rbx
	push	%rcx
	push	%rdx
	push	%rsi
	push	%rdi
	push	%rbp
	push	%r8
	push	%r9
	push	%r10
	push	%r11
	push	%r12
	push	%r13
	push	%r14
	push	%r15
	cld
	mov	%rsp, %rdi
	sub	$8, %rsp			/* the C ABI's alignment */
	call	startup_communicate
	add	$8, %rsp
	pop	%r15
	pop	%r14
	pop	%r13
	pop	%r12
	pop	%r11
	pop	%r10
	pop	%r9
	pop	%r8
	pop	%rbp
	pop	%rdi
	pop	%rsi
	pop	%rdx
	pop	%rcx
	pop	%rbx
	pop	%rax
	add	$8, %rsp			/* the error code */
	iretq

enter_linux:				/* rsi = boot_params */
	cli
	lgdt	gdt_pointer
	mov	$BOOT_DS, %eax
	mov	%eax, %ds
	mov	%eax, %es
	mov	%eax, %ss
	pushq	$BOOT_CS
	pushq	TABLE_ENTRY(%r12)
	lretq

	/* Flat segments, marked as accessed: the processor never writes here. */
	.section .rodata
	.balign	8
gdt:
	.quad	0, 0
	.quad	0x00af9b000000ffff		/* BOOT_CS: execute and read, 64 bits */
	.quad	0x00cf93000000ffff		/* BOOT_DS: read and write */
gdt_pointer:
	.short	gdt_pointer - gdt - 1
	.quad	gdt
idt_pointer:
	.short	idt_end - idt - 1
	.quad	idt

	/* A page of its own: code pages are never written. */
	.section .data
	.balign	4096
startup_cr3:				/* zero until vCPU 0 has built the page tables */
	.quad	0
	.balign	16
idt:
	.fill	VC_VECTOR * 16, 1, 0
gate:
	.short	0, BOOT_CS, INTERRUPT_GATE, 0	/* without the handler's address */
	.quad	0
idt_end:
	.balign	4096
receiver_stack:				/* grows down to the IDT: a receiver has no other */

	.section .tables, "a"
	.balign	4096
	.globl	startup_bootstrap
startup_bootstrap:
	.quad	bootstrap_pointers + 0x63
	.balign	4096
bootstrap_pointers:
	.quad	bootstrap_directory + 0x63
	.balign	4096
bootstrap_directory:
	.set	address, 0
	.rept	512
	.quad	address + 0xe3
	.set	address, address + 0x200000
	.endr

	/* The GUIDed table: see sealift.launch.guided. Each entry ends with its length and its GUID. */
	.macro	guid a, b, c, d:vararg
	.long	\a
	.short	\b, \c
	.byte	\d
	.endm

	.section .footer, "a"
footer_start:
	.long	MAILBOX, MAILBOX_SIZE
	.short	8 + 18
	guid	0x5a5bf2f3, 0xc123, 0x4f16, 0x81, 0xcb, 0xcc, 0x9f, 0x92, 0x9c, 0x58, 0x75

	.long	STARTUP_TABLE, 4096
	.short	8 + 18
	guid	0x23650f51, 0x3c55, 0x4f08, 0xa4, 0xe2, 0xd0, 0x53, 0x60, 0x16, 0x93, 0x1b

	.long	startup_entry, startup_bootstrap
	.short	8 + 18
	guid	0x6654b260, 0xafdf, 0x4881, 0xb4, 0xb1, 0xb7, 0xf7, 0x17, 0xd4, 0x63, 0x09

	.long	SECRET_BLOCK, SECRET_BLOCK_SIZE
	.short	8 + 18
	guid	0x4c2eb361, 0x7d9b, 0x4cc3, 0x80, 0x81, 0x12, 0x7c, 0x90, 0xd3, 0xd2, 0x94

	.short	footer_end - footer_start
	guid	0x96b582de, 0x1fb2, 0x45f7, 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d
footer_end:
	.fill	32, 1, 0			/* where firmware has its reset vector */

	.section .note.GNU-stack, "", @progbits
