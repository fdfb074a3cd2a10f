/*
 * What a page should hold: a stamp at its start, then words that follow from (seed, page, generation) alone.
 *
 * So every earlier state of every page can be computed again, and a page that was lost, left behind or put in
 * another's place is recognised. Generation 0 is a page never written: zeros.
 */
#ifndef SEALIFT_CONTENT_H
#define SEALIFT_CONTENT_H

#include "machine.h"

#define STAMP_WORDS 64u

/* Bytes that every page of a kind carries in clear: the owner's secret, or a text that is no secret. */
struct stamp {
	u32 words;
	u64 word[STAMP_WORDS];
};

/* At most STAMP_WORDS * 8 bytes of `data`, padded with zeros to whole words. */
void stamp_set(struct stamp *stamp, const void *data, size_t size);

struct content {
	const struct stamp *stamp;
	u64 seed;
	u64 page;
	u64 generation;
};

u64 content_word(const struct content *content, u32 index);
/* Returns a checksum over the whole page. */
u64 content_fill(volatile u64 *page, const struct content *content);
/* The first word that differs, or PAGE_WORDS. */
u32 content_differs(const volatile u64 *page, const struct content *content);
/* The first word, zeros aside, that is as in `content`, or PAGE_WORDS. */
u32 content_shows(const volatile u64 *page, const struct content *content);

#endif
