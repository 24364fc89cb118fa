-- The functions without a runtime: nothing fails that only reads, and what it would need is said.
\set VERBOSITY terse
CREATE EXTENSION pgraft;
SELECT p.oid::regprocedure AS function, pg_get_function_result(p.oid) AS result,
       p.provolatile AS volatile, p.proparallel AS parallel, p.proisstrict AS strict
  FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.deptype = 'e'
  JOIN pg_extension e ON e.oid = d.refobjid AND e.extname = 'pgraft'
 ORDER BY p.proname COLLATE "C";
SELECT pgraft_is_leader(), pgraft_get_leader(), pgraft_get_worker_state();
SELECT pgraft_get_version() = extversion AS same FROM pg_extension WHERE extname = 'pgraft';
SELECT pgraft_get_term();
SELECT * FROM pgraft_get_nodes();
SELECT * FROM pgraft_get_cluster_status();
SELECT * FROM pgraft_log_get_stats();
SELECT * FROM pgraft_log_get_replication_status();
SELECT connections, frames_in, messages_absurd FROM pgraft_get_network_stats();
-- Commands.
SELECT pgraft_init();
SELECT pgraft_replicate_entry('x');
SELECT pgraft_add_node(2, '10.0.0.2', 7001);
SELECT pgraft_remove_node(2);
SELECT pgraft_update_node(2, '10.0.0.2', 7001);
SELECT pgraft_log_get_entry(1);
SELECT pgraft_set_debug(true);
SELECT pgraft_transfer_leadership();
SELECT pgraft_read_barrier();
SELECT pgraft_take_snapshot();
-- Wrong arguments.
SELECT pgraft_replicate_entry(NULL) IS NULL AS is_null;
SELECT pgraft_replicate_entry(repeat('x', 1024 * 1024 + 1));
SELECT pgraft_add_node(0, 'a', 1);
SELECT pgraft_add_node(1, '', 1);
SELECT pgraft_add_node(1, 'a b', 1);
SELECT pgraft_add_node(1, 'a', 65536);
SELECT pgraft_remove_node(-1);
SELECT pgraft_log_get_entry(0);
DROP EXTENSION pgraft;
