/*
 * command.c: handing a command to the raft worker, and waiting for its outcome.
 *
 * From pgraft_command_begin() to pgraft_command_end() a result slot is ours and the mapping stays.
 * The wait ends with the outcome, an interrupt, the runtime's death, or its own deadline, which lies
 * behind the worker's. Whoever waits for a change and is sent away without its outcome is told so.
 */
#include "pgraft.h"

#include "miscadmin.h"
#include "utils/elog.h"

#define WAIT_MS_MIN 50
#define WAIT_MS_MAX 500
#define SPACE_RECHECK_MS 100
#define SLOT_RECHECK_MS 10

/* What the context line of an interrupt speaks of. */
typedef struct WaitState
{
	const PgraftCommand *command;
	bool		submitted;
	bool		in_interrupts;
} WaitState;

#define HOW_TO_FIND_OUT_ENTRY \
	"To find out, read the newest entries with pgraft_log_get_entry(), " \
	"up to the commit_index of pgraft_log_get_stats()."
#define HOW_TO_FIND_OUT_MEMBER \
	"To find out, look at pgraft_get_nodes() and pgraft_get_cluster_status()."

static const char *
how_to_find_out(const PgraftCommand *command)
{
	return command->kind == PGRAFT_COMMAND_KIND_REPLICATE ? HOW_TO_FIND_OUT_ENTRY : HOW_TO_FIND_OUT_MEMBER;
}

static void
interrupt_context(void *arg)
{
	WaitState  *state = (WaitState *) arg;

	if (state->in_interrupts && state->submitted && state->command->changes_state)
		errcontext("waiting for the outcome: the %s was handed to the raft worker, and "
				   "may or may not have been committed. %s",
				   state->command->subject, how_to_find_out(state->command));
}

static void
check_interrupts(WaitState *state)
{
	state->in_interrupts = true;
	CHECK_FOR_INTERRUPTS();
	state->in_interrupts = false;
}

static void
error_unknown(const PgraftCommand *command, const char *why)
{
	if (!command->changes_state)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("%s", why),
				 errhint("pgraft-launch status -D %s shows the processes.", DataDir)));
	ereport(ERROR,
			(errcode(ERRCODE_T_R_STATEMENT_COMPLETION_UNKNOWN),
			 errmsg("%s", why),
			 errdetail("The %s may or may not have been committed.", command->subject),
			 errhint("%s", how_to_find_out(command))));
}

/*
 * Attach and claim a slot. Raises when the runtime is gone.
 */
void
pgraft_command_begin(void)
{
	int64		give_up_ns;

	pgraft_attach(pgraft_now_ns());
	if (pgraft_liveness() != PGRAFT_ALIVE)
		pgraft_error_gone();
	pgraft_use_begin();
	give_up_ns = pgraft_now_ns() + pgraft_settings.proposal_timeout * NS_PER_MS;
	while (!pgraft_slot_claim())
	{
		/* There are more slots than processes that PostgreSQL may have, so this is rare and short. */
		if (pgraft_now_ns() > give_up_ns)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("all %u result slots of pgraft are taken", pgraft_segment.slot_count),
					 errhint("Try again when other sessions have finished their commands.")));
		CHECK_FOR_INTERRUPTS();
		pg_usleep(SLOT_RECHECK_MS * 1000L);
	}
}

void
pgraft_command_end(void)
{
	pgraft_slot_release();
	pgraft_use_end();
}

static bool
is_retired(void)
{
	return pgraft_header_word(PGRAFT_HEADER_W_RETIRED) != 0 ||
		pgraft_header_word(PGRAFT_HEADER_W_EPOCH) != pgraft_segment.epoch;
}

/*
 * Wait until a record has room, or the lock is free; `give_up_ns` bounds it.
 */
static void
wait_for_room(WaitState *state, size_t payload_bytes, PgraftPut why, int64 give_up_ns)
{
	if (is_retired() || pgraft_liveness() != PGRAFT_ALIVE)
		pgraft_error_gone();
	if (pgraft_now_ns() > give_up_ns)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the raft worker did not take the command within %d ms", state->command->timeout_ms),
				 errdetail("The %s was not handed over; nothing was changed.", state->command->subject),
				 errhint("pgraft-launch status -D %s shows the processes.", DataDir)));
	if (why == PGRAFT_PUT_FULL)
	{
		pgraft_slot_want_space(true);
		if (!pgraft_ring_has_room(payload_bytes))
			pgraft_slot_wait(SPACE_RECHECK_MS, true);
		pgraft_slot_want_space(false);
	}
	check_interrupts(state);
}

static void
put_piece(WaitState *state, uint64 *record, size_t offset, int64 give_up_ns)
{
	size_t		left = state->command->length - offset;
	size_t		piece_bytes = Min(left, PGRAFT_PIECE_BYTES_MAX);

	record[PGRAFT_COMMAND_RECORD_W_PIECE_OFFSET] = offset;
	for (;;)
	{
		PgraftPut	result = pgraft_ring_put(record, state->command->data + offset, piece_bytes,
											 piece_bytes == left);

		if (result == PGRAFT_PUT_DONE)
			break;
		if (result == PGRAFT_PUT_DAMAGED)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the command ring of pgraft is damaged"),
					 errhint("Start pgraft anew with: pgraft-launch restart -D %s", DataDir)));
		wait_for_room(state, PGRAFT_COMMAND_RECORD_BYTES + piece_bytes, result, give_up_ns);
	}
	state->submitted = piece_bytes == left;
	pgraft_ring_worker();
}

/*
 * Put the whole command into the ring, in pieces; the number of the request.
 */
