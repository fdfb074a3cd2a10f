/*
 * A guest that notices when its memory is not what it wrote.
 *
 * Each vCPU walks its own working set: verifies a page's whole content, writes the next one, and folds page,
 * generation and checksum into a SHA-256 chain that it prints now and then. The chain depends only on the command
 * line and the secret, so two runs can be compared line by line, and sealift's tests compute it again in Python.
 * Between updates it makes steps with pages that change between private and shared (flips.h).
 *
 * Every page carries the owner's secret, every shared one the text `marker=`: what a search for either must find
 * or must not find is planted here.
 *
 *   payload sha256 <hex>                         by vCPU 0, at first and every `again` updates
 *   ledger <vcpu> <updates so far> <chain>       every so many updates
 *   ledger FAULT <vcpu> <what> page <n> at <address> word <n> expected <word> found <word>
 *
 * Options, decimal: ws=64 pages for each vCPU, flip=4 likewise (0: none), every=64 updates for each line,
 * burst=64 updates between pauses of pause=0 microseconds (0: none), again=0 updates of vCPU 0 between looks at the
 * payload (0: only the first), marker=<text>.
 */
#include "flips.h"
#include "runtime.h"
#include "sha256.h"

#define UPDATES_PER_FLIP 4
#define STALE_GENERATIONS 1000 /* how far back a fault is looked up */
#define LEDGER_SEED 0x6c65646765720000ul

struct options {
	u64 working_set, flip, every, burst, again;
	u32 pause_us;
};

struct worker {
	u64 vcpu;
	u8 *working_set;
	u64 updates;
	u8 chain[32];
	bool flipping;
	struct flips flips;
};

/* What one update adds to the chain; with SHA-256's padding it is one block. */
struct __attribute__((packed)) entry {
	u8 chain[32];
	u32 page;
	u64 generation;
	u64 checksum;
};

/* The owner's secret for the guest, b74ec4ff-d1c7-4c97-bf9b-9c06de39e13d: GUEST_GUID in sealift.launch.secrets. */
static const u8 guest_secret_guid[16] = {0xff, 0xc4, 0x4e, 0xb7, 0xc7, 0xd1, 0x97, 0x4c,
					 0xbf, 0x9b, 0x9c, 0x06, 0xde, 0x39, 0xe1, 0x3d};

static struct options options;
static struct stamp secret, marker;
static struct worker *workers;
static bool ready, stopped;

_Noreturn static void fail(u64 vcpu, const struct fault *fault)
{
	struct line line = {0};
	__atomic_store_n(&stopped, true, __ATOMIC_RELEASE);
	line_text(&line, "ledger FAULT ");
	line_number(&line, vcpu);
	line_text(&line, " ");
	line_text(&line, fault->what);
	line_text(&line, " page ");
	line_number(&line, fault->page);
	line_text(&line, " at ");
	line_hex64(&line, (u64)fault->address);
	line_text(&line, " word ");
	line_number(&line, fault->word);
	line_text(&line, " expected ");
	line_hex64(&line, fault->expected);
	line_text(&line, " found ");
	line_hex64(&line, fault->found);
	line_send(&line);
	halt();
}

static u64 at_least_one(u64 number)
{
	return number ? number : 1;
}

static void read_options(const struct startup_table *table)
{
	size_t length;
	options = (struct options){
		.working_set = at_least_one(option_number(table, "ws=", 64)),
		.flip = option_number(table, "flip=", 4),
		.every = at_least_one(option_number(table, "every=", 64)),
		.burst = at_least_one(option_number(table, "burst=", 64)),
		.pause_us = (u32)option_number(table, "pause=", 0),
		.again = option_number(table, "again=", 0),
	};
	const char *text = option_text(table, "marker=", &length);
	if (text)
		stamp_set(&marker, text, length);
	const u8 *data = find_secret(table, guest_secret_guid, &length);
	if (data)
		stamp_set(&secret, data, length);
}

static bool prepare_worker(struct worker *worker, struct pages *pages, bool flipping)
{
	worker->working_set = pages_take(pages, options.working_set);
	worker->flipping = flipping;
	worker->flips.secret = &secret;
	worker->flips.marker = &marker;
	worker->flips.vcpu = worker->vcpu;
	return worker->working_set && (!flipping || flips_allocate(&worker->flips, pages, options.flip));
}

