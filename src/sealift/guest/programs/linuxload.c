/*
 * A program under Linux that notices when its memory, its disk or its clocks are not what they were.
 *
 * One worker on each CPU walks its own working set: verifies a page's whole content, writes the next one. Every page
 * carries the owner's secret. A process of its own does the same with the blocks of a disk, past the page cache; the
 * blocks carry the text `marker=`, which also goes to a second console: what a host may see of this guest, it sees there.
 * All of them watch that no clock ever goes back, on whatever CPU. What is in memory is never printed.
 *
 *   linuxload [DISK [CONSOLE]]                   the disk is overwritten; by default there is none
 *
 *   secret <bytes> | secret none                 what the owner planted for this guest
 *   counter <pages so far> faults <n> disk <blocks so far>      several times a second
 *   FAULT <what> <of whom> ...                   and it goes on
 *
 * Options on the kernel's command line, decimal: ws=256 pages for each worker, burst=64 updates between pauses of
 * pause=2000 microseconds, blocks=64 of the disk, marker=<text>.
 */
#include "content.h"
#include "linux.h"
#include "runtime.h"

#define STDOUT 1
#define WORKERS_AT_MOST 64
#define CLOCKS 2
#define REPORT_EVERY_US 250000
#define REPORTS_PER_MARKER 4
#define DISK_PAUSE_US 10000
#define WORKER_SEED 0x6c696e7578000000ul
#define DISK_SEED 0x6469736b00000000ul

/* Where LAUNCH_SECRET puts the owner's table: sealift.launch.areas has the same. The e820 map reserves it. */
#define SECRET_AREA 0x810000
#define SECRET_AREA_SIZE 0x4000

/* One worker's count, on a cache line of its own. */
struct count {
	_Alignas(64) u64 updates;
};

/* What the processes share. */
struct board {
	struct count worker[WORKERS_AT_MOST];
	u64 faults;
	u64 blocks;
	u64 clock[CLOCKS]; /* the latest that any process has seen, ns */
};

/* GUEST_GUID in sealift.launch.secrets: b74ec4ff-d1c7-4c97-bf9b-9c06de39e13d. */
static const u8 guest_secret_guid[16] = {0xff, 0xc4, 0x4e, 0xb7, 0xc7, 0xd1, 0x97, 0x4c,
					 0xbf, 0x9b, 0x9c, 0x06, 0xde, 0x39, 0xe1, 0x3d};
static const char *const clock_name[CLOCKS] = {"realtime", "monotonic"}; /* indexed by clock id */

static struct board *board;
static struct startup_table table; /* holds the command line, for runtime.c */
static struct stamp secret, marker;
static u64 working_set, burst, pause_us, disk_blocks;

static void print(int fd, struct line *line)
{
	if (line->length == sizeof(line->text))
		line->length--;
	line->text[line->length++] = '\n';
	sys_write(fd, line->text, line->length);
	line->length = 0;
}

static void fault(const char *what, u64 of, const char *found, u64 number)
{
	struct line line = {0};
	__atomic_add_fetch(&board->faults, 1, __ATOMIC_RELAXED);
	line_text(&line, "FAULT ");
	line_text(&line, what);
	line_text(&line, " ");
	line_number(&line, of);
	line_text(&line, " ");
	line_text(&line, found);
	line_text(&line, " ");
	line_number(&line, number);
	print(STDOUT, &line);
}

_Noreturn static void give_up(const char *what)
{
	struct line line = {0};
	line_text(&line, "FAULT linuxload cannot go on: ");
	line_text(&line, what);
	print(STDOUT, &line);
	sys_exit(1);
}

static void *new_pages(u64 pages, int sharing)
{
	long address = sys_mmap(pages * PAGE_SIZE, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS, -1, 0);
	if (address < 0 && address > -4096)
		give_up("no memory");
	return (void *)address;
}

