"""`python -m pgraft.inspector` is `pgraft-inspect`."""

from __future__ import annotations

import sys

from pgraft.inspector.cli import main

sys.exit(main())
