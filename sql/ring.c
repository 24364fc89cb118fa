/*
 * ring.c: putting records into the command ring.
 *
 * Many backends write, under a robust mutex in the segment: when its owner dies, the next one gets it
 * with EOWNERDEAD and goes on, since nothing counts that was written before `head` was stored, which
 * is the last thing that a writer does. Interrupts are held while it is ours, and nothing is raised.
 */
#include "pgraft.h"

#include <pthread.h>
#include <time.h>

#include "miscadmin.h"

#define LOCK_SLICE_NS (10 * NS_PER_MS)
#define RECORD_BYTES(payload) \
	TYPEALIGN(PGRAFT_RECORD_ALIGN, PGRAFT_RECORD_HEADER_BYTES + (uint64) (payload))

StaticAssertDecl(sizeof(pthread_mutex_t) <= PGRAFT_LOCK_BYTES, "the lock has no room");

/* The 16 bytes before each record's payload. */
typedef struct RecordHeader
{
	uint64		stamp;
	uint32		length;
	uint32		crc;
} RecordHeader;

static pthread_mutex_t *
ring_lock(void)
{
	return (pthread_mutex_t *) (pgraft_segment.base + pgraft_segment.command_offset +
								PGRAFT_COMMAND_LOCK_OFFSET);
}

static volatile uint64 *
head_word(void)
{
	return pgraft_words(pgraft_segment.command_offset) + PGRAFT_COMMAND_W_HEAD;
}

/*
 * Whether the lock is one of the kind that the supervisor makes. The C library goes by what it finds
 * there, and some kinds of damage would end the process.
 */
static bool
lock_is_ours(void)
{
#ifdef __GLIBC__
	static int	kind = -1;

	if (kind < 0)
	{
		pthread_mutexattr_t attributes;
		pthread_mutex_t sample;

		pthread_mutexattr_init(&attributes);
		pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
		pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
		pthread_mutex_init(&sample, &attributes);
		kind = sample.__data.__kind;
		pthread_mutex_destroy(&sample);
		pthread_mutexattr_destroy(&attributes);
	}
	return ring_lock()->__data.__kind == kind;
#else
	return true;
#endif
}

/*
 * Take the lock within a short slice: 0, ETIMEDOUT, or another errno when it is damaged.
 */
static int
take_lock(void)
{
	struct timespec until;
	int			result;

	if (!lock_is_ours())
		return EINVAL;
	result = pthread_mutex_trylock(ring_lock());
	if (result == EBUSY)
	{
		/* The monotonic clock where the C library can: the wall clock may jump. */
#if defined(__GLIBC_PREREQ) && __GLIBC_PREREQ(2, 30)
		clock_gettime(CLOCK_MONOTONIC, &until);
#else
		clock_gettime(CLOCK_REALTIME, &until);
#endif
		until.tv_nsec += LOCK_SLICE_NS;
		if (until.tv_nsec >= 1000000000)
		{
			until.tv_nsec -= 1000000000;
			until.tv_sec++;
		}
#if defined(__GLIBC_PREREQ) && __GLIBC_PREREQ(2, 30)
		result = pthread_mutex_clocklock(ring_lock(), CLOCK_MONOTONIC, &until);
#else
		result = pthread_mutex_timedlock(ring_lock(), &until);
#endif
	}
	if (result == EOWNERDEAD)
		result = pthread_mutex_consistent(ring_lock());
	return result;
}

static bool
positions(uint64 *head, uint64 *used)
{
	*head = pgraft_load(head_word());
	*used = *head - pgraft_worker_word(PGRAFT_WORKER_W_COMMAND_TAIL);
	return *head % PGRAFT_RECORD_ALIGN == 0 && *used <= pgraft_segment.ring_bytes;
}

/* Whether a record of that payload would fit now; also true when the positions make no sense. */
bool
pgraft_ring_has_room(size_t payload_bytes)
{
	uint64		head;
	uint64		used;

	return !positions(&head, &used) ||
		pgraft_segment.ring_bytes - used >= RECORD_BYTES(payload_bytes);
}

/* Copy to a position of the ring, around its end. */
static uint64
copy_to_ring(uint64 position, const void *data, size_t length)
{
	char	   *ring = pgraft_segment.base + pgraft_segment.command_offset + PGRAFT_COMMAND_RING_OFFSET;
	size_t		at = position % pgraft_segment.ring_bytes;
	size_t		first = Min(length, pgraft_segment.ring_bytes - at);

	memcpy(ring + at, data, first);
	memcpy(ring, (const char *) data + first, length - first);
	return position + length;
}

static PgraftPut
put_locked(RecordHeader *header, const uint64 *record, const char *piece, size_t piece_bytes,
		   bool is_last)
{
	uint64		size = RECORD_BYTES(header->length);
	uint64		head;
	uint64		used;
	uint64		at;

	if (!positions(&head, &used))
		return PGRAFT_PUT_DAMAGED;
	if (pgraft_segment.ring_bytes - used < size)
		return PGRAFT_PUT_FULL;
	header->stamp = head;
	at = copy_to_ring(head, header, sizeof(*header));
	at = copy_to_ring(at, record, PGRAFT_COMMAND_RECORD_BYTES);
	copy_to_ring(at, piece, piece_bytes);
	if (is_last)
		pgraft_slot_submitted(head + size);
	pgraft_store(head_word(), head + size);
	return PGRAFT_PUT_DONE;
}

/*
 * Put one record: PGRAFT_COMMAND_RECORD_BYTES of words and a piece of data. The last one of a request
 * marks our slot as submitted at the same time.
 */
PgraftPut
pgraft_ring_put(const uint64 *record, const char *piece, size_t piece_bytes, bool is_last)
{
	RecordHeader header = {0};
	PgraftPut	result = PGRAFT_PUT_BUSY;
	uint32		crc;
	int			locked;

	StaticAssertStmt(sizeof(RecordHeader) == PGRAFT_RECORD_HEADER_BYTES, "record header");
	crc = pgraft_crc32_start();
	crc = pgraft_crc32_add(crc, record, PGRAFT_COMMAND_RECORD_BYTES);
	crc = pgraft_crc32_add(crc, piece, piece_bytes);
	header.crc = pgraft_crc32_end(crc);
	header.length = (uint32) (PGRAFT_COMMAND_RECORD_BYTES + piece_bytes);

	HOLD_INTERRUPTS();
	locked = take_lock();
	if (locked == 0)
	{
		result = put_locked(&header, record, piece, piece_bytes, is_last);
		pthread_mutex_unlock(ring_lock());
	}
	else if (locked != ETIMEDOUT)
		result = PGRAFT_PUT_DAMAGED;
	RESUME_INTERRUPTS();
	return result;
}
