"""``python -m agentrl`` is the command ``agentrl``."""

import os
import sys

if not sys.flags.safe_path and sys.path[0] == os.getcwd():
    # As for the command, what lies in the current folder takes nobody's place.
    sys.path.append(sys.path.pop(0))

from agentrl.cli import main

main()
