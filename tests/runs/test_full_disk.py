"""A disk that is really full: a small file system of its own, filled to the last byte."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_MOUNT = 'mount -t tmpfs -o size=256k tmpfs "$1" && shift && exec "$@"'
_NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _MOUNT, "sh"]

SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_store import make_episode
from agentrl.config.models import Config
from agentrl.errors import AgentRLError
from agentrl.runs.contract import Summary
from agentrl.runs.folder import RunFolder, read_summary
from agentrl.runs.metrics import MetricsLog
from agentrl.runs.episodes import EpisodeReader
from agentrl.runs.store import EpisodeStore

place = Path(sys.argv[1])
told = {}

def tell(name, action):
    try:
        action()
        told[name] = "done"
    except AgentRLError as error:
        told[name] = [type(error).__name__, str(error)]

def create(name):
    return RunFolder.create(Config.model_validate({"run": {"dir": str(place), "name": name}}))

def save():
    with folder.new_checkpoint(1) as aside:
        (aside / "started").write_text("")
        # As torch.save does when its file cannot grow.
        raise RuntimeError("basic_ios::clear: iostream error")

folder = create("first")
with EpisodeStore(folder.episodes) as store, MetricsLog(folder.metrics) as metrics:
    store.submit([make_episode()]).result()
    with open(place / "ballast", "wb", buffering=0) as ballast:
        try:
            while ballast.write(b"x" * 512):
                pass
        except OSError:
            pass
    large = make_episode(task=1, data={"text": "x" * 100_000})
    tell("episode", lambda: store.submit([large]).result())
    tell("metrics", lambda: [metrics.append(step, {}) for step in range(1000)])
    tell("checkpoint", save)
    tell("second run", lambda: create("second"))
    tell("summary", lambda: folder.write_summary(Summary("failed: the disk is full")))
    told["episodes kept"] = EpisodeReader(store.path).count()
    told["outcome"] = read_summary(folder.summary).outcome
    told["left"] = [path.name for path in (*place.iterdir(), *folder.checkpoints.iterdir())]
print(json.dumps(told))
"""


def on_a_small_disk(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_NAMESPACE, str(folder), *command], capture_output=True, text=True, check=False)


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    if shutil.which("unshare") is None or on_a_small_disk(tmp_path, "true").returncode:
        pytest.skip("this system does not let tests mount a file system of their own")
    return tmp_path


def test_everything_that_writes_says_so_in_a_line_and_the_summary_still_fits(small_disk: Path) -> None:
    ended = on_a_small_disk(small_disk, sys.executable, "-c", SCRIPT, str(small_disk), str(Path(__file__).parent))
    assert ended.stderr == ""
    told = json.loads(ended.stdout)
    full, fix = "No space left on device", "(free some space, or set run.dir to another disk)"
    run = small_disk / "first"
    assert told == {
        "episode": ["RunError", f"cannot write {run / 'episodes.sqlite'}: database or disk is full {fix}"],
        "metrics": ["RunError", f"cannot write {run / 'metrics.jsonl'}: {full} {fix}"],
        "checkpoint": ["RunError", f"cannot write {run / 'checkpoints' / 'step-000001'}: {full} {fix}"],
        "second run": [
            "RunFolderError",
            f"cannot make a run folder in {small_disk}: {full} (free some space there, or set run.dir to another disk)",
        ],
        "summary": "done",
        "episodes kept": 1,
        "outcome": "failed: the disk is full",
        "left": ["ballast", "first"],
    }
