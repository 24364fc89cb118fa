/*
 * status.c: the SQL functions that only read the segment.
 */
#include "pgraft.h"

#include "catalog/pg_type.h"
#include "funcapi.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

PG_FUNCTION_INFO_V1(pgraft_is_leader);
PG_FUNCTION_INFO_V1(pgraft_get_leader);
PG_FUNCTION_INFO_V1(pgraft_get_term);
PG_FUNCTION_INFO_V1(pgraft_get_nodes);
PG_FUNCTION_INFO_V1(pgraft_get_cluster_status);
PG_FUNCTION_INFO_V1(pgraft_get_learners);
PG_FUNCTION_INFO_V1(pgraft_log_get_stats);
PG_FUNCTION_INFO_V1(pgraft_log_get_replication_status);
PG_FUNCTION_INFO_V1(pgraft_get_network_stats);
PG_FUNCTION_INFO_V1(pgraft_get_worker_state);
PG_FUNCTION_INFO_V1(pgraft_get_version);
PG_FUNCTION_INFO_V1(pgraft_internal_noop);

/* No lease is longer: what lies further ahead is damage, not a lease. */
#define LEASE_NS_MAX (PGRAFT_ELECTION_TIMEOUT_MS_MAX * NS_PER_MS)

/* A checked copy of a block and its rows; words of a row beyond what was written are zero. */
typedef struct Block
{
	uint64	   *words;
	uint32		rows;
	char	   *first_row;
	size_t		row_bytes;
} Block;

static inline bool
lease_is_valid(int64 now)
{
	uint64		left;

	if (pgraft_segment.base == NULL || pgraft_header_word(PGRAFT_HEADER_W_RETIRED) != 0)
		return false;
	left = pgraft_worker_word(PGRAFT_WORKER_W_LEASE_END_NS) - (uint64) now;
	return left > 0 && left <= (uint64) LEASE_NS_MAX;
}

/*
 * One load and one clock reading. The lease runs out by itself; only without one does it pay to look
 * whether another segment has come.
 */
Datum
pgraft_is_leader(PG_FUNCTION_ARGS)
{
	int64		now = pgraft_now_ns();

	if (likely(lease_is_valid(now)))
		PG_RETURN_BOOL(true);
	pgraft_attach(now);
	PG_RETURN_BOOL(lease_is_valid(pgraft_now_ns()));
}

/* An empty function, for bench/ to compare with; no SQL function of the extension uses it. */
Datum
pgraft_internal_noop(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(true);
}

static uint64 *
block_row(const Block *block, uint32 number)
{
	return (uint64 *) (block->first_row + number * block->row_bytes);
}

static bool
read_status(Block *block)
{
	char	   *copy = palloc(PGRAFT_STATUS_COPY_BYTES);

	block->words = (uint64 *) copy;
	block->first_row = copy + PGRAFT_STATUS_ROWS_OFFSET;
	block->row_bytes = PGRAFT_STATUS_ROW_BYTES;
	if (!pgraft_copy_block(PGRAFT_STATUS_OFFSET, PGRAFT_STATUS_COPY_BYTES,
						   PGRAFT_WORKER_W_STATUS_SELECTOR, PGRAFT_STATUS_ROWS_OFFSET, copy))
		return false;
	block->rows = (uint32) Min(block->words[PGRAFT_STATUS_W_ROW_COUNT], PGRAFT_MEMBERS_MAX);
	return true;
}

static bool
read_members(Block *block)
{
	char	   *copy = palloc(PGRAFT_MEMBERS_COPY_BYTES);

	block->words = (uint64 *) copy;
	block->first_row = copy + PGRAFT_MEMBERS_ROWS_OFFSET;
	block->row_bytes = PGRAFT_MEMBER_ROW_BYTES;
	if (!pgraft_copy_block(pgraft_segment.members_offset, PGRAFT_MEMBERS_COPY_BYTES,
						   PGRAFT_WORKER_W_MEMBERS_SELECTOR, PGRAFT_MEMBERS_ROWS_OFFSET, copy))
		return false;
	block->rows = (uint32) Min(block->words[PGRAFT_MEMBERS_W_MEMBER_COUNT], PGRAFT_MEMBERS_MAX);
	return true;
}

/*
 * Attach and read what is asked for; a WARNING says what is missing or old. False when there is
 * nothing to show. Either block may be NULL.
 */
static bool
read_blocks(Block *status, Block *members)
{
	bool		is_attached = pgraft_attach(pgraft_now_ns());

	if (pgraft_liveness() != PGRAFT_ALIVE)
		pgraft_warn_gone();
	else if (pgraft_worker_left())
		pgraft_warn_left();
	if (!is_attached)
		return false;
	if ((status == NULL || read_status(status)) && (members == NULL || read_members(members)))
		return true;
	/* A worker that is just starting has published nothing yet. */
	if (pgraft_worker_word(PGRAFT_WORKER_W_STATUS_GENERATION) != 0)
		ereport(WARNING,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("the status of pgraft in shared memory is damaged"),
				 errhint("pgraft-inspect shows what is left of it.")));
	return false;
}

