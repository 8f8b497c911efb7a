"""The command ``codex exec`` in an empty folder."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIG = """
model = "policy"
model_provider = "here"
[model_providers.here]
name = "here"
base_url = "{url}"
env_key = "OPENAI_API_KEY"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
"""

with tempfile.TemporaryDirectory() as folder:
    home = Path(folder, "home")
    home.mkdir()
    Path(home, "config.toml").write_text(CONFIG.format(url=os.environ["OPENAI_BASE_URL"]))
    work = Path(folder, "work")
    work.mkdir()
    options = ["--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]
    variables = {**os.environ, "CODEX_HOME": str(home)}
    command = [sys.argv[1], "exec", *options, "Say numbers."]
    done = subprocess.run(command, cwd=work, env=variables, stdin=subprocess.DEVNULL, check=False, timeout=120)
sys.exit(done.returncode)