/* On vCPU 0, while the others wait. */
static void prepare(const struct startup_table *table)
{
	struct pages pages;
	pages_start(&pages, table);
	read_options(table);
	bool flipping = options.flip && encryption_mask();
	workers = pages_take(&pages, (table->vcpus * sizeof(struct worker) + PAGE_SIZE - 1) / PAGE_SIZE);
	for (u64 vcpu = 0; vcpu < table->vcpus; vcpu++) {
		if (workers)
			workers[vcpu].vcpu = vcpu;
		if (!workers || !prepare_worker(&workers[vcpu], &pages, flipping))
			fail(0, &(struct fault){.what = "no-memory", .page = vcpu});
	}
	__atomic_store_n(&ready, true, __ATOMIC_RELEASE);
}

/* Computed anew each time: it says what the payload is now, wherever the guest runs now. */
static void print_payload(const struct startup_table *table)
{
	struct line line = {0};
	u8 digest[32];
	sha256((const u8 *)table->payload.gpa, table->payload.size, digest);
	line_text(&line, "payload sha256 ");
	line_hex(&line, digest, sizeof(digest));
	line_send(&line);
}

static struct content ledger_content(const struct worker *worker, u64 page, u64 generation)
{
	return (struct content){&secret, LEDGER_SEED + worker->vcpu, page, generation};
}

/* Why a word is wrong: an earlier state of the page, another page, or neither. */
static const char *diagnose(const struct worker *worker, struct content content, u32 word, u64 found)
{
	for (u64 back = 1; back <= content.generation && back <= STALE_GENERATIONS; back++) {
		struct content old = ledger_content(worker, content.page, content.generation - back);
		if (content_word(&old, word) == found)
			return "stale";
	}
	for (u64 page = 0; page < options.working_set; page++) {
		for (u64 ahead = 0; ahead < 2; ahead++) {
			struct content other = ledger_content(worker, page, content.generation + ahead);
			if (other.generation && content_word(&other, word) == found)
				return "swapped";
		}
	}
	return "private";
}

static void update(struct worker *worker)
{
	u64 number = worker->updates % options.working_set;
	u64 generation = worker->updates / options.working_set;
	volatile u64 *page = (u64 *)(worker->working_set + number * PAGE_SIZE);
	struct content old = ledger_content(worker, number, generation);
	struct content fresh = ledger_content(worker, number, generation + 1);
	u32 word = content_differs(page, &old);
	if (word < PAGE_WORDS) {
		u64 found = page[word];
		fail(worker->vcpu, &(struct fault){diagnose(worker, old, word, found), number, page, word,
						   content_word(&old, word), found});
	}
	struct entry entry = {
		.page = (u32)number,
		.generation = fresh.generation,
		.checksum = content_fill(page, &fresh),
	};
	memcpy(entry.chain, worker->chain, sizeof(entry.chain));
	sha256((const u8 *)&entry, sizeof(entry), worker->chain);
	worker->updates++;
}

static void report(const struct worker *worker)
{
	struct line line = {0};
	line_text(&line, "ledger ");
	line_number(&line, worker->vcpu);
	line_text(&line, " ");
	line_number(&line, worker->updates);
	line_text(&line, " ");
	line_hex(&line, worker->chain, sizeof(worker->chain));
	line_send(&line);
}

static void work(const struct startup_table *table, struct worker *worker)
{
	struct fault fault;
	if (worker->flipping && !flips_begin(&worker->flips, &fault))
		fail(worker->vcpu, &fault);
	while (!__atomic_load_n(&stopped, __ATOMIC_ACQUIRE)) {
		update(worker);
		if (worker->flipping && worker->updates % UPDATES_PER_FLIP == 0 &&
		    !flips_step(&worker->flips, &fault))
			fail(worker->vcpu, &fault);
		if (worker->updates % options.every == 0)
			report(worker);
		if (worker->vcpu == 0 && options.again && worker->updates % options.again == 0)
			print_payload(table);
		if (options.pause_us && worker->updates % options.burst == 0)
			idle_us(options.pause_us);
	}
}

void kernel_main(const struct startup_table *table, u64 vcpu)
{
	if (vcpu == 0) {
		prepare(table);
		print_payload(table);
	}
	while (!__atomic_load_n(&ready, __ATOMIC_ACQUIRE) && !__atomic_load_n(&stopped, __ATOMIC_ACQUIRE))
		relax();
	if (!stopped)
		work(table, &workers[vcpu]);
	halt();
}