/* Whether the worker is there and takes part: what it published is of now. */
static bool
takes_part(void)
{
	return pgraft_liveness() == PGRAFT_ALIVE && !pgraft_worker_left();
}

Datum
pgraft_get_leader(PG_FUNCTION_ARGS)
{
	Block		status;

	if (!pgraft_attach(pgraft_now_ns()) || !takes_part() || !read_status(&status))
		PG_RETURN_INT64(0);
	PG_RETURN_INT64((int64) status.words[PGRAFT_STATUS_W_LEADER_ID]);
}

Datum
pgraft_get_term(PG_FUNCTION_ARGS)
{
	Block		status;

	if (!read_blocks(&status, NULL))
		PG_RETURN_INT64(0);
	PG_RETURN_INT64((int64) status.words[PGRAFT_STATUS_W_TERM]);
}

/* The member's row with this id; NULL when it is not a member. */
static uint64 *
find_member(const Block *members, uint64 node_id)
{
	for (uint32 i = 0; i < members->rows; i++)
	{
		uint64	   *row = block_row(members, i);

		if (row[PGRAFT_MEMBER_ROW_W_NODE_ID] == node_id)
			return row;
	}
	return NULL;
}

static char *
member_address(const uint64 *row)
{
	uint64		length = row[PGRAFT_MEMBER_ROW_W_ADDRESS_BYTES];

	return pgraft_safe_text((const char *) row + PGRAFT_MEMBER_ADDRESS_OFFSET,
							Min(length, PGRAFT_ADDRESS_BYTES_MAX));
}

/* The leader that the rows show: none when the worker is not there, or takes no part, to vouch for it. */
static uint64
leader_now(const Block *status)
{
	return takes_part() ? status->words[PGRAFT_STATUS_W_LEADER_ID] : 0;
}

/*
 * node_id, address, port and is_leader: the first four columns of more than one table. The id counts
 * even where no address is known.
 */
static void
fill_node(const uint64 *member, uint64 node_id, uint64 leader_id, Datum *values, bool *nulls)
{
	values[0] = Int32GetDatum((int32) node_id);
	nulls[1] = nulls[2] = member == NULL;
	if (member != NULL)
	{
		values[1] = CStringGetTextDatum(member_address(member));
		values[2] = Int32GetDatum((int32) member[PGRAFT_MEMBER_ROW_W_PORT]);
	}
	values[3] = BoolGetDatum(leader_id != 0 && node_id == leader_id);
}

static void
put_row(FunctionCallInfo fcinfo, Datum *values, bool *nulls)
{
	ReturnSetInfo *set = (ReturnSetInfo *) fcinfo->resultinfo;

	tuplestore_putvalues(set->setResult, set->setDesc, values, nulls);
}

Datum
pgraft_get_nodes(PG_FUNCTION_ARGS)
{
	Block		status;
	Block		members;

	InitMaterializedSRF(fcinfo, 0);
	if (!read_blocks(&status, &members))
		return (Datum) 0;
	for (uint32 i = 0; i < members.rows; i++)
	{
		uint64	   *row = block_row(&members, i);
		Datum		values[4] = {0};
		bool		nulls[4] = {0};

		/* One that leaves, or that a newcomer answers to, is there for the network process only. */
		if (row[PGRAFT_MEMBER_ROW_W_IS_LEAVING] != 0)
			continue;
		fill_node(row, row[PGRAFT_MEMBER_ROW_W_NODE_ID], leader_now(&status),
				  values, nulls);
		put_row(fcinfo, values, nulls);
	}
	return (Datum) 0;
}

Datum
pgraft_get_learners(PG_FUNCTION_ARGS)
{
	Block		members;

	InitMaterializedSRF(fcinfo, 0);
	if (!read_blocks(NULL, &members))
		return (Datum) 0;
	for (uint32 i = 0; i < members.rows; i++)
	{
		uint64	   *row = block_row(&members, i);
		Datum		values[4] = {0};
		bool		nulls[4] = {0};

		if (row[PGRAFT_MEMBER_ROW_W_IS_LEARNER] == 0 || row[PGRAFT_MEMBER_ROW_W_IS_LEAVING] != 0)
			continue;
		fill_node(row, row[PGRAFT_MEMBER_ROW_W_NODE_ID], 0, values, nulls);
		put_row(fcinfo, values, nulls);
	}
	return (Datum) 0;
}

