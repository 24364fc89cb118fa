"""Runs etcd's data-driven Raft scenarios against pgraft.raft. See README.md in this folder."""
