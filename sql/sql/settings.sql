-- The settings of a session, and the rest in pg_settings when preloaded.
LOAD 'pgraft';
SELECT name, setting, unit, context FROM pg_settings
 WHERE name LIKE 'pgraft.%' AND context = 'user' ORDER BY name COLLATE "C";
SET pgraft.proposal_timeout = '2s';
SHOW pgraft.proposal_timeout;
-- The wording of the range differs between versions of PostgreSQL.
\set VERBOSITY sqlstate
SET pgraft.proposal_timeout = '1ms';
\set VERBOSITY default
SET pgraft.forward_proposals = on;
SHOW pgraft.forward_proposals;
