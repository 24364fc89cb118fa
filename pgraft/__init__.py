"""pgraft: Raft consensus beside every PostgreSQL server."""

__version__ = "0.1.0"
