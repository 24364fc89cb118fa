/* A disk that can be slow, hang, be full or fail, for real processes: preloaded with LD_PRELOAD.
 *
 * The environment names a control file in PGRAFT_FAULTS and, in PGRAFT_FAULTS_LOG, a file that gets a
 * line for each call that met a rule, and from the first failure on for every call below the folder.
 * The control file is read anew at every call; disk_faults.py writes it (by rename) and says what the
 * lines mean. Only files below its folder are touched. Knows nothing of threads: one may be in here at
 * a time with a rule that counts.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

#define CONTROL_BYTES_MAX 4096
#define POLL_MS 5
#define RULES_MAX 16

struct rule
{
	long		serial;
	int			number;
	char		action[16];
	long		value;
	long		times;				/* how often it applies; 0: as long as it stands */
};

static const char *control, *record;
static int (*real_fdatasync) (int);
static int (*real_fsync) (int);
static ssize_t (*real_pwrite) (int, const void *, size_t, off64_t);
static int (*real_fallocate) (int, off64_t, off64_t);
static int (*real_clock_gettime) (clockid_t, struct timespec *);
static long used[RULES_MAX], used_serial;
static volatile int failed_once;

__attribute__((constructor)) static void
begin(void)
{
	/* Copies: PostgreSQL writes its process title over the environment it was started with. */
	if (getenv("PGRAFT_FAULTS") != NULL)
		control = strdup(getenv("PGRAFT_FAULTS"));
	if (getenv("PGRAFT_FAULTS_LOG") != NULL)
		record = strdup(getenv("PGRAFT_FAULTS_LOG"));
	real_fdatasync = (int (*) (int)) dlsym(RTLD_NEXT, "fdatasync");
	real_fsync = (int (*) (int)) dlsym(RTLD_NEXT, "fsync");
	real_pwrite = (ssize_t (*) (int, const void *, size_t, off64_t)) dlsym(RTLD_NEXT, "pwrite64");
	real_fallocate = (int (*) (int, off64_t, off64_t)) dlsym(RTLD_NEXT, "posix_fallocate64");
	real_clock_gettime = (int (*) (clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
}

/* The control file's text; 0 when there is none. */
static int
read_control(char *text)
{
	int			fd;
	ssize_t		got;

	if (control == NULL || (fd = open(control, O_RDONLY | O_CLOEXEC)) < 0)
		return 0;
	got = read(fd, text, CONTROL_BYTES_MAX - 1);
	close(fd);
	text[got > 0 ? got : 0] = '\0';
	return got > 0;
}

/* The first rule for `call` on this descriptor that is not used up. Lines: "serial N", "below PATH",
 * "CALL ACTION VALUE TIMES PART", where PART must occur in the path ("*": any). */
static int
find_rule(const char *call, int fd, struct rule *found, char *path)
{
	char		text[CONTROL_BYTES_MAX], link[64], below[PATH_MAX] = "", *line, *rest;
	long		serial = 0;
	int			number = 0;
	ssize_t		length;

	if (!read_control(text))
		return 0;
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	if ((length = readlink(link, path, PATH_MAX - 1)) < 0)
		return 0;
	path[length] = '\0';
	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest))
	{
		char		of[32], part[128];
		struct rule at;

		if (sscanf(line, "serial %ld", &serial) == 1 || sscanf(line, "below %4095s", below) == 1)
			continue;
		if (sscanf(line, "%31s %15s %ld %ld %127s", of, at.action, &at.value, &at.times, part) != 5)
			continue;
		if (below[0] == '\0' || strncmp(path, below, strlen(below)) != 0)
			return 0;
		if (serial != used_serial)
		{
			memset(used, 0, sizeof used);
			used_serial = serial;
		}
		at.serial = serial;
		at.number = number++ % RULES_MAX;
		if (strcmp(of, call) != 0 || (strcmp(part, "*") != 0 && strstr(path, part) == NULL))
			continue;
		if (at.times != 0 && used[at.number] >= at.times)
			continue;
		*found = at;
		return 1;
	}
	if (failed_once && below[0] != '\0' && strncmp(path, below, strlen(below)) == 0)
	{
		strcpy(found->action, "passed");
		return 1;
	}
	return 0;
}

