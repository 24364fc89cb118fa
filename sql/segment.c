/*
 * segment.c: finding, checking, mapping and reading the segment.
 *
 * Each backend maps it lazily for itself. The name stands in <data_dir>/run/segment. The mapping is
 * looked at again when the segment is retired, has a new epoch, or its worker looks dead; and never
 * while a command is in progress, which holds pointers into it.
 *
 * Everybody may make files in /dev/shm, and a copy of a data directory has the settings of its original. So
 * a file is believed only when it is ours alone, which is checked through its descriptor, and a segment only
 * when it was made for this very PostgreSQL data directory and this very Raft directory.
 *
 * A mapping must never meet SIGBUS: its size, and that all of its pages are reserved, are checked with
 * fstat before; the supervisor truncates no segment.
 */
#include "pgraft.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "miscadmin.h"
#include "port/atomics.h"

#define ATTACH_INTERVAL_NS (100 * NS_PER_MS)
#define BLOCK_READ_TRIES 64
#define SLOT_COUNT_MAX 65536
#define SEGMENT_NAME_BYTES_MAX 200
#define STAT_BLOCK_BYTES 512
#define FUTURE_BEAT_NS (1000 * NS_PER_MS)

PgraftSegment pgraft_segment;

static bool in_use = false;
static int64 next_attempt_ns = 0;
static const char *problem = "it was never started.";
static char problem_text[MAXPGPATH + 128];
static bool version_warned = false;

/* CLOCK_BOOTTIME, as everything in the segment: monotonic, and counts a suspended machine's time. */
int64
pgraft_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_BOOTTIME, &now);
	return (int64) now.tv_sec * INT64CONST(1000000000) + now.tv_nsec;
}

/* Why nothing is mapped, a sentence that ends in a period. */
const char *
pgraft_attach_problem(void)
{
	return problem;
}

/* Between these the mapping stays as it is. */
void
pgraft_use_begin(void)
{
	in_use = true;
}

void
pgraft_use_end(void)
{
	in_use = false;
}

/*
 * Open a file of this type (S_IFREG, S_IFIFO) without following a link and without waiting; -1 when it is
 * not there, is not ours, or others may write it.
 */
int
pgraft_open_own(const char *path, int flags, mode_t type)
{
	struct stat about;
	int			fd = open(path, flags | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0)
		return -1;
	if (fstat(fd, &about) == 0 && (about.st_mode & S_IFMT) == type &&
		about.st_uid == geteuid() && (about.st_mode & (S_IWGRP | S_IWOTH)) == 0)
		return fd;
	close(fd);
	errno = EPERM;
	return -1;
}

/*
 * The segment's name as shm_open wants it, with a slash before it.
 */
static bool
read_name(const char *run_dir, char *name)
{
	char		path[MAXPGPATH];
	ssize_t		length;
	int			fd;

	if (snprintf(path, sizeof(path), "%s/segment", run_dir) >= (int) sizeof(path))
		return false;
	fd = pgraft_open_own(path, O_RDONLY, S_IFREG);
	if (fd < 0)
	{
		if (errno != ENOENT)
			problem = "the file run/segment in its pgraft.data_dir cannot be read, or is not this user's alone.";
		return false;
	}
	name[0] = '/';
	length = read(fd, name + 1, SEGMENT_NAME_BYTES_MAX);
	close(fd);
	while (length > 0 && (name[length] == '\n' || name[length] == ' '))
		length--;
	if (length <= 0)
		return false;
	name[length + 1] = '\0';
	return strlen(name) == (size_t) length + 1 && strchr(name + 1, '/') == NULL;
}

static bool
fits(uint64 offset, uint64 size, uint64 bytes)
{
	return offset % PGRAFT_WORD_BYTES == 0 && offset <= bytes && size <= bytes - offset;
}

static int64
clamp_election_timeout_ns(uint64 ms)
{
	return (int64) Min(Max(ms, PGRAFT_ELECTION_TIMEOUT_MS_MIN), PGRAFT_ELECTION_TIMEOUT_MS_MAX) * NS_PER_MS;
}

