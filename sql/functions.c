/*
 * functions.c: the SQL functions that ask something of the raft worker.
 */
#include "pgraft.h"

#include "access/detoast.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "varatt.h"

PG_FUNCTION_INFO_V1(pgraft_init);
PG_FUNCTION_INFO_V1(pgraft_add_node);
PG_FUNCTION_INFO_V1(pgraft_remove_node);
PG_FUNCTION_INFO_V1(pgraft_replicate_entry);
PG_FUNCTION_INFO_V1(pgraft_log_get_entry);
PG_FUNCTION_INFO_V1(pgraft_set_debug);
PG_FUNCTION_INFO_V1(pgraft_transfer_leadership);
PG_FUNCTION_INFO_V1(pgraft_update_node);
PG_FUNCTION_INFO_V1(pgraft_read_barrier);
PG_FUNCTION_INFO_V1(pgraft_take_snapshot);

#define PORT_MAX 65535
/* The segment has room for one byte more, which stays zero. */
#define ADDRESS_LENGTH_MAX (PGRAFT_ADDRESS_BYTES_MAX - 1)

/*
 * Run one command from claim to release; the index or number that its answer carries.
 */
static uint64
run_command(const PgraftCommand *command)
{
	PgraftAnswer answer = {0};

	PG_TRY();
	{
		pgraft_command_begin();
		pgraft_command_run(command, &answer);
	}
	PG_FINALLY();
	{
		pgraft_command_end();
	}
	PG_END_TRY();
	pfree(answer.payload);
	return answer.value1;
}

static void
error_argument(const char *message)
{
	ereport(ERROR, (errcode(ERRCODE_INVALID_PARAMETER_VALUE), errmsg("%s", message)));
}

static void
check_node_id(int32 node_id)
{
	if (node_id < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("node_id %d is out of range", node_id),
				 errdetail("It must be between 1 and %d.", PG_INT32_MAX)));
}

/*
 * The address as the worker gets it, in UTF-8: not empty, not too long, nothing that is no address.
 */
static const char *
checked_address(text *given)
{
	char	   *address = text_to_cstring(given);
	char	   *utf8 = pg_server_to_any(address, (int) strlen(address), PG_UTF8);
	size_t		length = strlen(utf8);

	if (length == 0)
		error_argument("address must not be empty");
	if (length > ADDRESS_LENGTH_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("address of %zu bytes is too long", length),
				 errdetail("It can have %d bytes.", ADDRESS_LENGTH_MAX)));
	for (const char *at = utf8; *at != '\0'; at++)
		if ((unsigned char) *at <= 0x20 || *at == 0x7f)
			error_argument("address must not hold white space or control characters");
	return utf8;
}

Datum
pgraft_init(PG_FUNCTION_ARGS)
{
	PgraftCommand command = {
		.kind = PGRAFT_COMMAND_KIND_INIT,
		.timeout_ms = pgraft_settings.proposal_timeout,
		.subject = "request",
	};

	pgraft_attach(pgraft_now_ns());
	if (pgraft_liveness() == PGRAFT_ALIVE &&
		pgraft_worker_word(PGRAFT_WORKER_W_STATE) == PGRAFT_WORKER_IS_RUNNING)
		PG_RETURN_BOOL(true);
	run_command(&command);
	PG_RETURN_BOOL(true);
}

/*
 * Run the command that adds a node or changes its address: node id, address, port.
 */
static Datum
place_node(FunctionCallInfo fcinfo, PgraftCommand *command)
{
	int32		node_id = PG_GETARG_INT32(0);
	int32		port = PG_GETARG_INT32(2);

	check_node_id(node_id);
	if (port < 1 || port > PORT_MAX)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("port %d is out of range", port),
				 errdetail("It must be between 1 and %d.", PORT_MAX)));
	command->arg1 = (uint64) node_id;
	command->arg2 = (uint64) port;
	command->data = checked_address(PG_GETARG_TEXT_PP(1));
	command->length = strlen(command->data);
	run_command(command);
	PG_RETURN_BOOL(true);
}

Datum
pgraft_add_node(PG_FUNCTION_ARGS)
{
	PgraftCommand command = {
		.kind = PGRAFT_COMMAND_KIND_ADD_NODE,
		.timeout_ms = pgraft_settings.add_node_timeout,
		.changes_state = true,
		.subject = "membership change",
	};

	return place_node(fcinfo, &command);
}

Datum
pgraft_update_node(PG_FUNCTION_ARGS)
{
	PgraftCommand command = {
		.kind = PGRAFT_COMMAND_KIND_UPDATE_NODE,
		.timeout_ms = pgraft_settings.proposal_timeout,
		.changes_state = true,
		.subject = "membership change",
	};

	return place_node(fcinfo, &command);
}

Datum
pgraft_remove_node(PG_FUNCTION_ARGS)
{
	int32		node_id = PG_GETARG_INT32(0);
	PgraftCommand command = {
		.kind = PGRAFT_COMMAND_KIND_REMOVE_NODE,
		.timeout_ms = pgraft_settings.proposal_timeout,
		.changes_state = true,
		.subject = "membership change",
	};

	check_node_id(node_id);
	command.arg1 = (uint64) node_id;
	run_command(&command);
	PG_RETURN_BOOL(true);
}

/*
 * Refuse text that is larger than an entry can be, before anything is written.
 */
