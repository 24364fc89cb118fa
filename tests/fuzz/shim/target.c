/*
 * target.c: one input is a list of words that are changed in a whole segment; then everything is read.
 *
 * segment.c is part of this file, so that the check of the header is run as pgraft_attach() runs it. The
 * segment lies in memory of its exact size: a read too far is seen by AddressSanitizer.
 */
#include "../../../sql/segment.c"

#include <stdio.h>
#include <sys/stat.h>

#include "fmgr.h"
#include "funcapi.h"

#include "harness.h"

#undef fprintf

extern int	LLVMFuzzerInitialize(int *argc, char ***argv);
extern int	LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define WRITES_MAX 64

static char *template;
static size_t template_bytes;
static char *image;
static char run_dir[256];
static ReturnSetInfo result_set;

extern Datum pgraft_is_leader(PG_FUNCTION_ARGS);
extern Datum pgraft_get_leader(PG_FUNCTION_ARGS);
extern Datum pgraft_get_term(PG_FUNCTION_ARGS);
extern Datum pgraft_get_nodes(PG_FUNCTION_ARGS);
extern Datum pgraft_get_learners(PG_FUNCTION_ARGS);
extern Datum pgraft_get_cluster_status(PG_FUNCTION_ARGS);
extern Datum pgraft_log_get_stats(PG_FUNCTION_ARGS);
extern Datum pgraft_log_get_replication_status(PG_FUNCTION_ARGS);
extern Datum pgraft_get_network_stats(PG_FUNCTION_ARGS);
extern Datum pgraft_get_worker_state(PG_FUNCTION_ARGS);
extern Datum pgraft_get_version(PG_FUNCTION_ARGS);

static const PGFunction readers[] = {
	pgraft_is_leader, pgraft_get_leader, pgraft_get_term, pgraft_get_nodes, pgraft_get_learners,
	pgraft_get_cluster_status, pgraft_log_get_stats, pgraft_log_get_replication_status,
	pgraft_get_network_stats, pgraft_get_worker_state, pgraft_get_version
};

void
harness_fail(const char *why)
{
	fprintf(stderr, "harness: %s\n", why);
	abort();
}

/* argv[1]: the template, argv[2]: a directory with the FIFOs. */
int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct stat about;
	FILE	   *file = fopen((*argv)[1], "rb");

	if (file == NULL || fstat(fileno(file), &about) < 0)
		harness_fail("no template");
	template_bytes = (size_t) about.st_size;
	template = malloc(template_bytes);
	image = malloc(template_bytes);
	if (fread(template, 1, template_bytes, file) != template_bytes)
		harness_fail("the template cannot be read");
	fclose(file);
	strlcpy(run_dir, (*argv)[2], sizeof(run_dir));
	return 0;
}

static uint64
take(const uint8_t **at, const uint8_t *end, size_t count)
{
	uint64		value = 0;

	for (size_t i = 0; i < count && *at < end; i++)
		value |= (uint64) *(*at)++ << (8 * i);
	return value;
}

/* Where a word is likely to matter: the pages, the blocks' heads and rows, the slots. */
static size_t
place(uint64 region, uint64 number)
{
	uint64	   *header = (uint64 *) template;
	size_t		members = header[PGRAFT_HEADER_W_MEMBERS_OFFSET];
	size_t		command = header[PGRAFT_HEADER_W_COMMAND_OFFSET];
	size_t		slots = header[PGRAFT_HEADER_W_SLOTS_OFFSET];

	switch (region % 9)
	{
		case 0:
			return (number % PGRAFT_HEADER_WORD_COUNT) * 8;
		case 1:
			return PGRAFT_WORKER_PAGE + (number % PGRAFT_WORKER_WORD_COUNT) * 8;
		case 2:
			return PGRAFT_NETWORK_PAGE + (number % PGRAFT_NETWORK_WORD_COUNT) * 8;
		case 3:
			return PGRAFT_STATUS_OFFSET + (number % 2) * PGRAFT_STATUS_COPY_BYTES + number / 2 % 160 * 8;
		case 4:
			return members + (number % 2) * PGRAFT_MEMBERS_COPY_BYTES + number / 2 % 160 * 8;
		case 5:
			return command + number % 16 * 8;
		case 6:
			return slots + (number % 2) * PGRAFT_SLOT_BYTES + number / 2 % 24 * 8;
		case 7:
			return PGRAFT_HEADER_TEXT_VERSION + number % 256 * 8;
		default:
			return number * 8 % (template_bytes - 8) & ~(size_t) 7;
	}
}

static void
fix_block(size_t offset, size_t copy_bytes)
{
	uint64	   *words = (uint64 *) (image + offset);
	uint64		used = words[1];
	uint32		crc;

	if (used < 16 || used > copy_bytes)
		return;
	crc = pgraft_crc32_add(pgraft_crc32_start(), image + offset + 8, used - 8);
	words[0] = pgraft_crc32_end(crc);
}