/*
 * Check a copy of the header page, and take over what it says.
 */
static bool
read_header(const uint64 *words, uint64 file_bytes, PgraftSegment *into)
{
	uint64		bytes = words[PGRAFT_HEADER_W_SEGMENT_BYTES];
	uint64		members = words[PGRAFT_HEADER_W_MEMBERS_OFFSET];
	uint64		command = words[PGRAFT_HEADER_W_COMMAND_OFFSET];
	uint64		ring_bytes = words[PGRAFT_HEADER_W_COMMAND_RING_BYTES];
	uint64		slots = words[PGRAFT_HEADER_W_SLOTS_OFFSET];
	uint64		slot_count = words[PGRAFT_HEADER_W_SLOT_COUNT];
	uint64		entry_bytes = words[PGRAFT_HEADER_W_MAX_ENTRY_BYTES];

	problem = "its segment has no complete pgraft header.";
	if (words[PGRAFT_HEADER_W_MAGIC] != PGRAFT_MAGIC)
		return false;
	problem = "its segment has another layout version: is the extension of another pgraft installed?";
	if (words[PGRAFT_HEADER_W_LAYOUT_VERSION] != PGRAFT_LAYOUT_VERSION)
		return false;
	problem = "the header of its segment makes no sense.";
	if (bytes > file_bytes ||
		words[PGRAFT_HEADER_W_STATUS_OFFSET] != PGRAFT_STATUS_OFFSET ||
		words[PGRAFT_HEADER_W_STATUS_COPY_BYTES] != PGRAFT_STATUS_COPY_BYTES ||
		words[PGRAFT_HEADER_W_MEMBERS_COPY_BYTES] != PGRAFT_MEMBERS_COPY_BYTES ||
		words[PGRAFT_HEADER_W_SLOT_BYTES] != PGRAFT_SLOT_BYTES ||
		ring_bytes < PGRAFT_COMMAND_RING_BYTES_MIN || ring_bytes > PGRAFT_COMMAND_RING_BYTES_MAX ||
		ring_bytes % PGRAFT_RECORD_ALIGN != 0 ||
		slot_count < 1 || slot_count > SLOT_COUNT_MAX)
		return false;
	if (!fits(PGRAFT_STATUS_OFFSET, 2 * PGRAFT_STATUS_COPY_BYTES, bytes) ||
		!fits(members, 2 * PGRAFT_MEMBERS_COPY_BYTES, bytes) ||
		!fits(command, PGRAFT_COMMAND_RING_OFFSET + ring_bytes, bytes) ||
		!fits(slots, slot_count * PGRAFT_SLOT_BYTES, bytes))
		return false;

	into->bytes = bytes;
	into->epoch = words[PGRAFT_HEADER_W_EPOCH];
	into->election_timeout_ns = clamp_election_timeout_ns(words[PGRAFT_HEADER_W_ELECTION_TIMEOUT_MS]);
	into->members_offset = members;
	into->command_offset = command;
	into->ring_bytes = ring_bytes;
	into->slots_offset = slots;
	into->slot_count = (uint32) slot_count;
	into->entry_bytes_max = entry_bytes > 0 ? (uint32) Min(entry_bytes, PGRAFT_ENTRY_BYTES_MAX) : PGRAFT_ENTRY_BYTES_MAX;
	return true;
}

/* Whether the two words of a header from `word` on, device and inode, are those of this directory. */
static bool
is_place(const uint64 *header, int word, const char *directory)
{
	struct stat about;

	return stat(directory, &about) == 0 &&
		header[word] == (uint64) about.st_dev && header[word + 1] == (uint64) about.st_ino;
}

/*
 * Whether the segment was made for this Raft directory and for this PostgreSQL data directory. A copy of
 * the first names the segment of the original, and a copy of the second names its Raft directory. The
 * directories are compared, not their names.
 */
