/*
 * pgraft.h: what the files of the shim share.
 *
 * Rules of the house: whatever comes out of the segment is read once into a local variable, checked
 * against a bound, and only then used. Nothing is written there but the backend half of our own
 * result slot and, under its lock, the command ring. No error is raised while that lock is held.
 */
#ifndef PGRAFT_H
#define PGRAFT_H

#include "postgres.h"

#include <sys/stat.h>

#include "fmgr.h"
#include "utils/guc.h"

#include "pgraft_settings.h"
#include "pgraft_shm.h"

#define NS_PER_MS INT64CONST(1000000)
#define NS_PER_US INT64CONST(1000)

/* PostgreSQL 18 spells this in a way of its own. */
#define PGRAFT_NORETURN __attribute__((noreturn))

/* --- settings.c -------------------------------------------------------------------------------- */

#define PGRAFT_FIELD_STRING(field, ...) char *field;
#define PGRAFT_FIELD_INTEGER(field, ...) int field;
#define PGRAFT_FIELD_BOOL(field, ...) bool field;

/* The variables behind the settings. Those of postmaster context count only when preloaded. */
typedef struct PgraftSettings
{
	PGRAFT_STRING_SETTINGS(PGRAFT_FIELD_STRING)
	PGRAFT_INTEGER_SETTINGS(PGRAFT_FIELD_INTEGER)
	PGRAFT_BOOL_SETTINGS(PGRAFT_FIELD_BOOL)
	PGRAFT_ENUM_SETTINGS(PGRAFT_FIELD_INTEGER)
} PgraftSettings;

extern PgraftSettings pgraft_settings;

extern void pgraft_define_settings(void);
extern bool pgraft_data_dir(char *path, size_t room);

/* --- segment.c --------------------------------------------------------------------------------- */

/*
 * A mapped segment. Everything here was checked when it was mapped (or when a new epoch was seen)
 * and is never read from the segment again.
 */
typedef struct PgraftSegment
{
	char	   *base;			/* NULL: nothing is mapped */
	size_t		bytes;
	dev_t		device;
	ino_t		inode;
	uint64		epoch;
	int64		election_timeout_ns;
	size_t		members_offset;
	size_t		command_offset;
	uint64		ring_bytes;
	size_t		slots_offset;
	uint32		slot_count;
	uint32		entry_bytes_max;
	char		run_dir[MAXPGPATH];
} PgraftSegment;

/* What can be said of the worker; see pgraft_liveness(). */
typedef enum PgraftLiveness
{
	PGRAFT_ABSENT,				/* no segment, or nobody behind it */
	PGRAFT_SILENT,				/* the process is there, and silent for too long */
	PGRAFT_ALIVE
} PgraftLiveness;

extern PgraftSegment pgraft_segment;

extern int64 pgraft_now_ns(void);
extern int	pgraft_open_own(const char *path, int flags, mode_t type);
extern bool pgraft_attach(int64 now);
extern const char *pgraft_attach_problem(void);
extern void pgraft_use_begin(void);
extern void pgraft_use_end(void);
extern PgraftLiveness pgraft_liveness(void);
extern bool pgraft_worker_has_begun(void);
extern bool pgraft_worker_left(void);
extern bool pgraft_supervisor_alive(void);
extern bool pgraft_copy_block(size_t offset, size_t copy_bytes, int selector_word,
							  size_t bytes_min, char *copy);
extern char *pgraft_segment_text(size_t offset, size_t room);

static inline volatile uint64 *
pgraft_words(size_t offset)
{
	return (volatile uint64 *) (pgraft_segment.base + offset);
}

static inline uint64
pgraft_load(volatile uint64 *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void
pgraft_store(volatile uint64 *word, uint64 value)
{
	__atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static inline uint64
pgraft_header_word(int number)
{
	return pgraft_load(pgraft_words(0) + number);
}

static inline uint64
pgraft_worker_word(int number)
{
	return pgraft_load(pgraft_words(PGRAFT_WORKER_PAGE) + number);
}

static inline uint64
pgraft_network_word(int number)
{
	return pgraft_load(pgraft_words(PGRAFT_NETWORK_PAGE) + number);
}

/* --- text.c ------------------------------------------------------------------------------------ */

extern uint32 pgraft_crc32_start(void);
extern uint32 pgraft_crc32_add(uint32 crc, const void *data, size_t length);
extern uint32 pgraft_crc32_end(uint32 crc);
extern char *pgraft_safe_text(const char *bytes, size_t length);
PGRAFT_NORETURN extern void pgraft_raise(int sqlstate, const char *payload, size_t length);
PGRAFT_NORETURN extern void pgraft_error_gone(void);
extern void pgraft_warn_gone(void);
extern void pgraft_warn_left(void);

/* --- slot.c ------------------------------------------------------------------------------------ */

/* A copied and checked answer; `payload` is palloc'd. */
typedef struct PgraftAnswer
{
	uint64		number;
	uint64		request_no;
	uint64		outcome;
	uint64		value1;
	uint64		value2;
	uint32		length;
	char	   *payload;
} PgraftAnswer;

extern bool pgraft_slot_claim(void);
extern void pgraft_slot_release(void);
extern int	pgraft_slot_number(void);
extern uint64 pgraft_slot_next_request(void);
extern void pgraft_slot_submitted(uint64 end_position);
extern void pgraft_slot_want_space(bool want);
extern bool pgraft_slot_answer(uint64 request_no, uint64 seen, PgraftAnswer *answer);
extern void pgraft_slot_wait(long timeout_ms, bool for_space);
extern void pgraft_ring_worker(void);
extern void pgraft_bells_close(void);

/* --- ring.c ------------------------------------------------------------------------------------ */

typedef enum PgraftPut
{
	PGRAFT_PUT_DONE,
	PGRAFT_PUT_FULL,			/* no room now */
	PGRAFT_PUT_BUSY,			/* the lock was not free within its slice */
	PGRAFT_PUT_DAMAGED			/* lock or positions make no sense */
} PgraftPut;

extern bool pgraft_ring_has_room(size_t payload_bytes);
extern PgraftPut pgraft_ring_put(const uint64 *record, const char *piece, size_t piece_bytes,
								 bool is_last);

/* --- command.c --------------------------------------------------------------------------------- */

typedef struct PgraftCommand
{
	int			kind;			/* PGRAFT_COMMAND_KIND_* */
	uint64		arg1;
	uint64		arg2;
	const char *data;			/* UTF-8 */
	size_t		length;
	int			timeout_ms;
	bool		changes_state;	/* an outcome that is not known must be told as such */
	const char *subject;		/* "entry", "membership change": for messages */
} PgraftCommand;

extern void pgraft_command_begin(void);
extern void pgraft_command_run(const PgraftCommand *command, PgraftAnswer *answer);
extern void pgraft_command_end(void);

#endif
