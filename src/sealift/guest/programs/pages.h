/* Free memory and page-table entries of a kernel whose memory is mapped one to one. */
#ifndef SEALIFT_PAGES_H
#define SEALIFT_PAGES_H

#include "machine.h"

/* Pages not handed out yet; one vCPU uses it. */
struct pages {
	const struct startup_table *table;
	u64 next;
};

void pages_start(struct pages *pages, const struct startup_table *table);

/* `count` pages in a row that nothing has touched since launch, or NULL. */
void *pages_take(struct pages *pages, u64 count);

/* Map `count` pages from `first` on with 4 KiB entries. False: no memory for page tables. */
bool pages_split(struct pages *pages, void *first, u64 count);

/* Set or clear the C-bit of a page that has a 4 KiB entry, and drop this vCPU's translation of it. */
void page_set_encrypted(void *page, bool encrypted);

#endif
