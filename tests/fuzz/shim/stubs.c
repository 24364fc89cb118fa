/*
 * stubs.c: what the shim's files call of PostgreSQL, small and strict.
 *
 * Memory is malloc'd, so that AddressSanitizer sees every byte too far, and freed after each input. An
 * ERROR goes back to the harness. Formats are carried out, so that a text which is no string is found.
 */
#include "postgres.h"

#include <setjmp.h>
#include <stdarg.h>

#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/ipc.h"
#include "storage/latch.h"
#include "storage/procarray.h"
#include "storage/waiteventset.h"
#include "utils/builtins.h"
#include "utils/tuplestore.h"
#include "utils/wait_event.h"

#include "harness.h"

#undef snprintf
#undef vsnprintf

char	   *DataDir = "/nowhere";
struct Latch *MyLatch = NULL;
int			MyProcPid = 4242;
bool		IsUnderPostmaster = false;
volatile uint32 InterruptHoldoffCount = 0;
jmp_buf		harness_error;
char		harness_run_dir[64];
static int	level;
static int	rows;

/* --- memory ------------------------------------------------------------------------------------ */

typedef struct Block
{
	struct Block *next;
	struct Block **link;
} Block;

static Block *blocks;

void *
palloc(Size size)
{
	Block	   *block;

	if (size > 64 * 1024 * 1024)
		harness_fail("an allocation without bound");
	block = malloc(sizeof(Block) + size);
	block->next = blocks;
	block->link = &blocks;
	if (blocks != NULL)
		blocks->link = &block->next;
	blocks = block;
	return block + 1;
}

void *
palloc0(Size size)
{
	return memset(palloc(size), 0, size);
}

void
pfree(void *pointer)
{
	Block	   *block = (Block *) pointer - 1;

	*block->link = block->next;
	if (block->next != NULL)
		block->next->link = block->link;
	free(block);
}

void
harness_free_all(void)
{
	while (blocks != NULL)
		pfree(blocks + 1);
	rows = 0;
	InterruptHoldoffCount = 0;
}

char *
pnstrdup(const char *in, Size size)
{
	size_t		length = strnlen(in, size);
	char	   *out = palloc(length + 1);

	memcpy(out, in, length);
	out[length] = '\0';
	return out;
}

text *
cstring_to_text(const char *s)
{
	size_t		length = strlen(s);
	text	   *made = palloc(VARHDRSZ + length);

	SET_VARSIZE(made, VARHDRSZ + length);
	memcpy(VARDATA(made), s, length);
	return made;
}

char *
psprintf(const char *format, ...)
{
	char	   *out = palloc(4096);
	va_list		arguments;

	va_start(arguments, format);
	vsnprintf(out, 4096, format, arguments);
	va_end(arguments);
	return out;
}

int
pg_snprintf(char *out, size_t room, const char *format, ...)
{
	va_list		arguments;
	int			length;

	va_start(arguments, format);
	length = vsnprintf(out, room, format, arguments);
	va_end(arguments);
	return length;
}

/* --- errors ------------------------------------------------------------------------------------ */

bool
errstart(int elevel, const char *domain)
{
	level = elevel;
	return true;
}

bool
errstart_cold(int elevel, const char *domain)
{
	return errstart(elevel, domain);
}

void
errfinish(const char *filename, int lineno, const char *funcname)
{
	if (level >= PANIC || level == FATAL)
		harness_fail("FATAL or PANIC");
	if (level >= ERROR)
		longjmp(harness_error, 1);
}

int
errcode(int sqlerrcode)
{
	return 0;
}

#define CARRIED_OUT(name) \
	int name(const char *format, ...) \
	{ \
		char		out[8192]; \
		va_list		arguments; \
		va_start(arguments, format); \
		vsnprintf(out, sizeof(out), format, arguments); \
		va_end(arguments); \
		return 0; \
	}

CARRIED_OUT(errmsg)
CARRIED_OUT(errdetail)
CARRIED_OUT(errdetail_internal)
CARRIED_OUT(errhint)

/* --- checksums ----------------------------------------------------------------------------------- */

uint32		pg_crc32_table[256];	/* const in PostgreSQL, whose header for it is not included here */

__attribute__((constructor))
static void
fill_crc_table(void)
{
	for (uint32 i = 0; i < 256; i++)
	{
		uint32		crc = i;

		for (int bit = 0; bit < 8; bit++)
			crc = crc & 1 ? crc >> 1 ^ 0xedb88320 : crc >> 1;
		pg_crc32_table[i] = crc;
	}
}

size_t
strlcpy(char *to, const char *from, size_t room)
{
	size_t		length = strlen(from);

	if (room > 0)
	{
		memcpy(to, from, Min(length, room - 1));
		to[Min(length, room - 1)] = '\0';
	}
	return length;
}

/* --- the rest ------------------------------------------------------------------------------------ */

int
GetDatabaseEncoding(void)
{
	return PG_UTF8;
}

bool
pg_verify_mbstr(int encoding, const char *mbstr, int len, bool noError)
{
	for (int i = 0; i < len; i++)
		if ((unsigned char) mbstr[i] >= 0xf8)
			return false;
	return true;
}

bool
pgraft_data_dir(char *path, size_t room)
{
	return false;
}

void
InitMaterializedSRF(FunctionCallInfo fcinfo, bits32 flags)
{
	rows = 0;
}

void
tuplestore_putvalues(Tuplestorestate *state, TupleDesc tdesc, const Datum *values, const bool *isnull)
{
	if (++rows > PGRAFT_MEMBERS_MAX)
		harness_fail("more rows than members are possible");
}

PGPROC *
BackendPidGetProc(int pid)
{
	return pid % 2 ? NULL : (PGPROC *) &rows;
}

bool
AcquireExternalFD(void)
{
	return true;
}

void
ReleaseExternalFD(void)
{
}

void
before_shmem_exit(pg_on_exit_callback function, Datum arg)
{
}

uint32
WaitEventExtensionNew(const char *wait_event_name)
{
	return 1;
}

WaitEventSet *
CreateWaitEventSet(ResourceOwner resowner, int nevents)
{
	return (WaitEventSet *) &rows;
}

int
AddWaitEventToSet(WaitEventSet *set, uint32 events, pgsocket fd, Latch *latch, void *user_data)
{
	return 0;
}

void
FreeWaitEventSet(WaitEventSet *set)
{
}

int
WaitEventSetWait(WaitEventSet *set, long timeout, WaitEvent *events, int nevents, uint32 info)
{
	return 0;
}

void
ResetLatch(Latch *latch)
{
}
