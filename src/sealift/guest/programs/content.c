#include "content.h"

#include "runtime.h"

void stamp_set(struct stamp *stamp, const void *data, size_t size)
{
	if (size > sizeof(stamp->word))
		size = sizeof(stamp->word);
	memset(stamp, 0, sizeof(*stamp));
	memcpy(stamp->word, data, size);
	stamp->words = (u32)((size + 7) / 8);
}

/* Knuth's MMIX generator; the high bits are the good ones, so they are folded into the low ones. */
static inline u64 step(u64 *state)
{
	*state = *state * 6364136223846793005ul + 1442695040888963407ul;
	return *state ^ *state >> 32;
}

static u64 start(const struct content *content)
{
	u64 state = content->seed;
	step(&state);
	state ^= content->page * 0x9e3779b97f4a7c15ul;
	step(&state);
	state ^= content->generation * 0xbf58476d1ce4e5b9ul;
	step(&state);
	return state;
}

u64 content_word(const struct content *content, u32 index)
{
	u64 state = start(content), word = 0;
	if (!content->generation)
		return 0;
	if (index < content->stamp->words)
		return content->stamp->word[index];
	for (u32 i = 0; i <= index; i++)
		word = step(&state);
	return word;
}

static inline u64 checksum_add(u64 checksum, u64 word)
{
	return (checksum ^ word) * 0x100000001b3ul;
}

u64 content_fill(volatile u64 *page, const struct content *content)
{
	u64 state = start(content), checksum = 0;
	u32 i = 0;
	for (; i < content->stamp->words; i++) {
		step(&state);
		page[i] = content->stamp->word[i];
		checksum = checksum_add(checksum, content->stamp->word[i]);
	}
	for (; i < PAGE_WORDS; i++) {
		u64 word = step(&state);
		page[i] = word;
		checksum = checksum_add(checksum, word);
	}
	return checksum;
}

u32 content_differs(const volatile u64 *page, const struct content *content)
{
	u64 state = start(content);
	u32 i = 0;
	if (!content->generation) {
		while (i < PAGE_WORDS && page[i] == 0)
			i++;
		return i;
	}
	for (; i < content->stamp->words; i++) {
		step(&state);
		if (page[i] != content->stamp->word[i])
			return i;
	}
	while (i < PAGE_WORDS && page[i] == step(&state))
		i++;
	return i;
}

u32 content_shows(const volatile u64 *page, const struct content *content)
{
	u64 state = start(content);
	for (u32 i = 0; i < PAGE_WORDS; i++) {
		u64 word = step(&state);
		if (i < content->stamp->words)
			word = content->stamp->word[i];
		if (word && page[i] == word)
			return i;
	}
	return PAGE_WORDS;
}
