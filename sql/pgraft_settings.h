/*
 * pgraft_settings.h: the settings of pgraft.
 *
 * Made by `python -m pgraft.postgres.settings_header` from settings.py beside it. Do not edit.
 * X(field, name, short description, long description, context, then by type:
 *   string: default, flags;  integer: default, minimum, maximum, unit;  bool: default;
 *   enum: default, options)
 */
#ifndef PGRAFT_SETTINGS_H
#define PGRAFT_SETTINGS_H

#define PGRAFT_ELECTION_TIMEOUT_MS_MIN 100
#define PGRAFT_ELECTION_TIMEOUT_MS_MAX 600000
#define PGRAFT_ENTRY_BYTES_MAX (1024 * 1024)
#define PGRAFT_COMMAND_RING_BYTES_MAX (65536 * 1024)

#define PGRAFT_OPTIONS_INITIAL_CLUSTER_STATE \
	{"new", 0, false}, \
	{"existing", 1, false}, \
	{NULL, 0, false}

#define PGRAFT_STRING_SETTINGS(X) \
	X(name, "pgraft.name", "Name of this node.", "One of the names in pgraft.initial_cluster.", PGC_POSTMASTER, "", 0) \
	X(initial_cluster, "pgraft.initial_cluster", "Members at the first start, as name=host:port,...", "The same on every node; a node's id is its place in the list, from 1. Counts at the first start only.", PGC_POSTMASTER, "", 0) \
	X(listen_address, "pgraft.listen_address", "host:port that the Raft port binds.", "Empty: this node's own address in pgraft.initial_cluster.", PGC_POSTMASTER, "", 0) \
	X(cluster_id, "pgraft.cluster_id", "Name of the cluster; peers of another one are refused.", NULL, PGC_POSTMASTER, "pgraft", 0) \
	X(address, "pgraft.address", "Host name or address by which peers reach this node.", NULL, PGC_POSTMASTER, "", 0) \
	X(data_dir, "pgraft.data_dir", "Directory of the Raft state.", "Empty: the data directory's path with .pgraft added. It must lie outside the data directory.", PGC_POSTMASTER, "", GUC_SUPERUSER_ONLY) \
	X(ssl_cert_file, "pgraft.ssl_cert_file", "Certificate of this node, PEM.", NULL, PGC_POSTMASTER, "", 0) \
	X(ssl_key_file, "pgraft.ssl_key_file", "Private key of this node, PEM, readable by its owner only.", NULL, PGC_POSTMASTER, "", 0) \
	X(ssl_ca_file, "pgraft.ssl_ca_file", "Certificates of the authorities that sign nodes, PEM.", NULL, PGC_POSTMASTER, "", 0)

#define PGRAFT_INTEGER_SETTINGS(X) \
	X(node_id, "pgraft.node_id", "Id of this node; 0 takes its place in pgraft.initial_cluster.", NULL, PGC_POSTMASTER, 0, 0, 2147483647, 0) \
	X(port, "pgraft.port", "Raft port by which peers reach this node.", NULL, PGC_POSTMASTER, 0, 0, 65535, 0) \
	X(election_timeout, "pgraft.election_timeout", "An election starts after one to two of these without a leader.", "At least ten times pgraft.heartbeat_interval.", PGC_POSTMASTER, 1000, 100, 600000, GUC_UNIT_MS) \
	X(heartbeat_interval, "pgraft.heartbeat_interval", "Time between a leader's heartbeats.", NULL, PGC_POSTMASTER, 100, 10, 60000, GUC_UNIT_MS) \
	X(max_entry_size, "pgraft.max_entry_size", "Largest text that pgraft_replicate_entry takes, in UTF-8.", NULL, PGC_POSTMASTER, 1024, 1, 1024, GUC_UNIT_KB) \
	X(command_ring_size, "pgraft.command_ring_size", "Size of the ring by which sessions hand commands to the worker.", NULL, PGC_POSTMASTER, 1024, 16, 65536, GUC_UNIT_KB) \
	X(log_keep_entries, "pgraft.log_keep_entries", "Committed entries that are kept at least, whatever their size.", "Older ones go when pgraft.log_keep_bytes is exceeded, too.", PGC_POSTMASTER, 1000000, 1000, 2147483647, 0) \
	X(log_keep_bytes, "pgraft.log_keep_bytes", "Bytes of committed entries that are kept at least, whatever their number.", "Older ones go when pgraft.log_keep_entries is exceeded, too.", PGC_POSTMASTER, 1048576, 1024, 2147483647, GUC_UNIT_KB) \
	X(snapshot_threshold, "pgraft.snapshot_threshold", "Entries beyond those to keep after which a snapshot is written and the log compacted.", NULL, PGC_POSTMASTER, 10000, 100, 2147483647, 0) \
	X(log_segment_size, "pgraft.log_segment_size", "Size of one file of the entry log.", NULL, PGC_POSTMASTER, 16, 1, 1024, GUC_UNIT_MB) \
	X(proposal_timeout, "pgraft.proposal_timeout", "How long a command waits for its outcome.", NULL, PGC_USERSET, 10000, 100, 2147483647, GUC_UNIT_MS) \
	X(add_node_timeout, "pgraft.add_node_timeout", "How long pgraft_add_node waits for the newcomer to catch up.", NULL, PGC_USERSET, 60000, 1000, 2147483647, GUC_UNIT_MS) \
	X(disk_stall_timeout, "pgraft.disk_stall_timeout", "A sync of the entry log that takes longer ends this node's part in consensus.", NULL, PGC_POSTMASTER, 10000, 100, 2147483647, GUC_UNIT_MS)

#define PGRAFT_BOOL_SETTINGS(X) \
	X(ssl_enabled, "pgraft.ssl_enabled", "Mutual TLS between nodes.", NULL, PGC_POSTMASTER, false) \
	X(autostart, "pgraft.autostart", "Take part in consensus at start; off leaves it to pgraft_init().", NULL, PGC_POSTMASTER, true) \
	X(forward_proposals, "pgraft.forward_proposals", "Send commands of this session to the leader when this node is not.", NULL, PGC_USERSET, false)

#define PGRAFT_ENUM_SETTINGS(X) \
	X(initial_cluster_state, "pgraft.initial_cluster_state", "Whether this node forms a new cluster or waits to be added to an existing one.", NULL, PGC_POSTMASTER, 0, pgraft_options_initial_cluster_state)

#endif
