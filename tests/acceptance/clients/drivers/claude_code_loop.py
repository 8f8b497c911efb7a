"""The command ``claude --print`` in an empty folder."""

import os
import subprocess
import sys
import tempfile

with tempfile.TemporaryDirectory() as folder:
    command = [sys.argv[1], "--print", "--model", "claude-sonnet-4-5", "--allowedTools", "Bash", "--", "Say numbers."]
    quiet = {
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_TELEMETRY": "1",
        "DISABLE_AUTOUPDATER": "1",
        "HOME": folder,
        "CLAUDE_CONFIG_DIR": folder,
    }
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **quiet}, stdin=subprocess.DEVNULL, check=False, timeout=120
    )
sys.exit(done.returncode)