static void
note(const char *call, const char *action, const char *path)
{
	char		line[PATH_MAX + 128];
	int			fd, length;

	if (record == NULL || (fd = open(record, O_WRONLY | O_APPEND | O_CLOEXEC)) < 0)
		return;
	length = snprintf(line, sizeof line, "%d %s %s %s\n", (int) getpid(), call, action, path);
	if (write(fd, line, length) != length)
		abort();
	close(fd);
}

/* Wait while the rule stands; `ms` at most, 0: without end. */
static void
hold(const struct rule *rule, const char *call, int fd, long ms)
{
	char		path[PATH_MAX];
	struct timespec pause = {0, POLL_MS * 1000000L};
	struct rule now;
	long		waited;

	for (waited = 0; ms == 0 || waited < ms; waited += POLL_MS)
	{
		nanosleep(&pause, NULL);
		if (ms == 0 && (!find_rule(call, fd, &now, path) || now.serial != rule->serial))
			return;
	}
}

/* What becomes of a call: 0: it goes on; else the errno that it fails with. `torn` gets the bytes
 * that a torn write may write before the process dies, -1 when it is whole. */
static int
meet(const char *call, int fd, long *torn)
{
	char		path[PATH_MAX];
	struct rule rule;
	int			error = 0;

	*torn = -1;
	if (!find_rule(call, fd, &rule, path))
		return 0;
	note(call, rule.action, path);
	if (strcmp(rule.action, "passed") == 0)
		return 0;
	used[rule.number]++;
	if (strcmp(rule.action, "delay") == 0)
		hold(&rule, call, fd, rule.value);
	else if (strcmp(rule.action, "hang") == 0)
	{
		hold(&rule, call, fd, 0);
		note(call, "released", path);
	}
	else if (strcmp(rule.action, "fail") == 0)
	{
		failed_once = 1;
		error = (int) rule.value;
	}
	else if (strcmp(rule.action, "tear") == 0)
		*torn = rule.value;
	return error;
}

int
fdatasync(int fd)
{
	long		torn;
	int			error = meet("fdatasync", fd, &torn);

	if (error == 0)
		return real_fdatasync(fd);
	errno = error;
	return -1;
}

int
fsync(int fd)
{
	long		torn;
	int			error = meet("fsync", fd, &torn);

	if (error == 0)
		return real_fsync(fd);
	errno = error;
	return -1;
}

ssize_t
pwrite64(int fd, const void *data, size_t size, off64_t offset)
{
	long		torn;
	int			error = meet("pwrite", fd, &torn);

	if (torn >= 0)
	{
		if (real_pwrite(fd, data, (size_t) torn < size ? (size_t) torn : size, offset) >= 0)
			kill(getpid(), SIGKILL);
		abort();
	}
	if (error == 0)
		return real_pwrite(fd, data, size, offset);
	errno = error;
	return -1;
}

ssize_t
pwrite(int fd, const void *data, size_t size, off_t offset)
{
	return pwrite64(fd, data, size, offset);
}

int
posix_fallocate64(int fd, off64_t offset, off64_t length)
{
	long		torn;
	int			error = meet("fallocate", fd, &torn);

	return error != 0 ? error : real_fallocate(fd, offset, length);
}

int
posix_fallocate(int fd, off_t offset, off_t length)
{
	return posix_fallocate64(fd, offset, length);
}

/* The wall clock: "clock SECONDS" in the control file is added to it. */
static long
wall_shift(void)
{
	char		text[CONTROL_BYTES_MAX], *line;
	long		shift = 0;

	if (!read_control(text))
		return 0;
	line = strstr(text, "\nclock ");
	return line != NULL && sscanf(line, "\nclock %ld", &shift) == 1 ? shift : 0;
}

int
clock_gettime(clockid_t clock, struct timespec *now)
{
	int			result = real_clock_gettime(clock, now);

	if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
		now->tv_sec += wall_shift();
	return result;
}

int
gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec spec;

	(void) zone;
	if (clock_gettime(CLOCK_REALTIME, &spec) != 0)
		return -1;
	now->tv_sec = spec.tv_sec;
	now->tv_usec = spec.tv_nsec / 1000;
	return 0;
}

time_t
time(time_t *at)
{
	struct timespec spec;

	clock_gettime(CLOCK_REALTIME, &spec);
	if (at != NULL)
		*at = spec.tv_sec;
	return spec.tv_sec;
}
