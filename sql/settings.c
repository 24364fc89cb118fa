/*
 * settings.c: pgraft's settings, made from pgraft_settings.h.
 *
 * When the library is preloaded all of them are real settings. Otherwise those of postmaster context
 * cannot be made any more: what postgresql.conf says of them stays a placeholder, which is read by
 * name, and the prefix is not reserved, since that would throw the placeholders away. But a placeholder
 * is anybody's to set, and whoever set pgraft.data_dir would choose which segment and which FIFOs a
 * backend opens: that one, as what is private in general, becomes a superuser's setting then. Values
 * from postgresql.conf stay; what another role has set is dropped with a WARNING.
 */
#include "pgraft.h"

#include "miscadmin.h"

static const struct config_enum_entry pgraft_options_initial_cluster_state[] = {
	PGRAFT_OPTIONS_INITIAL_CLUSTER_STATE
};

PgraftSettings pgraft_settings;

static bool
can_define(GucContext context)
{
	return context != PGC_POSTMASTER || process_shared_preload_libraries_in_progress;
}

#define DEFINE_STRING(field, name, short_desc, long_desc, context, boot, flags) \
	if (can_define(context) || (flags) != 0) \
		DefineCustomStringVariable(name, short_desc, long_desc, &pgraft_settings.field, boot, \
								   can_define(context) ? context : PGC_SUSET, flags, NULL, NULL, NULL);
#define DEFINE_INTEGER(field, name, short_desc, long_desc, context, boot, low, high, unit) \
	if (can_define(context)) \
		DefineCustomIntVariable(name, short_desc, long_desc, &pgraft_settings.field, boot, low, high, \
								context, unit, NULL, NULL, NULL);
#define DEFINE_BOOL(field, name, short_desc, long_desc, context, boot) \
	if (can_define(context)) \
		DefineCustomBoolVariable(name, short_desc, long_desc, &pgraft_settings.field, boot, \
								 context, 0, NULL, NULL, NULL);
#define DEFINE_ENUM(field, name, short_desc, long_desc, context, boot, options) \
	if (can_define(context)) \
		DefineCustomEnumVariable(name, short_desc, long_desc, &pgraft_settings.field, boot, options, \
								 context, 0, NULL, NULL, NULL);

void
pgraft_define_settings(void)
{
	PGRAFT_STRING_SETTINGS(DEFINE_STRING)
	PGRAFT_INTEGER_SETTINGS(DEFINE_INTEGER)
	PGRAFT_BOOL_SETTINGS(DEFINE_BOOL)
	PGRAFT_ENUM_SETTINGS(DEFINE_ENUM)

	if (process_shared_preload_libraries_in_progress)
		MarkGUCPrefixReserved("pgraft");
}

/*
 * The directory of the Raft state, without a trailing slash; false when it does not fit into `room`.
 */
bool
pgraft_data_dir(char *path, size_t room)
{
	const char *set = GetConfigOption("pgraft.data_dir", true, false);
	int			length;

	if (set != NULL && set[0] != '\0')
		length = snprintf(path, room, "%s", set);
	else
		length = snprintf(path, room, "%s.pgraft", DataDir);
	return length > 0 && (size_t) length < room;
}
