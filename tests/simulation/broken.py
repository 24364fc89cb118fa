"""A pytest plugin: runs the tests with the fault of breaks.py that PGRAFT_TEST_BREAK names."""

import os

from tests.simulation import breaks

breaks.install(os.environ["PGRAFT_TEST_BREAK"])
