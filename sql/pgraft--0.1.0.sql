-- pgraft 0.1.0: the SQL functions. What they promise stands in their comments.
\echo Use "CREATE EXTENSION pgraft" to load this file. \quit

-- The readers are VOLATILE: what they show changes between two calls in one statement. They are
-- PARALLEL SAFE: every process maps the segment for itself, and they change nothing. Commands are
-- PARALLEL UNSAFE.

-- --- reading -------------------------------------------------------------------------------------

CREATE FUNCTION pgraft_is_leader() RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'pgraft_is_leader';
COMMENT ON FUNCTION pgraft_is_leader() IS
'true only while this node holds a valid leader lease';

CREATE FUNCTION pgraft_get_leader() RETURNS bigint
LANGUAGE c VOLATILE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'pgraft_get_leader';
COMMENT ON FUNCTION pgraft_get_leader() IS
'node id of the leader, 0 when none is known';

CREATE FUNCTION pgraft_get_term() RETURNS bigint
LANGUAGE c VOLATILE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'pgraft_get_term';
COMMENT ON FUNCTION pgraft_get_term() IS
'current term of this node';

CREATE FUNCTION pgraft_get_nodes() RETURNS TABLE (
    node_id integer, address text, port integer, is_leader boolean
)
LANGUAGE c VOLATILE STRICT PARALLEL SAFE ROWS 5 AS 'MODULE_PATHNAME', 'pgraft_get_nodes';
COMMENT ON FUNCTION pgraft_get_nodes() IS
'every member of the cluster, in id order';

CREATE FUNCTION pgraft_get_learners() RETURNS TABLE (
    node_id integer, address text, port integer
)
LANGUAGE c VOLATILE STRICT PARALLEL SAFE ROWS 1 AS 'MODULE_PATHNAME', 'pgraft_get_learners';
COMMENT ON FUNCTION pgraft_get_learners() IS
'members that receive the log and do not vote yet, in id order';

CREATE FUNCTION pgraft_get_cluster_status() RETURNS TABLE (
    node_id integer, address text, port integer, is_leader boolean, state text,
    term bigint, commit_index bigint, last_log_index bigint, last_heartbeat interval
)
LANGUAGE c VOLATILE STRICT PARALLEL SAFE ROWS 5 AS 'MODULE_PATHNAME', 'pgraft_get_cluster_status';
COMMENT ON FUNCTION pgraft_get_cluster_status() IS
'role, term and indexes of every member, and the time since each was last heard from';

CREATE FUNCTION pgraft_log_get_stats() RETURNS TABLE (
    log_size bigint, last_index bigint, commit_index bigint, last_applied bigint
)
LANGUAGE c VOLATILE STRICT PARALLEL SAFE ROWS 1 AS 'MODULE_PATHNAME', 'pgraft_log_get_stats';
COMMENT ON FUNCTION pgraft_log_get_stats() IS
'size in bytes on disk, and indexes, of this node''s entry log';

CREATE FUNCTION pgraft_log_get_replication_status() RETURNS TABLE (
    node_id integer, match_index bigint, next_index bigint, is_replicating boolean,
    last_heartbeat interval
)
LANGUAGE c VOLATILE STRICT PARALLEL SAFE ROWS 5
AS 'MODULE_PATHNAME', 'pgraft_log_get_replication_status';
COMMENT ON FUNCTION pgraft_log_get_replication_status() IS
'on the leader, how far each other member is; on a follower, no rows and a NOTICE naming the leader';

CREATE FUNCTION pgraft_get_network_stats() RETURNS TABLE (
    connections bigint, pending bigint, frames_in bigint, frames_out bigint, bytes_in bigint, bytes_out bigint,
    messages_dropped bigint, connections_refused bigint, connections_timed_out bigint,
    connections_crowded_out bigint, connections_malformed bigint, messages_malformed bigint,
    messages_absurd bigint, messages_refused bigint
)
LANGUAGE c VOLATILE STRICT PARALLEL SAFE ROWS 1 AS 'MODULE_PATHNAME', 'pgraft_get_network_stats';
COMMENT ON FUNCTION pgraft_get_network_stats() IS
'connections to peers, what went over them, and what came in and was not taken, since the start of the node';