/* When the node of a row was last heard; a node hears itself as long as its worker goes on. */
static uint64
row_heard_ns(const uint64 *row, int64 now)
{
	if (row[PGRAFT_STATUS_ROW_W_IS_SELF] == 0)
		return row[PGRAFT_STATUS_ROW_W_HEARD_BOOT_NS];
	return pgraft_liveness() == PGRAFT_ALIVE ? (uint64) now : pgraft_worker_word(PGRAFT_WORKER_W_BEAT_NS);
}

/* Nanoseconds since a time; 0 for one that lies ahead. */
static int64
since_ns(uint64 then, int64 now)
{
	return then < (uint64) now ? now - (int64) then : 0;
}

static Datum
interval_datum(int64 ns)
{
	Interval   *interval = palloc0(sizeof(Interval));

	interval->time = ns / NS_PER_US;
	return IntervalPGetDatum(interval);
}

static void
fill_last_heard(uint64 heard, int64 now, Datum *value, bool *is_null)
{
	*is_null = heard == 0;
	*value = *is_null ? (Datum) 0 : interval_datum(since_ns(heard, now));
}

static const char *
row_state(const uint64 *row, uint64 heard, int64 now)
{
	if (heard == 0 || since_ns(heard, now) > pgraft_segment.election_timeout_ns)
		return "Unreachable";
	/* A worker that left consensus goes on beating, and has no role. */
	if (row[PGRAFT_STATUS_ROW_W_IS_SELF] != 0 && pgraft_worker_left())
		return "Unreachable";
	switch (row[PGRAFT_STATUS_ROW_W_ROLE])
	{
		case PGRAFT_ROLE_FOLLOWER:
			return "Follower";
		case PGRAFT_ROLE_PRE_CANDIDATE:
			return "PreCandidate";
		case PGRAFT_ROLE_CANDIDATE:
			return "Candidate";
		case PGRAFT_ROLE_LEADER:
			return "Leader";
		case PGRAFT_ROLE_LEARNER:
			return "Learner";
		default:
			return "Unreachable";
	}
}

Datum
pgraft_get_cluster_status(PG_FUNCTION_ARGS)
{
	Block		status;
	Block		members;

	InitMaterializedSRF(fcinfo, 0);
	if (!read_blocks(&status, &members))
		return (Datum) 0;
	for (uint32 i = 0; i < status.rows; i++)
	{
		uint64	   *row = block_row(&status, i);
		uint64		node_id = row[PGRAFT_STATUS_ROW_W_NODE_ID];
		int64		now = pgraft_now_ns();
		uint64		heard = row_heard_ns(row, now);
		Datum		values[9] = {0};
		bool		nulls[9] = {0};

		fill_node(find_member(&members, node_id), node_id, leader_now(&status),
				  values, nulls);
		values[4] = CStringGetTextDatum(row_state(row, heard, now));
		values[5] = Int64GetDatum((int64) row[PGRAFT_STATUS_ROW_W_TERM]);
		values[6] = Int64GetDatum((int64) row[PGRAFT_STATUS_ROW_W_COMMIT_INDEX]);
		values[7] = Int64GetDatum((int64) row[PGRAFT_STATUS_ROW_W_LAST_INDEX]);
		fill_last_heard(heard, now, &values[8], &nulls[8]);
		put_row(fcinfo, values, nulls);
	}
	return (Datum) 0;
}

Datum
pgraft_log_get_stats(PG_FUNCTION_ARGS)
{
	Block		status;
	Datum		values[4] = {0};
	bool		nulls[4] = {0};

	InitMaterializedSRF(fcinfo, 0);
	if (read_blocks(&status, NULL))
	{
		values[0] = Int64GetDatum((int64) status.words[PGRAFT_STATUS_W_LOG_BYTES]);
		values[1] = Int64GetDatum((int64) status.words[PGRAFT_STATUS_W_LAST_INDEX]);
		values[2] = Int64GetDatum((int64) status.words[PGRAFT_STATUS_W_COMMIT_INDEX]);
		values[3] = Int64GetDatum((int64) status.words[PGRAFT_STATUS_W_APPLIED]);
	}
	put_row(fcinfo, values, nulls);
	return (Datum) 0;
}

/*
 * Words of the network process, then what the worker counts of the same kind. All are counters or gauges of
 * their own, so a reader that sees them at different moments sees nothing that was not.
 */