static bool
is_ours(const uint64 *header, const char *data_dir)
{
	uint64		length = header[PGRAFT_HEADER_TEXT_PGDATA / PGRAFT_WORD_BYTES];
	const char *text = (const char *) header + PGRAFT_HEADER_TEXT_PGDATA + PGRAFT_WORD_BYTES;

	problem = "its segment is that of another node, whose pgraft.data_dir was copied.";
	if (!is_place(header, PGRAFT_HEADER_W_DATA_DIR_DEVICE, data_dir))
		return false;
	if (is_place(header, PGRAFT_HEADER_W_PGDATA_DEVICE, DataDir))
		return true;
	snprintf(problem_text, sizeof(problem_text),
			 "its pgraft.data_dir is that of another PostgreSQL data directory: \"%.*s\".",
			 (int) Min(length, PGRAFT_HEADER_TEXT_PGDATA_BYTES), text);
	problem = problem_text;
	return false;
}

/*
 * Check the file behind an open segment, and read its header through the descriptor.
 */
static bool
check_file(int fd, const char *data_dir, PgraftSegment *into)
{
	uint64		header[PGRAFT_PAGE_BYTES / PGRAFT_WORD_BYTES];
	struct stat about;

	problem = "its segment cannot be read.";
	if (fstat(fd, &about) < 0)
		return false;
	problem = "its segment belongs to another operating system user.";
	if (about.st_uid != geteuid())
		return false;
	problem = "its segment is not a regular file of mode 0600 with one name.";
	if (!S_ISREG(about.st_mode) || (about.st_mode & ALLPERMS) != (S_IRUSR | S_IWUSR) || about.st_nlink != 1)
		return false;
	problem = "its segment is not completely there.";
	if (about.st_size < PGRAFT_PAGE_BYTES ||
		about.st_blocks * (int64) STAT_BLOCK_BYTES < about.st_size)
		return false;
	if (pread(fd, header, sizeof(header), 0) != (ssize_t) sizeof(header))
		return false;
	into->device = about.st_dev;
	into->inode = about.st_ino;
	if (!read_header(header, (uint64) about.st_size, into))
		return false;
	return is_ours(header, data_dir);
}

/*
 * Map the open segment in place of the one that we have, unless it is the same.
 */
