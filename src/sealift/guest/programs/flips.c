#include "flips.h"

#define CHECKS_WHILE_SHARED 3

/* Contents of different kinds never have words in common. */
#define PRIVATE_SEED 0x7072697661746500ul
#define SHARED_SEED 0x7368617265640000ul
#define KEPT_SEED 0x6b65707400000000ul

static struct content private_content(const struct flips *flips, u64 page, u64 turn)
{
	return (struct content){flips->secret, PRIVATE_SEED + flips->vcpu, page, turn};
}

static struct content shared_content(const struct flips *flips, u64 page, u64 turn)
{
	return (struct content){flips->marker, SHARED_SEED + flips->vcpu, page, turn};
}

static struct content kept_content(const struct flips *flips)
{
	return (struct content){flips->marker, KEPT_SEED + flips->vcpu, 0, 1};
}

/* `address` must hold `content`. */
static bool holds(const volatile u64 *address, struct content content, const char *what, struct fault *fault)
{
	u32 word = content_differs(address, &content);
	if (word == PAGE_WORDS)
		return true;
	*fault = (struct fault){what, content.page, address, word, content_word(&content, word), address[word]};
	return false;
}

/* No word of `address` may be as in `content`. */
static bool hides(const volatile u64 *address, struct content content, const char *what, struct fault *fault)
{
	u32 word = content_shows(address, &content);
	if (word == PAGE_WORDS)
		return true;
	*fault = (struct fault){what, content.page, address, word, 0, address[word]};
	return false;
}

static bool declare(volatile u64 *address, u64 page, bool encrypted, struct fault *fault)
{
	long result = declare_pages((u64)address, 1, encrypted);
	if (!result)
		return true;
	*fault = (struct fault){"hypercall", page, address, 0, 0, (u64)result};
	return false;
}

bool flips_allocate(struct flips *flips, struct pages *pages, u64 count)
{
	u64 list_pages = (count * sizeof(struct flip_page) + PAGE_SIZE - 1) / PAGE_SIZE;
	u8 *first = pages_take(pages, count + 1);
	flips->page = pages_take(pages, list_pages);
	if (!first || !flips->page || !pages_split(pages, first, count + 1))
		return false;
	flips->count = count;
	flips->kept = (u64 *)first;
	for (u64 i = 0; i < count; i++)
		flips->page[i].address = (u64 *)(first + (i + 1) * PAGE_SIZE);
	return true;
}

bool flips_begin(struct flips *flips, struct fault *fault)
{
	struct content content = kept_content(flips);
	page_set_encrypted((void *)flips->kept, false);
	content_fill(flips->kept, &content);
	if (!declare(flips->kept, 0, false, fault) || !holds(flips->kept, content, "kept", fault))
		return false;
	for (u64 i = 0; i < flips->count; i++) {
		content = private_content(flips, i, flips->page[i].turn = 1);
		content_fill(flips->page[i].address, &content);
	}
	return true;
}

static bool make_shared(struct flips *flips, u64 number, struct fault *fault)
{
	struct flip_page *page = &flips->page[number];
	struct content hidden = private_content(flips, number, page->turn);
	struct content open = shared_content(flips, number, page->turn);
	if (!holds(page->address, hidden, "flip-private", fault))
		return false;
	page_set_encrypted((void *)page->address, false);
	if (!declare(page->address, number, false, fault) || !hides(page->address, hidden, "leak", fault))
		return false;
	content_fill(page->address, &open);
	page->shared = true;
	page->checks = 0;
	return holds(page->address, open, "shared", fault);
}

static bool make_private(struct flips *flips, u64 number, struct fault *fault)
{
	struct flip_page *page = &flips->page[number];
	struct content open = shared_content(flips, number, page->turn);
	struct content old = private_content(flips, number, page->turn);
	struct content fresh = private_content(flips, number, page->turn + 1);
	page_set_encrypted((void *)page->address, true);
	if (!declare(page->address, number, true, fault) || !hides(page->address, open, "residue", fault) ||
	    !hides(page->address, old, "residue", fault))
		return false;
	content_fill(page->address, &fresh);
	page->shared = false;
	page->turn++;
	return true;
}

bool flips_step(struct flips *flips, struct fault *fault)
{
	u64 number = flips->next;
	flips->next = number == flips->count ? 0 : number + 1;
	if (number == flips->count)
		return holds(flips->kept, kept_content(flips), "kept", fault);
	struct flip_page *page = &flips->page[number];
	if (!page->shared)
		return make_shared(flips, number, fault);
	if (!holds(page->address, shared_content(flips, number, page->turn), "shared", fault))
		return false;
	return ++page->checks < CHECKS_WHILE_SHARED || make_private(flips, number, fault);
}
