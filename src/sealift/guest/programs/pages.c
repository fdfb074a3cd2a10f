#include "pages.h"

static u64 c_bit;

void pages_start(struct pages *pages, const struct startup_table *table)
{
	pages->table = table;
	pages->next = table->free;
	c_bit = encryption_mask();
}

void *pages_take(struct pages *pages, u64 count)
{
	u64 size = count * PAGE_SIZE;
	for (u32 i = 0; i < pages->table->blocks; i++) {
		struct area block = pages->table->block[i].area;
		u64 start = pages->next > block.gpa ? pages->next : block.gpa;
		u64 end = block.gpa + block.size;
		if (count <= block.size / PAGE_SIZE && start <= end && size <= end - start) {
			pages->next = start + size;
			return (void *)start;
		}
	}
	return NULL;
}

/* The entry that maps `address`, and how much it maps as a power of two. */
static u64 *find_entry(const void *address, unsigned *shift)
{
	u64 table = read_cr3();
	for (*shift = 39;; *shift -= 9) {
		u64 *entry = (u64 *)(table & PTE_ADDRESS & ~c_bit) + ((u64)address >> *shift) % TABLE_ENTRIES;
		if (*shift == 12 || *entry & PTE_LARGE)
			return entry;
		table = *entry;
	}
}

static bool split(struct pages *pages, u64 *entry)
{
	u64 *table = pages_take(pages, 1);
	if (!table)
		return false;
	for (u64 i = 0; i < TABLE_ENTRIES; i++)
		table[i] = (*entry & ~PTE_LARGE) + i * PAGE_SIZE;
	*entry = (u64)table | c_bit | PTE_FLAGS;
	return true;
}

bool pages_split(struct pages *pages, void *first, u64 count)
{
	u8 *end = (u8 *)first + count * PAGE_SIZE;
	for (u8 *page = first; page < end; page += PAGE_SIZE) {
		unsigned shift;
		u64 *entry = find_entry(page, &shift);
		if (shift > 12 && !split(pages, entry))
			return false;
		invalidate(page);
	}
	return true;
}

void page_set_encrypted(void *page, bool encrypted)
{
	unsigned shift;
	volatile u64 *entry = find_entry(page, &shift);
	*entry = encrypted ? *entry | c_bit : *entry & ~c_bit;
	invalidate(page);
}
