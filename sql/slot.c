/*
 * slot.c: this session's result slot, its doorbells, and the wait.
 *
 * A slot is claimed by compare-and-swap of its owner word from 0 to (pid << 32 | 1), or from an owner
 * that is no process of this server any more. Only the owner writes the backend half; only the worker
 * writes the other half. It is given back on every way out, the end of the process included.
 */
#include "pgraft.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "miscadmin.h"
#include "pgstat.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#if PG_VERSION_NUM >= 180000
#include "storage/waiteventset.h"
#endif
#include "utils/memutils.h"
#include "utils/wait_event.h"

#define NONE (-1)

static int	held = NONE;		/* the slot that is ours now */
static int	last_held = NONE;	/* the one to try first */
static int	bell_of = NONE;		/* the slot that slot_bell belongs to */
static int	slot_bell = NONE;
static int	worker_bell = NONE;
static WaitEventSet *wait_set = NULL;
static bool exit_hook_made = false;

static volatile uint64 *
slot_words(int number)
{
	return pgraft_words(pgraft_segment.slots_offset + (size_t) number * PGRAFT_SLOT_BYTES);
}

static bool
swap_owner(int number, uint64 from)
{
	uint64		mine = ((uint64) MyProcPid << 32) | 1;

	if (!__atomic_compare_exchange_n(slot_words(number) + PGRAFT_SLOT_W_OWNER, &from, mine,
									 false, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return false;
	held = last_held = number;
	return true;
}

/*
 * Take a slot that is free, or that says it is ours: a process of our pid before us left it.
 */
static bool
try_free(int number)
{
	uint64		owner = pgraft_load(slot_words(number) + PGRAFT_SLOT_W_OWNER);

	return (owner == 0 || (owner >> 32) == (uint64) MyProcPid) && swap_owner(number, owner);
}

static bool
try_dead(int number)
{
	uint64		owner = pgraft_load(slot_words(number) + PGRAFT_SLOT_W_OWNER);
	uint64		pid = owner >> 32;

	if (pid <= PG_INT32_MAX && BackendPidGetProc((int) pid) != NULL)
		return false;
	return swap_owner(number, owner);
}

static bool
claim_any(void)
{
	int			count = (int) pgraft_segment.slot_count;
	int			first = MyProcPid % count;

	if (last_held != NONE && last_held < count && try_free(last_held))
		return true;
	for (int i = 0; i < count; i++)
		if (try_free((first + i) % count))
			return true;
	for (int i = 0; i < count; i++)
		if (try_dead((first + i) % count))
			return true;
	return false;
}

static void
release_at_exit(int code, Datum arg)
{
	pgraft_slot_release();
}

static void
close_bell(int *bell)
{
	if (*bell == NONE)
		return;
	close(*bell);
	ReleaseExternalFD();
	*bell = NONE;
}

static void
close_slot_bell(void)
{
	if (wait_set != NULL)
		FreeWaitEventSet(wait_set);
	wait_set = NULL;
	close_bell(&slot_bell);
	bell_of = NONE;
}

/* Forget descriptors that belong to another segment. */
void
pgraft_bells_close(void)
{
	close_slot_bell();
	close_bell(&worker_bell);
	last_held = NONE;
}

/*
 * Open a FIFO of the run directory, for reading and writing, so that it never sees an end.
 */
static int
open_bell(const char *name)
{
	char		path[MAXPGPATH + 64];
	int			fd;

	if (!AcquireExternalFD())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_RESOURCES),
				 errmsg("too many open files for a pgraft command")));
	snprintf(path, sizeof(path), "%s/%s", pgraft_segment.run_dir, name);
	fd = pgraft_open_own(path, O_RDWR, S_IFIFO);
	if (fd >= 0)
		return fd;
	ReleaseExternalFD();
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("could not open the FIFO \"%s\"", path),
			 errhint("Start pgraft anew with: pgraft-launch restart -D %s", DataDir)));
	pg_unreachable();
}

static void
drain_bell(void)
{
	char		rings[256];

	while (read(slot_bell, rings, sizeof(rings)) == (ssize_t) sizeof(rings))
		;
}