CREATE FUNCTION pgraft_get_worker_state() RETURNS text
LANGUAGE c VOLATILE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'pgraft_get_worker_state';
COMMENT ON FUNCTION pgraft_get_worker_state() IS
'state of the raft worker: running, stopped, initializing or error';

CREATE FUNCTION pgraft_get_version() RETURNS text
LANGUAGE c STABLE STRICT PARALLEL SAFE AS 'MODULE_PATHNAME', 'pgraft_get_version';
COMMENT ON FUNCTION pgraft_get_version() IS
'version of the pgraft library in use';

-- These two ask the worker, and change nothing.

CREATE FUNCTION pgraft_log_get_entry(index bigint) RETURNS text
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pgraft_log_get_entry';
COMMENT ON FUNCTION pgraft_log_get_entry(bigint) IS
'text of a committed entry; NULL for one that carries no user data';

CREATE FUNCTION pgraft_read_barrier() RETURNS bigint
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pgraft_read_barrier';
COMMENT ON FUNCTION pgraft_read_barrier() IS
'waits until this node has everything that was committed before the call, and returns its index';

-- --- changing ------------------------------------------------------------------------------------

CREATE FUNCTION pgraft_init() RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pgraft_init';
COMMENT ON FUNCTION pgraft_init() IS
'joins this node to consensus with the settings in postgresql.conf; true once the worker is running';

CREATE FUNCTION pgraft_add_node(node_id integer, address text, port integer) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pgraft_add_node';
COMMENT ON FUNCTION pgraft_add_node(integer, text, integer) IS
'adds a node on the leader: as a learner first, promoted when it has caught up';

CREATE FUNCTION pgraft_remove_node(node_id integer) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pgraft_remove_node';
COMMENT ON FUNCTION pgraft_remove_node(integer) IS
'removes a node on the leader; it is refused until it is added again';

CREATE FUNCTION pgraft_update_node(node_id integer, address text, port integer) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pgraft_update_node';
COMMENT ON FUNCTION pgraft_update_node(integer, text, integer) IS
'tells all members, on the leader, that a node has moved to another address';

CREATE FUNCTION pgraft_replicate_entry(data text) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pgraft_replicate_entry';
COMMENT ON FUNCTION pgraft_replicate_entry(text) IS
'true once the entry is durable on a majority and committed; a rollback does not take it back';

CREATE FUNCTION pgraft_set_debug(enabled boolean) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pgraft_set_debug';
COMMENT ON FUNCTION pgraft_set_debug(boolean) IS
'turns detailed logging in the running processes on or off';

CREATE FUNCTION pgraft_transfer_leadership(node_id integer DEFAULT 0) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pgraft_transfer_leadership';
COMMENT ON FUNCTION pgraft_transfer_leadership(integer) IS
'hands leadership to a node, or with 0 to the one that is furthest';

CREATE FUNCTION pgraft_take_snapshot() RETURNS bigint
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pgraft_take_snapshot';
COMMENT ON FUNCTION pgraft_take_snapshot() IS
'writes a snapshot of this node now, and returns its index';

-- --- who may -------------------------------------------------------------------------------------

REVOKE ALL ON FUNCTION
    pgraft_is_leader(), pgraft_get_leader(), pgraft_get_term(), pgraft_get_nodes(),
    pgraft_get_learners(), pgraft_get_cluster_status(), pgraft_log_get_stats(),
    pgraft_log_get_replication_status(), pgraft_get_network_stats(),
    pgraft_get_worker_state(), pgraft_get_version(),
    pgraft_log_get_entry(bigint), pgraft_read_barrier(), pgraft_init(),
    pgraft_add_node(integer, text, integer), pgraft_remove_node(integer),
    pgraft_replicate_entry(text), pgraft_set_debug(boolean), pgraft_transfer_leadership(integer),
    pgraft_take_snapshot(), pgraft_update_node(integer, text, integer)
FROM PUBLIC;

GRANT EXECUTE ON FUNCTION
    pgraft_is_leader(), pgraft_get_leader(), pgraft_get_term(), pgraft_get_nodes(),
    pgraft_get_learners(), pgraft_get_cluster_status(), pgraft_log_get_stats(),
    pgraft_log_get_replication_status(), pgraft_get_network_stats(),
    pgraft_get_worker_state(), pgraft_get_version(),
    pgraft_log_get_entry(bigint), pgraft_read_barrier()
TO pg_monitor;
