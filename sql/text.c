/*
 * text.c: checksums, text that comes from outside, and the errors that more than one file raises.
 */
#include "pgraft.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/pg_crc.h"

/*
 * The CRC-32 of zlib, which the Python side uses; PostgreSQL calls it the traditional one.
 */
uint32
pgraft_crc32_start(void)
{
	pg_crc32	crc;

	INIT_TRADITIONAL_CRC32(crc);
	return crc;
}

uint32
pgraft_crc32_add(uint32 crc, const void *data, size_t length)
{
	COMP_TRADITIONAL_CRC32(crc, data, length);
	return crc;
}

uint32
pgraft_crc32_end(uint32 crc)
{
	FIN_TRADITIONAL_CRC32(crc);
	return crc;
}

/*
 * Text of a message, as a C string in the database's encoding. It never fails: what is not valid
 * there, and in databases other than UTF-8 all that is not ASCII, becomes a question mark.
 */
char *
pgraft_safe_text(const char *bytes, size_t length)
{
	char	   *copy = pnstrdup(bytes, length);
	size_t		copied = strlen(copy);
	bool		is_whole = GetDatabaseEncoding() == PG_UTF8 &&
		pg_verify_mbstr(PG_UTF8, copy, (int) copied, true);

	for (size_t i = 0; i < copied; i++)
	{
		unsigned char c = (unsigned char) copy[i];

		if ((c >= 0x80 && !is_whole) || (c < 0x20 && c != '\n' && c != '\t') || c == 0x7f)
			copy[i] = '?';
	}
	return copy;
}

/*
 * The next part of "message\0detail\0hint"; NULL when there is none or it is empty.
 */
static char *
next_part(const char **at, const char *end)
{
	const char *start = *at;
	size_t		length = 0;

	if (start >= end)
		return NULL;
	length = strnlen(start, (size_t) (end - start));
	*at = start + length + 1;
	return length == 0 ? NULL : pgraft_safe_text(start, length);
}

/*
 * Raise what an error outcome says.
 */
void
pgraft_raise(int sqlstate, const char *payload, size_t length)
{
	const char *at = payload;
	const char *end = payload + length;
	char	   *message = next_part(&at, end);
	char	   *detail = next_part(&at, end);
	char	   *hint = next_part(&at, end);

	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("%s", message != NULL ? message : "the command failed"),
			 detail != NULL ? errdetail_internal("%s", detail) : 0,
			 hint != NULL ? errhint("%s", hint) : 0));
	pg_unreachable();
}

/*
 * Why the worker left consensus, as it says; NULL when it says nothing of that kind.
 */
static char *
why_left(void)
{
	char	   *text;

	if (!pgraft_worker_left())
		return NULL;
	text = pgraft_segment_text(PGRAFT_WORKER_PAGE + PGRAFT_WORKER_TEXT_ERROR, PGRAFT_WORKER_TEXT_ERROR_BYTES);
	return text[0] != '\0' ? text : NULL;
}

/*
 * What the raft worker that is there, and silent, last said of itself; else that it is silent.
 */
static const char *
silence(void)
{
	char	   *text = why_left();

	if (text != NULL)
		return text;
	return "It has been silent for an election timeout: its disk may hang, or the machine is overloaded.";
}

/* A path may stand in it. */
static char *
attach_problem(void)
{
	const char *problem = pgraft_attach_problem();

	return pgraft_safe_text(problem, strlen(problem));
}

void
pgraft_error_gone(void)
{
	if (pgraft_liveness() == PGRAFT_SILENT)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the raft worker of this node does not answer"),
				 errdetail_internal("%s", silence()),
				 errhint("See the server log, and: pgraft-launch status -D %s", DataDir)));
	ereport(ERROR,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("pgraft is not running on this node"),
			 errdetail("%s", pgraft_segment.base != NULL ?
					   "The raft worker is not there." :
					   psprintf("Its state cannot be read: %s", attach_problem())),
			 errhint("Start it with: pgraft-launch start -D %s", DataDir)));
	pg_unreachable();
}

void
pgraft_warn_gone(void)
{
	if (pgraft_liveness() == PGRAFT_SILENT)
	{
		char	   *why = why_left();

		ereport(WARNING,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the raft worker of this node does not answer"),
				 why == NULL ? errdetail("These are the last values that it left.") :
				 errdetail("It left consensus: %s. These are the last values that it left.", why),
				 errhint("See the server log, and: pgraft-launch status -D %s", DataDir)));
		return;
	}
	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("pgraft is not running on this node"),
			 pgraft_segment.base != NULL ?
			 errdetail("These are the last values that it left.") :
			 errdetail("There are no last values: %s", attach_problem()),
			 errhint("Start it with: pgraft-launch start -D %s", DataDir)));
}

/* Of a worker that answers, and takes no part: its disk failed, say. */
void
pgraft_warn_left(void)
{
	char	   *why = why_left();

	ereport(WARNING,
			(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
			 errmsg("this node takes no part in consensus"),
			 errdetail("The reason: %s. These are the values of when it left.",
					   why != NULL ? why : "it is in the server log"),
			 errhint("See the server log, and: pgraft-launch status -D %s", DataDir)));
}
