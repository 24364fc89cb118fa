-- Nothing for PUBLIC, reading for pg_monitor, and no name taken that users will want.
CREATE EXTENSION pgraft;
CREATE ROLE regress_pgraft_nobody;
CREATE ROLE regress_pgraft_monitor IN ROLE pg_monitor;
SET ROLE regress_pgraft_nobody;
SELECT pgraft_is_leader();
SELECT pgraft_replicate_entry('x');
SELECT pgraft_get_version();
RESET ROLE;
SET ROLE regress_pgraft_monitor;
SELECT pgraft_is_leader();
SELECT pgraft_get_worker_state();
SELECT pgraft_replicate_entry('x');
SELECT pgraft_init();
RESET ROLE;
SELECT count(*) FROM pg_proc WHERE proname = 'pgraft_health_check';
DROP EXTENSION pgraft;
DROP ROLE regress_pgraft_nobody, regress_pgraft_monitor;
