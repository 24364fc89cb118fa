"""`python -m pgraft_launcher` is pgraft-launch."""

import sys

from pgraft_launcher.cli import main

sys.exit(main())
