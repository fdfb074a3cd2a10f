/*
 * A guest that writes to its memory at a known rate: what a migration has to send again.
 *
 * vCPU 0 walks its working set for ever, and writes one word of each page. Between bursts of a hundredth of a
 * second's pages it pauses for what is left of that time if writing took none; so the rate is what it writes at most.
 *
 * Options, decimal: rate=25600 pages a second (0: none), ws= pages to walk over (by default those of a second).
 */
#include "pages.h"
#include "runtime.h"

#define BURSTS 100ul
#define SECOND_US 1000000ul

static u64 larger(u64 one, u64 other)
{
	return one > other ? one : other;
}

static void say(const char *text)
{
	struct line line = {0};
	line_text(&line, text);
	line_send(&line);
}

_Noreturn static void write_for_ever(volatile u8 *pages, u64 count, u64 rate)
{
	u64 burst = larger(rate / BURSTS, 1);
	u32 pause_us = (u32)(burst * SECOND_US / rate);
	for (u64 page = 0;;) {
		for (u64 left = burst; left; left--) {
			*(volatile u64 *)(pages + page * PAGE_SIZE) += 1;
			page = page + 1 < count ? page + 1 : 0;
		}
		idle_us(pause_us);
	}
}

void kernel_main(const struct startup_table *table, u64 vcpu)
{
	if (vcpu == 0) {
		struct pages pages;
		u64 rate = option_number(table, "rate=", 25600);
		u64 count = larger(option_number(table, "ws=", rate), 1);
		pages_start(&pages, table);
		u8 *working_set = pages_take(&pages, count);
		say(working_set ? "writer ready" : "writer has no memory");
		if (working_set && rate)
			write_for_ever(working_set, count, rate);
	}
	halt();
}