static void
fix_answer(size_t slot)
{
	uint64	   *words = (uint64 *) (image + slot);
	uint64		length = words[PGRAFT_SLOT_W_PAYLOAD_BYTES];
	uint32		crc = pgraft_crc32_start();

	if (length > PGRAFT_SLOT_PAYLOAD_BYTES)
		return;
	crc = pgraft_crc32_add(crc, words + PGRAFT_SLOT_W_ANSWER_NO,
						   8 * (PGRAFT_SLOT_W_PAYLOAD_BYTES - PGRAFT_SLOT_W_ANSWER_NO + 1));
	crc = pgraft_crc32_add(crc, image + slot + PGRAFT_SLOT_PAYLOAD_OFFSET, length);
	words[PGRAFT_SLOT_W_CRC] = pgraft_crc32_end(crc);
}

static void
fill(const uint8_t *at, const uint8_t *end)
{
	uint64	   *header = (uint64 *) template;
	size_t		members = header[PGRAFT_HEADER_W_MEMBERS_OFFSET];
	size_t		slots = header[PGRAFT_HEADER_W_SLOTS_OFFSET];
	bool		fix = take(&at, end, 1) % 4 != 0;

	memcpy(image, template, template_bytes);
	((uint64 *) (image + PGRAFT_WORKER_PAGE))[PGRAFT_WORKER_W_BEAT_NS] = (uint64) pgraft_now_ns();
	for (int i = 0; i < WRITES_MAX && at < end; i++)
	{
		uint64		how = take(&at, end, 1);
		size_t		to = place(how, take(&at, end, 2));
		uint64	   *word = (uint64 *) (image + to);

		switch (how / 9 % 4)
		{
			case 0:
				*word = take(&at, end, 8);
				break;
			case 1:
				*word = take(&at, end, 1);
				break;
			case 2:
				*word += (uint64) (int8) take(&at, end, 1);
				break;
			default:
				*word = (UINT64CONST(1) << (take(&at, end, 1) % 64)) - (how & 1);
				break;
		}
	}
	if (!fix)
		return;
	for (int copy = 0; copy < 2; copy++)
	{
		fix_block(PGRAFT_STATUS_OFFSET + copy * PGRAFT_STATUS_COPY_BYTES, PGRAFT_STATUS_COPY_BYTES);
		fix_block(members + copy * PGRAFT_MEMBERS_COPY_BYTES, PGRAFT_MEMBERS_COPY_BYTES);
		fix_answer(slots + copy * PGRAFT_SLOT_BYTES);
	}
}

/* Attach as pgraft_attach() does once the file is open; the pid words are none of a process here. */
static bool
attach_image(void)
{
	PgraftSegment found = {0};
	uint64		page[PGRAFT_PAGE_BYTES / PGRAFT_WORD_BYTES];

	memcpy(page, image, sizeof(page));
	if (!read_header(page, template_bytes, &found))
		return false;
	strlcpy(found.run_dir, run_dir, sizeof(found.run_dir));
	(void) is_ours(page, run_dir);
	found.base = image;
	pgraft_segment = found;
	next_attempt_ns = PG_INT64_MAX;
	version_warned = false;
	return true;
}

static void
read_everything(void)
{
	for (size_t i = 0; i < lengthof(readers); i++)
	{
		LOCAL_FCINFO(fcinfo, 0);

		InitFunctionCallInfoData(*fcinfo, NULL, 0, InvalidOid, NULL, (Node *) &result_set);
		if (setjmp(harness_error) == 0)
			(void) readers[i] (fcinfo);
	}
}

/* What a command does around its wait: a slot, a record, and the answer, whatever it is. */
static void
one_command(void)
{
	uint64		record[PGRAFT_COMMAND_RECORD_WORD_COUNT] = {0};
	PgraftAnswer answer = {0};
	static const char piece[PGRAFT_PIECE_BYTES_MAX] = "text";

	if (setjmp(harness_error) == 0 && pgraft_slot_claim())
	{
		uint64		request = pgraft_slot_next_request();

		record[PGRAFT_COMMAND_RECORD_W_REQUEST_NO] = request;
		for (int i = 0; i < 6; i++)
			if (pgraft_ring_put(record, piece, i % 2 ? sizeof(piece) : 4, i == 5) != PGRAFT_PUT_DONE)
				break;
		pgraft_slot_want_space(!pgraft_ring_has_room(4096));
		pgraft_ring_worker();
		/* The answer in the image is to another request; take it as if it were to ours. */
		request = *(pgraft_words(pgraft_segment.slots_offset +
								 (size_t) pgraft_slot_number() * PGRAFT_SLOT_BYTES) +
					PGRAFT_SLOT_W_ANSWERED_NO);
		if (pgraft_slot_answer(request, 0, &answer))
			pgraft_raise(0, answer.payload, answer.length);
	}
	pgraft_slot_release();
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	fill(data, data + size);
	if (attach_image())
	{
		read_everything();
		one_command();
		pgraft_segment.base = NULL;
	}
	harness_free_all();
	return 0;
}