/* Now is not before what any process saw earlier. */
static void check_clock(u64 who, int clock)
{
	u64 seen = __atomic_load_n(&board->clock[clock], __ATOMIC_ACQUIRE);
	u64 now = sys_clock_ns(clock);
	if (now < seen) {
		fault(clock_name[clock], who, "clock went back by ns", seen - now);
		__atomic_store_n(&board->clock[clock], now, __ATOMIC_RELEASE);
		return;
	}
	while (seen < now && !__atomic_compare_exchange_n(&board->clock[clock], &seen, now, false, __ATOMIC_RELEASE,
							  __ATOMIC_ACQUIRE))
		;
}

static void check_clocks(u64 who)
{
	for (int clock = 0; clock < CLOCKS; clock++)
		check_clock(who, clock);
}

_Noreturn static void work(u64 number, u64 cpu)
{
	struct cpu_set only = {0};
	only.bits[cpu / 64] = 1ul << cpu % 64;
	if (sys_set_affinity(&only) < 0)
		give_up("a worker cannot have its CPU");
	u8 *pages = new_pages(working_set, MAP_PRIVATE);
	u64 *updates = &board->worker[number].updates;
	for (;; (*updates)++) {
		u64 page = *updates % working_set;
		volatile u64 *at = (volatile u64 *)(pages + page * PAGE_SIZE);
		struct content content = {&secret, WORKER_SEED + number, page, *updates / working_set};
		if (content_differs(at, &content) != PAGE_WORDS)
			fault("worker", number, "damaged page", page);
		content.generation++;
		content_fill(at, &content);
		if (*updates % burst == 0) {
			check_clocks(number);
			sys_sleep_us(pause_us);
		}
	}
}

static void check_block(const u64 *buffer, const struct content *content, const char *found)
{
	if (content_differs(buffer, content) != PAGE_WORDS)
		fault("disk", content->generation, found, content->page);
}

/* Verify a block, unless it is its first time, and write and verify its next content. */
static void update_block(int disk, u64 *buffer, struct content *content)
{
	long offset = (long)(content->page * PAGE_SIZE);
	if (content->generation) {
		if (sys_pread(disk, buffer, PAGE_SIZE, offset) != PAGE_SIZE)
			fault("disk", content->generation, "unreadable block", content->page);
		check_block(buffer, content, "damaged block");
	}
	content->generation++;
	content_fill(buffer, content);
	if (sys_pwrite(disk, buffer, PAGE_SIZE, offset) != PAGE_SIZE || sys_fsync(disk) < 0)
		fault("disk", content->generation, "unwritable block", content->page);
	memset(buffer, 0, PAGE_SIZE);
	if (sys_pread(disk, buffer, PAGE_SIZE, offset) != PAGE_SIZE)
		fault("disk", content->generation, "unreadable block", content->page);
	check_block(buffer, content, "block that was not kept");
}

_Noreturn static void work_on_disk(int disk)
{
	u64 *buffer = new_pages(1, MAP_PRIVATE);
	u64 size = (u64)sys_lseek(disk, 0, SEEK_END) / PAGE_SIZE;
	u64 blocks = size < disk_blocks ? size : disk_blocks;
	if (!blocks)
		give_up("the disk is empty");
	for (;; board->blocks++) {
		struct content content = {&marker, DISK_SEED, board->blocks % blocks, board->blocks / blocks};
		update_block(disk, buffer, &content);
		check_clocks(WORKERS_AT_MOST);
		sys_sleep_us(DISK_PAUSE_US);
	}
}

static void report(void)
{
	struct line line = {0};
	u64 sum = 0;
	for (u32 i = 0; i < WORKERS_AT_MOST; i++)
		sum += __atomic_load_n(&board->worker[i].updates, __ATOMIC_RELAXED);
	line_text(&line, "counter ");
	line_number(&line, sum);
	line_text(&line, " faults ");
	line_number(&line, __atomic_load_n(&board->faults, __ATOMIC_RELAXED));
	line_text(&line, " disk ");
	line_number(&line, __atomic_load_n(&board->blocks, __ATOMIC_RELAXED));
	print(STDOUT, &line);
}

