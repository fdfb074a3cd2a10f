/* What a program without a C library asks of Linux: system calls (arch/x86/entry/syscalls/syscall_64.tbl). */
#ifndef SEALIFT_LINUX_H
#define SEALIFT_LINUX_H

#include "machine.h"

#define O_RDONLY 00
#define O_WRONLY 01
#define O_RDWR 02
#define O_NOCTTY 0400
#define O_NONBLOCK 04000
#define O_DIRECT 040000
#define SEEK_END 2
#define PROT_READ 1
#define PROT_WRITE 2
#define MAP_SHARED 1
#define MAP_PRIVATE 2
#define MAP_ANONYMOUS 0x20
#define CLOCK_REALTIME 0
#define CLOCK_MONOTONIC 1
#define WNOHANG 1

struct timespec {
	long seconds, nanoseconds;
};

struct cpu_set {
	u64 bits[16];
};

static inline long system_call(long number, long a, long b, long c, long d, long e, long f)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

/* All of these return a negative errno if they fail. */

static inline long sys_read(int fd, void *data, size_t size)
{
	return system_call(0, fd, (long)data, (long)size, 0, 0, 0);
}

static inline long sys_write(int fd, const void *data, size_t size)
{
	return system_call(1, fd, (long)data, (long)size, 0, 0, 0);
}

static inline long sys_open(const char *path, int flags)
{
	return system_call(2, (long)path, flags, 0, 0, 0, 0);
}

static inline long sys_close(int fd)
{
	return system_call(3, fd, 0, 0, 0, 0, 0);
}

static inline long sys_lseek(int fd, long offset, int whence)
{
	return system_call(8, fd, offset, whence, 0, 0, 0);
}

static inline long sys_mmap(size_t size, int protection, int flags, int fd, long offset)
{
	return system_call(9, 0, (long)size, protection, flags, fd, offset);
}

static inline long sys_munmap(void *address, size_t size)
{
	return system_call(11, (long)address, (long)size, 0, 0, 0, 0);
}

static inline long sys_pread(int fd, void *data, size_t size, long offset)
{
	return system_call(17, fd, (long)data, (long)size, offset, 0, 0);
}

static inline long sys_pwrite(int fd, const void *data, size_t size, long offset)
{
	return system_call(18, fd, (long)data, (long)size, offset, 0, 0);
}

static inline long sys_fork(void)
{
	return system_call(57, 0, 0, 0, 0, 0, 0);
}

_Noreturn static inline void sys_exit(int status)
{
	for (;;)
		system_call(231, status, 0, 0, 0, 0, 0);
}

static inline long sys_wait(long pid, int options)
{
	return system_call(61, pid, 0, options, 0, 0, 0);
}

static inline long sys_fsync(int fd)
{
	return system_call(74, fd, 0, 0, 0, 0, 0);
}

static inline long sys_set_affinity(const struct cpu_set *set)
{
	return system_call(203, 0, sizeof(*set), (long)set, 0, 0, 0);
}

static inline long sys_get_affinity(struct cpu_set *set)
{
	return system_call(204, 0, sizeof(*set), (long)set, 0, 0, 0);
}

static inline u64 sys_clock_ns(int clock)
{
	struct timespec now = {0};
	system_call(228, clock, (long)&now, 0, 0, 0, 0);
	return (u64)now.seconds * 1000000000 + (u64)now.nanoseconds;
}

static inline void sys_sleep_us(u64 microseconds)
{
	struct timespec wish = {(long)(microseconds / 1000000), (long)(microseconds % 1000000 * 1000)};
	system_call(35, (long)&wish, 0, 0, 0, 0, 0);
}

#endif
