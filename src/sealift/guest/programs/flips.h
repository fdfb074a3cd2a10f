/*
 * Pages that keep changing between private and shared, each step checked.
 *
 *   private: whole content is as written -> C-bit cleared, declared shared
 *            the shared side shows none of the private words -> known content written through C=0, read back
 *   shared:  whole content is as written, several times, with other work between
 *            -> C-bit set, declared private; the private side shows neither the shared nor the old private words
 *            -> the next private content written
 *
 * One page more, the kept page, is written through C=0 before it is first declared shared and keeps that content:
 * Linux does so with .bss..decrypted.
 */
#ifndef SEALIFT_FLIPS_H
#define SEALIFT_FLIPS_H

#include "content.h"
#include "pages.h"

/* What was found wrong: a page, the first wrong word in it, and why that is wrong. */
struct fault {
	const char *what;
	u64 page; /* number within its kind */
	const volatile u64 *address;
	u32 word;
	u64 expected;
	u64 found;
};

struct flip_page {
	volatile u64 *address;
	u64 turn;     /* generation of its content */
	u32 checks;   /* since it became shared */
	bool shared;
};

struct flips {
	const struct stamp *secret; /* in private contents */
	const struct stamp *marker; /* in shared contents */
	u64 vcpu;
	u64 count;
	struct flip_page *page; /* `count` of them */
	volatile u64 *kept;
	u64 next; /* page of the next step; `count` is the kept page */
};

/* Take `count` pages and what describes them; secret, marker and vcpu are set. False: no memory. */
bool flips_allocate(struct flips *flips, struct pages *pages, u64 count);

/* Write the first contents, on the vCPU that will make the steps. False: `fault` says what is wrong. */
bool flips_begin(struct flips *flips, struct fault *fault);

/* One step of one page. */
bool flips_step(struct flips *flips, struct fault *fault);

#endif