static void
replace_mapping(int fd, PgraftSegment *found)
{
	void	   *base;

	if (pgraft_segment.base != NULL && pgraft_segment.bytes == found->bytes &&
		pgraft_segment.device == found->device && pgraft_segment.inode == found->inode)
	{
		/* A new epoch may have come with new FIFOs of the old names. */
		if (pgraft_segment.epoch != found->epoch)
			pgraft_bells_close();
		found->base = pgraft_segment.base;
		pgraft_segment = *found;
		return;
	}
	problem = "its segment cannot be mapped.";
	base = mmap(NULL, found->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (base == MAP_FAILED)
		return;
	found->base = base;
	pgraft_bells_close();
	if (pgraft_segment.base != NULL)
		munmap(pgraft_segment.base, pgraft_segment.bytes);
	pgraft_segment = *found;
}

static void
try_map(void)
{
	PgraftSegment found = {0};
	char		data_dir[MAXPGPATH];
	char		name[SEGMENT_NAME_BYTES_MAX + 2];
	int			fd;

	problem = "the path of pgraft.data_dir is too long.";
	if (!pgraft_data_dir(data_dir, sizeof(data_dir)) ||
		snprintf(found.run_dir, sizeof(found.run_dir), "%s/run", data_dir) >= (int) sizeof(found.run_dir))
		return;
	problem = "it was never started, or pgraft.data_dir is another one.";
	if (!read_name(found.run_dir, name))
		return;
	problem = "its segment is gone.";
	fd = shm_open(name, O_RDWR | O_CLOEXEC, 0);
	if (fd < 0 && errno != ENOENT)
		problem = "its segment cannot be opened: it is not this user's.";
	if (fd < 0)
		return;
	if (check_file(fd, data_dir, &found))
		replace_mapping(fd, &found);
	close(fd);
}

/*
 * Say once in a session that the extension and the running processes are of different versions.
 */
static void
warn_version_once(void)
{
	char	   *running;

	if (version_warned)
		return;
	running = pgraft_segment_text(PGRAFT_HEADER_TEXT_VERSION, PGRAFT_HEADER_TEXT_VERSION_BYTES);
	if (running[0] != '\0' && strcmp(running, PGRAFT_VERSION) != 0)
	{
		version_warned = true;
		ereport(WARNING,
				(errmsg("the pgraft extension has version %s, the running processes have version %s",
						PGRAFT_VERSION, running),
				 errhint("Install the extension again with pgraft-launch install-extension, "
						 "or restart the node with pgraft-launch restart.")));
	}
	pfree(running);
}

/* Whether the mapping is the one of a runtime that goes on. */
static bool
mapping_is_current(int64 now)
{
	uint64		beat;

	if (pgraft_segment.base == NULL || pgraft_header_word(PGRAFT_HEADER_W_RETIRED) != 0 ||
		pgraft_header_word(PGRAFT_HEADER_W_EPOCH) != pgraft_segment.epoch)
		return false;
	beat = pgraft_worker_word(PGRAFT_WORKER_W_BEAT_NS);
	return (uint64) now <= beat + (uint64) pgraft_segment.election_timeout_ns;
}

/*
 * Have the right segment mapped, where there is one; whether anything is mapped, be it an old one.
 * Cheap when nothing changed; otherwise it looks again at most every ATTACH_INTERVAL_NS.
 */
bool
pgraft_attach(int64 now)
{
	if (mapping_is_current(now) || in_use)
		return pgraft_segment.base != NULL;
	if (now >= next_attempt_ns)
	{
		next_attempt_ns = now + ATTACH_INTERVAL_NS;
		try_map();
	}
	if (pgraft_segment.base == NULL)
		return false;
	warn_version_once();
	return true;
}

/*
 * Read what /proc/<pid>/stat says: the start time in clock ticks since boot (field 22), 0 when it
 * cannot be read, and whether the process is dead and only not reaped yet (field 3).
 */
static uint64
process_start(pid_t pid, bool *is_zombie)
{
	char		path[64];
	char		line[1024];
	char	   *at;
	ssize_t		length;
	int			fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int) pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	length = read(fd, line, sizeof(line) - 1);
	close(fd);
	if (length <= 0)
		return 0;
	line[length] = '\0';
	/* The name, field 2, is in parentheses and may hold anything: count from the last one. */
	at = strrchr(line, ')');
	*is_zombie = at != NULL && (strncmp(at, ") Z", 3) == 0 || strncmp(at, ") X", 3) == 0);
	for (int field = 2; at != NULL && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at == NULL ? 0 : strtoull(at + 1, NULL, 10);
}

/* Whether the process that the header names is still that one. */
static bool
process_alive(int pid_word, int start_word)
{
	uint64		pid = pgraft_header_word(pid_word);
	uint64		start = pgraft_header_word(start_word);
	uint64		seen;
	bool		is_zombie = false;

	if (pid < 2 || pid > PG_INT32_MAX)
		return false;
	/* EPERM: a process of another user, so none of this node. */
	if (kill((pid_t) pid, 0) < 0)
		return false;
	seen = process_start((pid_t) pid, &is_zombie);
	if (is_zombie)
		return false;
	return start == 0 || seen == 0 || seen == start;
}

/* Whether the worker says that it left consensus: it, or the thread that watches a hanging disk. */
bool
pgraft_worker_left(void)
{
	return pgraft_segment.base != NULL &&
		pgraft_worker_word(PGRAFT_WORKER_W_STATE) == PGRAFT_WORKER_IS_ERROR;
}

bool
pgraft_supervisor_alive(void)
{
	return process_alive(PGRAFT_HEADER_W_SUPERVISOR_PID, PGRAFT_HEADER_W_SUPERVISOR_START);
}

/* Whether a time is at most `ns` ago; one that lies well in the future is no time of ours. */
static bool
is_within(uint64 boot_ns, int64 ns)
{
	int64		now = pgraft_now_ns();

	return boot_ns <= (uint64) (now + FUTURE_BEAT_NS) && now - (int64) boot_ns <= ns;
}

/* When the worker's process was started; 0 when that is not known. */
static uint64
worker_start_ns(void)
{
	return pgraft_header_word(PGRAFT_HEADER_W_WORKER_START) *
		(UINT64CONST(1000000000) / (uint64) sysconf(_SC_CLK_TCK));
}

/* Whether the worker's page speaks of the process that the header names, and not of one before it. */
bool
pgraft_worker_has_begun(void)
{
	uint64		begun = pgraft_worker_word(PGRAFT_WORKER_W_STARTED_BOOT_NS);

	return begun != 0 && begun >= worker_start_ns();
}

/*
 * Whether the worker can be counted on. One that starts up beats at each step; before its first one, its
 * start counts as a beat. (pgraft/shm/segment.py, worker_state, judges likewise.)
 */
PgraftLiveness
pgraft_liveness(void)
{
	uint64		state;
	uint64		beat;

	if (pgraft_segment.base == NULL || pgraft_header_word(PGRAFT_HEADER_W_RETIRED) != 0)
		return PGRAFT_ABSENT;
	state = pgraft_worker_word(PGRAFT_WORKER_W_STATE);
	beat = pgraft_worker_word(PGRAFT_WORKER_W_BEAT_NS);
	if (state != PGRAFT_WORKER_IS_STOPPED && is_within(beat, pgraft_segment.election_timeout_ns))
		return PGRAFT_ALIVE;
	if (!process_alive(PGRAFT_HEADER_W_WORKER_PID, PGRAFT_HEADER_W_WORKER_START))
		return PGRAFT_ABSENT;
	if (!pgraft_worker_has_begun())
		beat = Max(beat, worker_start_ns());
	else if (state == PGRAFT_WORKER_IS_STOPPED && beat == 0)
		return PGRAFT_ABSENT;	/* it has ended in an orderly way, all but its process */
	/* A stopped worker that is there and beats is that of a removed node: it answers, and says so. */
	return is_within(beat, pgraft_segment.election_timeout_ns) ? PGRAFT_ALIVE : PGRAFT_SILENT;
}

static bool
copy_is_whole(size_t offset, size_t copy_bytes, size_t bytes_min, char *copy)
{
	uint64		used = pgraft_load(pgraft_words(offset) + 1);
	uint64		head[2];
	uint32		crc;

	if (used < bytes_min || used > copy_bytes)
		return false;
	memcpy(copy, pgraft_segment.base + offset, used);
	memcpy(head, copy, sizeof(head));
	if (head[1] != used)
		return false;
	crc = pgraft_crc32_start();
	crc = pgraft_crc32_add(crc, copy + PGRAFT_WORD_BYTES, used - PGRAFT_WORD_BYTES);
	return head[0] == pgraft_crc32_end(crc);
}

/*
 * Copy a block of two checksummed copies, of at least `bytes_min` used bytes, into `copy`, which has
 * room for `copy_bytes`. The other copy serves when the selected one is never whole: the writer may
 * have died. False when neither is.
 */
bool
pgraft_copy_block(size_t offset, size_t copy_bytes, int selector_word, size_t bytes_min, char *copy)
{
	size_t		chosen = 0;

	memset(copy, 0, copy_bytes);
	for (int i = 0; i < BLOCK_READ_TRIES; i++)
	{
		chosen = pgraft_worker_word(selector_word) & 1;
		if (!copy_is_whole(offset + chosen * copy_bytes, copy_bytes, bytes_min, copy))
			continue;
		/*
		 * A copy that was replaced meanwhile may be newer than the one that is selected now: whoever took
		 * it would go back with the next read.
		 */
		pg_read_barrier();
		if ((pgraft_worker_word(selector_word) & 1) == chosen)
			return true;
	}
	return copy_is_whole(offset + (1 - chosen) * copy_bytes, copy_bytes, bytes_min, copy);
}

/*
 * A text of the segment (length word, then bytes), palloc'd.
 */
char *
pgraft_segment_text(size_t offset, size_t room)
{
	uint64		length = pgraft_load(pgraft_words(offset));

	return pgraft_safe_text(pgraft_segment.base + offset + PGRAFT_WORD_BYTES, Min(length, room));
}
