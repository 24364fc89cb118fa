/*
 * pgraft.c: loading of the library.
 *
 * It loads quietly when the runtime is absent, and when it was not preloaded.
 */
#include "pgraft.h"

#if PG_VERSION_NUM >= 180000
PG_MODULE_MAGIC_EXT(.name = "pgraft", .version = PGRAFT_VERSION);
#else
PG_MODULE_MAGIC;
#endif

extern PGDLLEXPORT void _PG_init(void);

void
_PG_init(void)
{
	pgraft_define_settings();
}
