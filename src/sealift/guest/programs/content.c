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

/* The word at `index`, to be called for 0, 1, 2, ... */
static inline u64 next(const struct content *content, u32 index, u64 *state)
{
	u64 word = step(state);
	return index < content->stamp->words ? content->stamp->word[index] : word;
}

u64 content_word(const struct content *content, u32 index)
{
	u64 state = start(content), word = 0;
	if (!content->generation)
		return 0;
	for (u32 i = 0; i <= index; i++)
		word = next(content, i, &state);
	return word;
}

u64 content_fill(volatile u64 *page, const struct content *content)
{
	u64 state = start(content), checksum = 0;
	for (u32 i = 0; i < PAGE_WORDS; i++) {
		u64 word = next(content, i, &state);
		page[i] = word;
		checksum = (checksum ^ word) * 0x100000001b3ul;
	}
	return checksum;
}

u32 content_differs(const volatile u64 *page, const struct content *content)
{
	u64 state = start(content), mask = content->generation ? ~0ul : 0;
	u32 i = 0;
	while (i < PAGE_WORDS && page[i] == (next(content, i, &state) & mask))
		i++;
	return i;
}

u32 content_shows(const volatile u64 *page, const struct content *content)
{
	u64 state = start(content);
	for (u32 i = 0; i < PAGE_WORDS; i++) {
		u64 word = next(content, i, &state);
		if (word && page[i] == word)
			return i;
	}
	return PAGE_WORDS;
}
