-- For benchmarks only, and not part of the extension: an empty C function, to compare pgraft_is_leader() with.
CREATE OR REPLACE FUNCTION pgraft_internal_noop() RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL SAFE AS '$libdir/pgraft', 'pgraft_internal_noop';
