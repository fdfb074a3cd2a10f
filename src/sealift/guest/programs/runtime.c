#include "runtime.h"

#define SERIAL_DATA 0x3f8
#define SERIAL_STATUS 0x3fd
#define SERIAL_READY 0x20
#define PAUSE_PORT 0x5ea0

void *memcpy(void *to, const void *from, size_t size)
{
	u8 *out = to;
	const u8 *in = from;
	while (size--)
		*out++ = *in++;
	return to;
}

void *memset(void *to, int value, size_t size)
{
	u8 *out = to;
	while (size--)
		*out++ = (u8)value;
	return to;
}

int memcmp(const void *one, const void *other, size_t size)
{
	const u8 *a = one, *b = other;
	for (; size; size--, a++, b++)
		if (*a != *b)
			return *a - *b;
	return 0;
}

static void line_char(struct line *line, char c)
{
	if (line->length < sizeof(line->text))
		line->text[line->length++] = c;
}

void line_text(struct line *line, const char *text)
{
	while (*text)
		line_char(line, *text++);
}

void line_number(struct line *line, u64 number)
{
	if (number > 9)
		line_number(line, number / 10);
	line_char(line, (char)('0' + number % 10));
}

static void line_digit(struct line *line, unsigned digit)
{
	line_char(line, "0123456789abcdef"[digit & 15]);
}

void line_hex(struct line *line, const u8 *bytes, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		line_digit(line, bytes[i] >> 4);
		line_digit(line, bytes[i]);
	}
}

void line_hex64(struct line *line, u64 number)
{
	unsigned shift = 60;
	while (shift && !(number >> shift))
		shift -= 4;
	line_text(line, "0x");
	for (;; shift -= 4) {
		line_digit(line, (unsigned)(number >> shift));
		if (!shift)
			return;
	}
}

static u32 serial_lock;

static void lock(void)
{
	while (__atomic_exchange_n(&serial_lock, 1, __ATOMIC_ACQUIRE))
		relax();
}

static void unlock(void)
{
	__atomic_store_n(&serial_lock, 0, __ATOMIC_RELEASE);
}

static void serial_char(char c)
{
	while (!(in8(SERIAL_STATUS) & SERIAL_READY))
		relax();
	out8(SERIAL_DATA, (u8)c);
}

void line_send(struct line *line)
{
	lock();
	for (u32 i = 0; i < line->length; i++)
		serial_char(line->text[i]);
	serial_char('\n');
	unlock();
	line->length = 0;
}

void idle_us(u32 microseconds)
{
	out32(PAUSE_PORT, microseconds);
}

const char *option_text(const struct startup_table *table, const char *name, size_t *length)
{
	const char *word = table->command_line;
	const char *end = word + table->command_line_size;
	size_t name_length = 0;
	while (name[name_length])
		name_length++;
	while (word < end) {
		const char *stop = word;
		while (stop < end && *stop != ' ')
			stop++;
		size_t size = (size_t)(stop - word);
		if (size >= name_length && !memcmp(word, name, name_length)) {
			*length = size - name_length;
			return word + name_length;
		}
		word = stop + 1;
	}
	return NULL;
}

u64 option_number(const struct startup_table *table, const char *name, u64 otherwise)
{
	size_t length;
	const char *text = option_text(table, name, &length);
	if (!text || !length || length > 18) /* 18 digits cannot overflow */
		return otherwise;
	u64 number = 0;
	for (size_t i = 0; i < length; i++) {
		if (text[i] < '0' || text[i] > '9')
			return otherwise;
		number = number * 10 + (u64)(text[i] - '0');
	}
	return number;
}

/* 1e74f542-71dd-4d66-963e-ef4287ff173b */
static const u8 secret_table_guid[16] = {0x42, 0xf5, 0x74, 0x1e, 0xdd, 0x71, 0x66, 0x4d,
					 0x96, 0x3e, 0xef, 0x42, 0x87, 0xff, 0x17, 0x3b};
#define SECRET_HEADER 20u /* GUID, u32 length of the whole */

static u32 secret_length(const u8 *entry)
{
	return entry[16] | (u32)entry[17] << 8 | (u32)entry[18] << 16 | (u32)entry[19] << 24;
}

const u8 *find_secret(const struct startup_table *table, const u8 guid[16], size_t *length)
{
	const u8 *block = (const u8 *)table->secret.gpa;
	if (memcmp(block, secret_table_guid, 16))
		return NULL;
	u32 total = secret_length(block);
	if (total > table->secret.size)
		return NULL;
	for (u32 at = SECRET_HEADER; at + SECRET_HEADER <= total;) {
		u32 size = secret_length(block + at);
		if (size < SECRET_HEADER || size > total - at)
			return NULL;
		if (!memcmp(block + at, guid, 16)) {
			*length = size - SECRET_HEADER;
			return block + at + SECRET_HEADER;
		}
		at += size;
	}
	return NULL;
}