static uint64
submit(WaitState *state)
{
	const PgraftCommand *command = state->command;
	uint64		record[PGRAFT_COMMAND_RECORD_WORD_COUNT] = {0};
	int64		give_up_ns = pgraft_now_ns() + command->timeout_ms * NS_PER_MS;
	uint64		request_no = pgraft_slot_next_request();
	size_t		offset = 0;

	record[PGRAFT_COMMAND_RECORD_W_KIND] = (uint64) command->kind;
	record[PGRAFT_COMMAND_RECORD_W_SLOT] = (uint64) pgraft_slot_number();
	record[PGRAFT_COMMAND_RECORD_W_REQUEST_NO] = request_no;
	record[PGRAFT_COMMAND_RECORD_W_FLAGS] =
		pgraft_settings.forward_proposals ? PGRAFT_COMMAND_FLAG_FORWARD : 0;
	record[PGRAFT_COMMAND_RECORD_W_TOTAL_BYTES] = command->length;
	record[PGRAFT_COMMAND_RECORD_W_TIMEOUT_MS] = (uint64) command->timeout_ms;
	record[PGRAFT_COMMAND_RECORD_W_ARG1] = command->arg1;
	record[PGRAFT_COMMAND_RECORD_W_ARG2] = command->arg2;
	record[PGRAFT_COMMAND_RECORD_W_BACKEND_PID] = (uint64) MyProcPid;
	do
	{
		put_piece(state, record, offset, give_up_ns);
		offset += PGRAFT_PIECE_BYTES_MAX;
	} while (offset < command->length);
	return request_no;
}

/*
 * Whether the outcome can still come: the runtime is there, or was not long ago.
 */
static void
check_runtime(const PgraftCommand *command, int64 now, int64 *last_alive_ns, int64 deadline_ns)
{
	if (is_retired())
		error_unknown(command, "pgraft was started anew before the outcome of the command was known");
	if (pgraft_liveness() == PGRAFT_ALIVE)
		*last_alive_ns = now;
	else if (now - *last_alive_ns > pgraft_segment.election_timeout_ns)
		error_unknown(command, "the raft worker went away before the outcome of the command was known");
	if (now > deadline_ns)
		error_unknown(command, "the raft worker did not answer within the time of the command");
}

static void
tell_progress(PgraftAnswer *answer)
{
	char	   *notice = pgraft_safe_text(answer->payload, answer->length);

	ereport(NOTICE, (errmsg("%s", notice)));
	pfree(notice);
	pfree(answer->payload);
	answer->payload = NULL;
}

/*
 * Whether the final answer is there. Progress is told on the way.
 */
static bool
take_answer(uint64 request_no, uint64 *seen, PgraftAnswer *answer)
{
	while (pgraft_slot_answer(request_no, *seen, answer))
	{
		if (answer->outcome != PGRAFT_OUTCOME_PROGRESS)
			return true;
		*seen = answer->number;
		tell_progress(answer);
	}
	return false;
}

static void
wait_for_answer(WaitState *state, uint64 request_no, PgraftAnswer *answer)
{
	const PgraftCommand *command = state->command;
	int64		now = pgraft_now_ns();
	int64		last_alive_ns = now;
	int64		deadline_ns = now + command->timeout_ms * NS_PER_MS + 2 * pgraft_segment.election_timeout_ns;
	int64		recheck_ms = pgraft_segment.election_timeout_ns / NS_PER_MS / 4;
	uint64		seen = 0;

	recheck_ms = Min(Max(recheck_ms, WAIT_MS_MIN), WAIT_MS_MAX);
	while (!take_answer(request_no, &seen, answer))
	{
		pgraft_slot_wait((long) recheck_ms, false);
		check_interrupts(state);
		if (take_answer(request_no, &seen, answer))
			return;
		check_runtime(command, pgraft_now_ns(), &last_alive_ns, deadline_ns);
	}
}

/*
 * Raise the error that the outcome is; return for the others.
 */
static void
check_outcome(const PgraftAnswer *answer)
{
	switch (answer->outcome)
	{
		case PGRAFT_OUTCOME_OK:
		case PGRAFT_OUTCOME_NULL_ENTRY:
		case PGRAFT_OUTCOME_DATA:
			return;
		case PGRAFT_OUTCOME_ERROR_STATE:
			pgraft_raise(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, answer->payload, answer->length);
		case PGRAFT_OUTCOME_ERROR_ARGUMENT:
			pgraft_raise(ERRCODE_INVALID_PARAMETER_VALUE, answer->payload, answer->length);
		case PGRAFT_OUTCOME_ERROR_UNKNOWN:
			pgraft_raise(ERRCODE_T_R_STATEMENT_COMPLETION_UNKNOWN, answer->payload, answer->length);
		case PGRAFT_OUTCOME_ERROR_INTERNAL:
			pgraft_raise(ERRCODE_INTERNAL_ERROR, answer->payload, answer->length);
		default:
			ereport(ERROR,
					(errcode(ERRCODE_INTERNAL_ERROR),
					 errmsg("the raft worker gave an answer that makes no sense"),
					 errdetail("The outcome is " UINT64_FORMAT ".", answer->outcome)));
	}
}

/*
 * Run one command in the slot that pgraft_command_begin() claimed. An answer that is not an error is
 * left in `answer`, with its payload palloc'd.
 */
void
pgraft_command_run(const PgraftCommand *command, PgraftAnswer *answer)
{
	WaitState	state = {.command = command};
	ErrorContextCallback context;

	context.callback = interrupt_context;
	context.arg = &state;
	context.previous = error_context_stack;
	error_context_stack = &context;
	wait_for_answer(&state, submit(&state), answer);
	error_context_stack = context.previous;
	check_outcome(answer);
}
