/* A guest that does nothing: says so and halts. */
#include "runtime.h"

void kernel_main(const struct startup_table *table, u64 vcpu)
{
	struct line line = {0};
	(void)table;
	if (vcpu == 0) {
		line_text(&line, "idle ready");
		line_send(&line);
	}
	halt();
}