static WaitEventSet *
make_wait_set(int fd)
{
#if PG_VERSION_NUM >= 170000
	WaitEventSet *set = CreateWaitEventSet(NULL, 3);
#else
	WaitEventSet *set = CreateWaitEventSet(TopMemoryContext, 3);
#endif

	AddWaitEventToSet(set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(set, WL_SOCKET_READABLE, fd, NULL, NULL);
	if (IsUnderPostmaster)
		AddWaitEventToSet(set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	return set;
}

static void
open_bells(void)
{
	char		name[32];

	if (worker_bell == NONE)
		worker_bell = open_bell("worker.bell");
	if (bell_of == held && wait_set != NULL)
		return;
	close_slot_bell();
	snprintf(name, sizeof(name), "slot.%d.bell", held);
	slot_bell = open_bell(name);
	bell_of = held;
	wait_set = make_wait_set(slot_bell);
}

/*
 * Claim a slot and open its bells; false when none is free.
 */
bool
pgraft_slot_claim(void)
{
	if (!exit_hook_made)
	{
		before_shmem_exit(release_at_exit, (Datum) 0);
		exit_hook_made = true;
	}
	if (!claim_any())
		return false;
	open_bells();
	drain_bell();
	return true;
}

void
pgraft_slot_release(void)
{
	volatile uint64 *words;

	if (held == NONE || pgraft_segment.base == NULL)
		return;
	words = slot_words(held);
	pgraft_store(words + PGRAFT_SLOT_W_STATE, PGRAFT_SLOT_IS_FREE);
	pgraft_store(words + PGRAFT_SLOT_W_WANT_SPACE, 0);
	pgraft_store(words + PGRAFT_SLOT_W_OWNER, 0);
	held = NONE;
}

int
pgraft_slot_number(void)
{
	return held;
}

/*
 * Begin a request in our slot; its number, which grows as long as the segment lives.
 */
uint64
pgraft_slot_next_request(void)
{
	volatile uint64 *words = slot_words(held);
	uint64		number = pgraft_load(words + PGRAFT_SLOT_W_REQUEST_NO) + 1;

	pgraft_store(words + PGRAFT_SLOT_W_STATE, PGRAFT_SLOT_IS_PREPARING);
	pgraft_store(words + PGRAFT_SLOT_W_REQUEST_NO, number);
	return number;
}

/* Called under the ring's lock, before the last record of the request becomes visible. */
void
pgraft_slot_submitted(uint64 end_position)
{
	volatile uint64 *words = slot_words(held);

	pgraft_store(words + PGRAFT_SLOT_W_SUBMITTED_POS, end_position);
	pgraft_store(words + PGRAFT_SLOT_W_STATE, PGRAFT_SLOT_IS_SUBMITTED);
}

/* Ask the worker for a ring when it has made room, or take that back. */
void
pgraft_slot_want_space(bool want)
{
	pgraft_store(slot_words(held) + PGRAFT_SLOT_W_WANT_SPACE, want ? 1 : 0);
	pg_memory_barrier();
}

/*
 * Copy the answer to `request_no`; false when there is no whole one with a number other than `seen`.
 */
bool
pgraft_slot_answer(uint64 request_no, uint64 seen, PgraftAnswer *answer)
{
	volatile uint64 *words = slot_words(held);
	const char *payload = (const char *) words + PGRAFT_SLOT_PAYLOAD_OFFSET;
	uint64		copy[PGRAFT_SLOT_W_PAYLOAD_BYTES - PGRAFT_SLOT_W_ANSWER_NO + 1];
	uint32		crc;

	for (size_t i = 0; i < lengthof(copy); i++)
		copy[i] = pgraft_load(words + PGRAFT_SLOT_W_ANSWER_NO + i);
	answer->number = copy[0];
	answer->request_no = copy[PGRAFT_SLOT_W_ANSWERED_NO - PGRAFT_SLOT_W_ANSWER_NO];
	answer->outcome = copy[PGRAFT_SLOT_W_OUTCOME - PGRAFT_SLOT_W_ANSWER_NO];
	answer->value1 = copy[PGRAFT_SLOT_W_VALUE1 - PGRAFT_SLOT_W_ANSWER_NO];
	answer->value2 = copy[PGRAFT_SLOT_W_VALUE2 - PGRAFT_SLOT_W_ANSWER_NO];
	if (answer->request_no != request_no || answer->number == seen ||
		answer->outcome == PGRAFT_OUTCOME_NONE ||
		copy[lengthof(copy) - 1] > PGRAFT_SLOT_PAYLOAD_BYTES)
		return false;
	answer->length = (uint32) copy[lengthof(copy) - 1];
	answer->payload = palloc(answer->length + 1);
	memcpy(answer->payload, payload, answer->length);
	answer->payload[answer->length] = '\0';

	crc = pgraft_crc32_start();
	crc = pgraft_crc32_add(crc, copy, sizeof(copy));
	crc = pgraft_crc32_add(crc, answer->payload, answer->length);
	if (pgraft_crc32_end(crc) == pgraft_load(words + PGRAFT_SLOT_W_CRC))
		return true;
	pfree(answer->payload);
	answer->payload = NULL;
	return false;
}

static uint32
wait_event(bool for_space)
{
#if PG_VERSION_NUM >= 170000
	static uint32 commit_event = 0;
	static uint32 space_event = 0;

	if (commit_event == 0)
	{
		commit_event = WaitEventExtensionNew("PgraftCommit");
		space_event = WaitEventExtensionNew("PgraftRingSpace");
	}
	return for_space ? space_event : commit_event;
#else
	return PG_WAIT_EXTENSION;
#endif
}

/*
 * Sleep until the slot's bell rings, the latch is set, or the time is over. The caller checks for
 * interrupts and looks again.
 */
void
pgraft_slot_wait(long timeout_ms, bool for_space)
{
	WaitEvent	event;

	if (WaitEventSetWait(wait_set, timeout_ms, &event, 1, wait_event(for_space)) == 0)
		return;
	if (event.events & WL_LATCH_SET)
		ResetLatch(MyLatch);
	if (event.events & WL_SOCKET_READABLE)
		drain_bell();
}

/*
 * Wake the worker when it sleeps. What was published must be visible before its word is read.
 */
void
pgraft_ring_worker(void)
{
	ssize_t		written;

	pg_memory_barrier();
	if (pgraft_worker_word(PGRAFT_WORKER_W_SLEEPING) != PGRAFT_SLEEPS_FOR_ANYONE)
		return;
	/* A full FIFO is as good as a rung bell. */
	written = write(worker_bell, "", 1);
	(void) written;
}
