/* What a guest kernel has in place of an operating system: lines on the serial port, options, the secret table. */
#ifndef SEALIFT_RUNTIME_H
#define SEALIFT_RUNTIME_H

#include "machine.h"

/* One line of output. It is sent as a whole, so lines of two vCPUs never mix; what has no room is dropped. */
struct line {
	u32 length;
	char text[256];
};

void line_text(struct line *line, const char *text);
void line_number(struct line *line, u64 number);
void line_hex(struct line *line, const u8 *bytes, size_t count);
void line_hex64(struct line *line, u64 number); /* 0x and no leading zeros */
void line_send(struct line *line);		/* and make it empty */

/* The vCPU idles for that long. */
void idle_us(u32 microseconds);

/* A word of the command line that starts with `name` ("ws="): the text after it, and its length; or NULL. */
const char *option_text(const struct startup_table *table, const char *name, size_t *length);
/* The same as a decimal number; `otherwise` if the word is absent or not a number. */
u64 option_number(const struct startup_table *table, const char *name, u64 otherwise);

/* An entry of the table that LAUNCH_SECRET put into the secret block, or NULL. GUIDs are stored mixed-endian. */
const u8 *find_secret(const struct startup_table *table, const u8 guid[16], size_t *length);

/* gcc calls these of its own accord. */
void *memcpy(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *one, const void *other, size_t size);

#endif
