"""pgraft-inspect: look at a node's segment, without writing to it. See README.md."""
