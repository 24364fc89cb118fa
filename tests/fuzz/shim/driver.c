/*
 * driver.c: a fuzzer guided by coverage, for compilers that have no libFuzzer (gcc).
 *
 *     driver TEMPLATE RUN_DIR RUNS SECONDS SEED CORPUS_IN CORPUS_OUT
 *
 * Corpora are text, an input per line in hexadecimal; CORPUS_OUT gets what reached new code. An input that
 * ends the process is printed before it does. Built with -fsanitize-coverage=trace-pc for all but this file.
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

extern int	LLVMFuzzerInitialize(int *argc, char ***argv);
extern int	LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
extern void __sanitizer_set_death_callback(void (*callback) (void));
extern void __sanitizer_cov_trace_pc(void);

#define INPUT_BYTES_MAX 512
#define POOL_MAX 4096
#define EDGES 65536
#define INPUT_SECONDS_MAX 20

typedef struct Input
{
	size_t		size;
	uint8_t		data[INPUT_BYTES_MAX];
} Input;

static uint8_t hits[EDGES];
static uint8_t seen[EDGES];
static uintptr_t previous;
static Input pool[POOL_MAX];
static int	pooled;
static int	given;
static Input current;
static uint64_t state;

void
__sanitizer_cov_trace_pc(void)
{
	uintptr_t	here = (uintptr_t) __builtin_return_address(0);
	uint8_t    *hit = &hits[(here ^ (previous >> 1)) % EDGES];

	if (*hit < 255)
		(*hit)++;
	previous = here;
}

static uint64_t
chance(void)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state;
}

static void
print_input(FILE *to, const Input *input)
{
	for (size_t i = 0; i < input->size; i++)
		fprintf(to, "%02x", input->data[i]);
	fputc('\n', to);
}

static void
say_what_broke(void)
{
	fprintf(stderr, "BROKE ON ");
	print_input(stderr, &current);
}

static void
on_signal(int number)
{
	fprintf(stderr, "signal %d\n", number);
	say_what_broke();
	_exit(70);
}

/* Counts of an edge fall into classes, so that a loop that runs longer counts as new a few times only. */
static int
is_new(void)
{
	int			found = 0;

	for (int i = 0; i < EDGES; i++)
	{
		uint8_t		count = hits[i];
		uint8_t		bit = count == 0 ? 0 : count < 4 ? count : count < 16 ? 4 : count < 128 ? 8 : 16;

		if (bit & ~seen[i])
		{
			seen[i] |= bit;
			found = 1;
		}
	}
	return found;
}

static void
run(void)
{
	memset(hits, 0, sizeof(hits));
	previous = 0;
	alarm(INPUT_SECONDS_MAX);
	LLVMFuzzerTestOneInput(current.data, current.size);
	if (is_new() && pooled < POOL_MAX)
		pool[pooled++] = current;
}

static void
mutate(void)
{
	current = pool[chance() % (uint64_t) pooled];
	for (uint64_t changes = 1 + chance() % 6; changes > 0; changes--)
	{
		size_t		at = current.size ? chance() % current.size : 0;
		const Input *other = &pool[chance() % (uint64_t) pooled];

		switch (chance() % 6)
		{
			case 0:
				current.data[at] = (uint8_t) chance();
				break;
			case 1:
				current.data[at] ^= (uint8_t) (1 << chance() % 8);
				break;
			case 2:
				if (current.size + 12 < INPUT_BYTES_MAX)
					for (int i = 0; i < 12; i++)
						current.data[current.size++] = (uint8_t) chance();
				break;
			case 3:
				if (current.size > 4)
					current.size -= chance() % 4;
				break;
			case 4:
				for (size_t i = at; i < current.size && i < at + 12 && i < other->size; i++)
					current.data[i] = other->data[i];
				break;
			default:
				for (size_t i = 0; i < other->size && current.size < INPUT_BYTES_MAX && i < 48; i++)
					current.data[current.size++] = other->data[i];
				break;
		}
	}
}

static void
read_corpus(const char *path)
{
	static char line[2 * INPUT_BYTES_MAX + 2];
	FILE	   *file = fopen(path, "r");

	while (file != NULL && fgets(line, sizeof(line), file) != NULL)
	{
		memset(&current, 0, sizeof(current));
		for (char *at = line; current.size < INPUT_BYTES_MAX; at += 2)
		{
			unsigned	byte;

			if (sscanf(at, "%2x", &byte) != 1 || at[0] == '\n' || at[1] == '\n')
				break;
			current.data[current.size++] = (uint8_t) byte;
		}
		given++;
		run();
	}
	if (file != NULL)
		fclose(file);
}

int
main(int argc, char **argv)
{
	long		runs;
	long		count = 0;
	time_t		end;
	FILE	   *out;

	if (argc != 8)
		return 2;
	LLVMFuzzerInitialize(&argc, &argv);
	__sanitizer_set_death_callback(say_what_broke);
	signal(SIGALRM, on_signal);
	signal(SIGABRT, on_signal);
	runs = atol(argv[3]);
	end = atol(argv[4]) ? time(NULL) + atol(argv[4]) : 0;
	state = 0x9e3779b97f4a7c15ULL ^ (uint64_t) atol(argv[5]);
	current.size = 1;
	run();
	read_corpus(argv[6]);
	for (; (runs == 0 || count < runs) && (end == 0 || time(NULL) < end); count++)
	{
		mutate();
		run();
	}
	out = fopen(argv[7], "w");
	for (int i = 0; out != NULL && i < pooled; i++)
		print_input(out, &pool[i]);
	if (out != NULL)
		fclose(out);
	printf("inputs %ld pool %d given %d\n", count + given, pooled, given);
	return 0;
}