static void
check_entry_size(Size length)
{
	uint32		most = PGRAFT_ENTRY_BYTES_MAX;

	if (pgraft_attach(pgraft_now_ns()))
		most = pgraft_segment.entry_bytes_max;
	if (length > most)
		ereport(ERROR,
				(errcode(ERRCODE_PROGRAM_LIMIT_EXCEEDED),
				 errmsg("entry of %zu bytes is too large", length),
				 errdetail("An entry can have %u bytes in UTF-8, as pgraft.max_entry_size says. "
						   "Nothing was written.", most)));
}

Datum
pgraft_replicate_entry(PG_FUNCTION_ARGS)
{
	Datum		given = PG_GETARG_DATUM(0);
	text	   *data;
	char	   *utf8;
	int			length;
	PgraftCommand command = {
		.kind = PGRAFT_COMMAND_KIND_REPLICATE,
		.timeout_ms = pgraft_settings.proposal_timeout,
		.changes_state = true,
		.subject = "entry",
	};

	/* In these encodings the size is known before a large value is fetched and decompressed. */
	if (GetDatabaseEncoding() == PG_UTF8 || GetDatabaseEncoding() == PG_SQL_ASCII)
		check_entry_size(toast_raw_datum_size(given) - VARHDRSZ);
	data = DatumGetTextPP(given);
	length = (int) VARSIZE_ANY_EXHDR(data);
	utf8 = pg_server_to_any(VARDATA_ANY(data), length, PG_UTF8);
	command.data = utf8;
	command.length = utf8 == VARDATA_ANY(data) ? (size_t) length : strlen(utf8);
	check_entry_size(command.length);
	run_command(&command);
	PG_RETURN_BOOL(true);
}

/*
 * Fetch the next piece of an entry's text and append it; false when there is no more, or none at all.
 */
static bool
append_piece(PgraftCommand *command, StringInfo into, bool *is_null)
{
	PgraftAnswer answer = {0};

	command->arg2 = (uint64) into->len;
	pgraft_command_run(command, &answer);
	*is_null = answer.outcome == PGRAFT_OUTCOME_NULL_ENTRY;
	if (*is_null)
		return false;
	if (answer.outcome != PGRAFT_OUTCOME_DATA || answer.value1 > PGRAFT_ENTRY_BYTES_MAX ||
		(uint64) into->len + answer.length > answer.value1 ||
		(answer.length == 0 && (uint64) into->len < answer.value1))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("the raft worker gave a piece of an entry that makes no sense"),
				 errdetail("Total " UINT64_FORMAT " bytes, %d so far, this piece %u.",
						   answer.value1, into->len, answer.length)));
	appendBinaryStringInfo(into, answer.payload, (int) answer.length);
	pfree(answer.payload);
	return (uint64) into->len < answer.value1;
}

/*
 * Fetch a whole entry; false when it carries no user data.
 */
static bool
fetch_entry(PgraftCommand *command, StringInfo into)
{
	bool		is_null = false;

	pgraft_command_begin();
	while (append_piece(command, into, &is_null))
		;
	return !is_null;
}

Datum
pgraft_log_get_entry(PG_FUNCTION_ARGS)
{
	int64		index = PG_GETARG_INT64(0);
	StringInfoData utf8;
	volatile bool has_data = false;
	PgraftCommand command = {
		.kind = PGRAFT_COMMAND_KIND_GET_ENTRY,
		.timeout_ms = pgraft_settings.proposal_timeout,
		.subject = "request",
	};

	if (index < 1)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("index " INT64_FORMAT " is out of range", index),
				 errdetail("Entries are counted from 1.")));
	command.arg1 = (uint64) index;
	initStringInfo(&utf8);
	PG_TRY();
	{
		has_data = fetch_entry(&command, &utf8);
	}
	PG_FINALLY();
	{
		pgraft_command_end();
	}
	PG_END_TRY();
	if (!has_data)
		PG_RETURN_NULL();
	PG_RETURN_TEXT_P(cstring_to_text(pg_any_to_server(utf8.data, utf8.len, PG_UTF8)));
}

Datum
pgraft_set_debug(PG_FUNCTION_ARGS)
{
	PgraftCommand command = {
		.kind = PGRAFT_COMMAND_KIND_SET_DEBUG,
		.arg1 = PG_GETARG_BOOL(0) ? 1 : 0,
		.timeout_ms = pgraft_settings.proposal_timeout,
		.subject = "request",
	};

	run_command(&command);
	PG_RETURN_BOOL(true);
}

Datum
pgraft_transfer_leadership(PG_FUNCTION_ARGS)
{
	int32		node_id = PG_GETARG_INT32(0);
	PgraftCommand command = {
		.kind = PGRAFT_COMMAND_KIND_TRANSFER_LEADER,
		.timeout_ms = pgraft_settings.proposal_timeout,
		.changes_state = true,
		.subject = "leadership transfer",
	};

	if (node_id != 0)
		check_node_id(node_id);
	command.arg1 = (uint64) node_id;
	run_command(&command);
	PG_RETURN_BOOL(true);
}

Datum
pgraft_read_barrier(PG_FUNCTION_ARGS)
{
	PgraftCommand command = {
		.kind = PGRAFT_COMMAND_KIND_READ_BARRIER,
		.timeout_ms = pgraft_settings.proposal_timeout,
		.subject = "request",
	};

	PG_RETURN_INT64((int64) run_command(&command));
}

Datum
pgraft_take_snapshot(PG_FUNCTION_ARGS)
{
	PgraftCommand command = {
		.kind = PGRAFT_COMMAND_KIND_TAKE_SNAPSHOT,
		.timeout_ms = pgraft_settings.proposal_timeout,
		.subject = "request",
	};

	PG_RETURN_INT64((int64) run_command(&command));
}