/* What nobody reads is dropped. */
static void show_marker(int console)
{
	size_t length;
	const char *text = option_text(&table, "marker=", &length);
	if (console < 0 || !text)
		return;
	sys_write(console, text, length);
	sys_write(console, "\n", 1);
}

_Noreturn static void watch(int console)
{
	for (u64 reports = 0;; reports++) {
		report();
		check_clocks(WORKERS_AT_MOST + 1);
		if (reports % REPORTS_PER_MARKER == 0)
			show_marker(console);
		long ended = sys_wait(-1, WNOHANG);
		if (ended > 0)
			fault("process", (u64)ended, "ended, of", 1);
		sys_sleep_us(REPORT_EVERY_US);
	}
}

static u64 at_least_one(u64 number)
{
	return number ? number : 1;
}

static void read_options(void)
{
	int file = (int)sys_open("/proc/cmdline", O_RDONLY);
	long length = sys_read(file, table.command_line, sizeof(table.command_line));
	sys_close(file);
	if (length < 0)
		give_up("no /proc/cmdline");
	if (length && table.command_line[length - 1] == '\n')
		length--;
	table.command_line_size = (u32)length;
	working_set = at_least_one(option_number(&table, "ws=", 256));
	burst = at_least_one(option_number(&table, "burst=", 64));
	pause_us = option_number(&table, "pause=", 2000);
	disk_blocks = at_least_one(option_number(&table, "blocks=", 64));
	size_t size;
	const char *text = option_text(&table, "marker=", &size);
	if (text)
		stamp_set(&marker, text, size);
}

/* Linux maps /dev/mem with the C-bit, so this is what LAUNCH_SECRET decrypted there. */
static void read_secret(void)
{
	struct line line = {0};
	size_t size = 0;
	int memory = (int)sys_open("/dev/mem", O_RDONLY);
	long area = memory < 0 ? memory : sys_mmap(SECRET_AREA_SIZE, PROT_READ, MAP_SHARED, memory, SECRET_AREA);
	line_text(&line, "secret ");
	if (area > 0) {
		table.secret = (struct area){(u64)area, SECRET_AREA_SIZE};
		const u8 *data = find_secret(&table, guest_secret_guid, &size);
		if (data)
			stamp_set(&secret, data, size);
		sys_munmap((void *)area, SECRET_AREA_SIZE);
	}
	if (size)
		line_number(&line, size);
	else
		line_text(&line, "none");
	print(STDOUT, &line);
	sys_close(memory);
}

static void start_workers(void)
{
	struct cpu_set cpus = {0};
	u64 number = 0;
	sys_get_affinity(&cpus);
	for (u64 cpu = 0; cpu < sizeof(cpus) * 8 && number < WORKERS_AT_MOST; cpu++) {
		if (!(cpus.bits[cpu / 64] >> cpu % 64 & 1))
			continue;
		if (sys_fork() == 0)
			work(number, cpu);
		number++;
	}
}

/* A file named by an argument; negative if there is none. */
static int open_argument(const char *path, int flags)
{
	if (!path)
		return -1;
	int file = (int)sys_open(path, flags);
	if (file < 0)
		give_up(path);
	return file;
}

/* `stack` as Linux starts a program with it: argc, argv, NULL. */
_Noreturn void linux_main(const long *stack)
{
	const char *const *arguments = (const char *const *)(stack + 1);
	const char *disk_path = stack[0] > 1 ? arguments[1] : NULL;
	const char *console_path = stack[0] > 2 ? arguments[2] : NULL;
	board = new_pages((sizeof(*board) + PAGE_SIZE - 1) / PAGE_SIZE, MAP_SHARED);
	read_options();
	read_secret();
	start_workers();
	int disk = open_argument(disk_path, O_RDWR | O_DIRECT);
	if (disk >= 0 && sys_fork() == 0)
		work_on_disk(disk);
	watch(open_argument(console_path, O_WRONLY | O_NOCTTY | O_NONBLOCK));
}

/* Linux enters with the stack aligned; a function expects it as after a call. */
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tcall linux_main\n");
