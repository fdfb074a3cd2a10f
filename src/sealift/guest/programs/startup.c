/*
 * What vCPU 0 does before there is a kernel: page tables for all RAM, and the mailbox made shared.
 *
 * RAM is mapped one to one as private memory, by 2 MiB pages where a whole 2 MiB region is RAM and does not hold
 * the mailbox. sealift.launch.paging counts the same way, and that much room the start-up table has. The GHCBs of an
 * SEV-ES guest, which are no private memory either, lie in the same 2 MiB as the mailbox.
 */
#include "machine.h"

struct builder {
	u64 next; /* next page-table page to hand out; they are zeros */
	u64 end;
	u64 root;
	u64 encrypted; /* the C-bit */
};

static u64 new_table(struct builder *builder)
{
	if (builder->next == builder->end)
		__builtin_trap();
	u64 table = builder->next;
	builder->next += PAGE_SIZE;
	return table;
}

/* The entry for `gpa` in the table that maps pages of 1 << `shift` bytes, with the tables above it made. */
static u64 *entry_for(struct builder *builder, u64 gpa, unsigned shift)
{
	u64 table = builder->root;
	for (unsigned level = 39;; level -= 9) {
		u64 *entry = (u64 *)table + (gpa >> level) % TABLE_ENTRIES;
		if (level == shift)
			return entry;
		if (!*entry)
			*entry = new_table(builder) | builder->encrypted | PTE_FLAGS;
		table = *entry & PTE_ADDRESS & ~builder->encrypted;
	}
}

static bool overlap(u64 gpa, u64 size, struct area area)
{
	return gpa < area.gpa + area.size && area.gpa < gpa + size;
}

static void map_block(struct builder *builder, struct area block, const struct startup_table *table)
{
	u64 end = block.gpa + block.size;
	for (u64 gpa = block.gpa; gpa < end;) {
		u64 left = end - gpa;
		if (gpa % LARGE_SIZE == 0 && left >= LARGE_SIZE && !overlap(gpa, LARGE_SIZE, table->mailbox)) {
			*entry_for(builder, gpa, 21) = gpa | builder->encrypted | PTE_FLAGS | PTE_LARGE;
			gpa += LARGE_SIZE;
		} else {
			bool open = overlap(gpa, PAGE_SIZE, table->mailbox) || overlap(gpa, PAGE_SIZE, table->ghcbs);
			u64 encrypted = open ? 0 : builder->encrypted;
			*entry_for(builder, gpa, 12) = gpa | encrypted | PTE_FLAGS;
			gpa += PAGE_SIZE;
		}
	}
}

/* Returns the value for CR3. */
u64 startup_map_memory(const struct startup_table *table)
{
	struct builder builder = {
		.next = table->page_tables.gpa,
		.end = table->page_tables.gpa + table->page_tables.size,
		.encrypted = encryption_mask(),
	};
	builder.root = new_table(&builder);
	for (u32 i = 0; i < table->blocks; i++)
		map_block(&builder, table->block[i].area, table);
	return builder.root | builder.encrypted;
}

void startup_share_mailbox(const struct startup_table *table)
{
	if (!encryption_mask())
		return;
	if (declare_pages(table->mailbox.gpa, table->mailbox.size / PAGE_SIZE, false))
		__builtin_trap();
}