Datum
pgraft_get_network_stats(PG_FUNCTION_ARGS)
{
	static const int network[] = {
		PGRAFT_NETWORK_W_CONNECTIONS, PGRAFT_NETWORK_W_PENDING,
		PGRAFT_NETWORK_W_FRAMES_IN, PGRAFT_NETWORK_W_FRAMES_OUT,
		PGRAFT_NETWORK_W_BYTES_IN, PGRAFT_NETWORK_W_BYTES_OUT,
		PGRAFT_NETWORK_W_DROPPED, PGRAFT_NETWORK_W_REFUSED,
		PGRAFT_NETWORK_W_TIMED_OUT, PGRAFT_NETWORK_W_CROWDED_OUT,
		PGRAFT_NETWORK_W_MALFORMED
	};
	static const int worker[] = {
		PGRAFT_WORKER_W_MESSAGES_MALFORMED, PGRAFT_WORKER_W_MESSAGES_ABSURD,
		PGRAFT_WORKER_W_MESSAGES_REFUSED
	};
	Datum		values[lengthof(network) + lengthof(worker)] = {0};
	bool		nulls[lengthof(network) + lengthof(worker)] = {0};

	InitMaterializedSRF(fcinfo, 0);
	if (read_blocks(NULL, NULL))
	{
		for (size_t i = 0; i < lengthof(network); i++)
			values[i] = Int64GetDatum((int64) pgraft_network_word(network[i]));
		for (size_t i = 0; i < lengthof(worker); i++)
			values[lengthof(network) + i] = Int64GetDatum((int64) pgraft_worker_word(worker[i]));
	}
	put_row(fcinfo, values, nulls);
	return (Datum) 0;
}

/*
 * Only a leader knows how far the others are: say who it is.
 */
static void
notice_leader(const Block *status, const Block *members)
{
	uint64		leader_id = status->words[PGRAFT_STATUS_W_LEADER_ID];
	uint64	   *leader = find_member(members, leader_id);

	if (leader_id == 0)
		ereport(NOTICE, (errmsg("this node is not the leader, and no leader is known")));
	else if (leader == NULL)
		ereport(NOTICE,
				(errmsg("this node is not the leader: the leader is node " UINT64_FORMAT, leader_id)));
	else
		ereport(NOTICE,
				(errmsg("this node is not the leader: the leader is node " UINT64_FORMAT " at %s:%d",
						leader_id, member_address(leader), (int) leader[PGRAFT_MEMBER_ROW_W_PORT])));
}

Datum
pgraft_log_get_replication_status(PG_FUNCTION_ARGS)
{
	Block		status;
	Block		members;

	InitMaterializedSRF(fcinfo, 0);
	if (!read_blocks(&status, &members))
		return (Datum) 0;
	/* Of a worker that left, also one that led, the WARNING says all. */
	if (pgraft_worker_left())
		return (Datum) 0;
	if (status.words[PGRAFT_STATUS_W_ROLE] != PGRAFT_ROLE_LEADER)
	{
		notice_leader(&status, &members);
		return (Datum) 0;
	}
	for (uint32 i = 0; i < status.rows; i++)
	{
		uint64	   *row = block_row(&status, i);
		Datum		values[5] = {0};
		bool		nulls[5] = {0};

		if (row[PGRAFT_STATUS_ROW_W_IS_SELF] != 0)
			continue;
		values[0] = Int32GetDatum((int32) row[PGRAFT_STATUS_ROW_W_NODE_ID]);
		values[1] = Int64GetDatum((int64) row[PGRAFT_STATUS_ROW_W_MATCH_INDEX]);
		values[2] = Int64GetDatum((int64) row[PGRAFT_STATUS_ROW_W_NEXT_INDEX]);
		values[3] = BoolGetDatum(row[PGRAFT_STATUS_ROW_W_IS_REPLICATING] != 0);
		fill_last_heard(row[PGRAFT_STATUS_ROW_W_HEARD_BOOT_NS], pgraft_now_ns(), &values[4], &nulls[4]);
		put_row(fcinfo, values, nulls);
	}
	return (Datum) 0;
}

/*
 * A worker that stopped on an error may be gone; its supervisor, which stays, vouches for the word.
 */
static const char *
worker_state(void)
{
	PgraftLiveness liveness;
	uint64		state;

	if (!pgraft_attach(pgraft_now_ns()))
		return "stopped";
	liveness = pgraft_liveness();
	state = pgraft_worker_word(PGRAFT_WORKER_W_STATE);
	if (liveness == PGRAFT_SILENT)
		return "error";
	if (liveness == PGRAFT_ABSENT)
		return state == PGRAFT_WORKER_IS_ERROR && pgraft_supervisor_alive() ? "error" : "stopped";
	switch (state)
	{
		case PGRAFT_WORKER_IS_RUNNING:
			return "running";
		case PGRAFT_WORKER_IS_INITIALIZING:
			return "initializing";
		case PGRAFT_WORKER_IS_STOPPED:
			return pgraft_worker_has_begun() ? "stopped" : "initializing";
		default:
			return "error";
	}
}

Datum
pgraft_get_worker_state(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(worker_state()));
}

Datum
pgraft_get_version(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(PGRAFT_VERSION));
}
