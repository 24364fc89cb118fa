"""Benchmarks of pgraft, side by side with etcd where it is installed: `python -m bench`."""
