"""The folder in the cache: whole or not there, made once, and made anew where somebody changed it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agentrl.errors import PluginError
from agentrl_smollm2.store import FolderStore


class Maker:
    """Fills a folder, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        (folder / "weights").write_bytes(b"0123")
        (folder / "config.json").write_text("{}")


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path / "models" / "one")


@pytest.fixture
def make() -> Maker:
    return Maker()


def test_a_folder_is_made_once_and_found_again(store, make):
    assert store.get() is None
    assert store.put(make) == store.get() == store.folder
    store.put(make)
    assert make.times == 1
    assert (store.folder / "weights").read_bytes() == b"0123"


@pytest.mark.parametrize("damage", [b"012", b"0124", None], ids=["shorter", "of other content", "gone"])
def test_a_folder_that_was_changed_is_made_anew(store, make, damage):
    store.put(make)
    file = store.folder / "weights"
    file.unlink() if damage is None else file.write_bytes(damage)
    assert store.get() is None
    store.put(make)
    assert (store.folder / "weights").read_bytes() == b"0123"


def test_a_file_that_was_only_touched_is_read_again_and_kept(store, make):
    store.put(make)
    (store.folder / "weights").write_bytes(b"0123")
    assert store.get() == store.folder


@pytest.mark.parametrize("content", ["", "[]", '{"files": 1}', '{"files": {"weights": 4}}'])
def test_a_manifest_that_cannot_be_read_is_no_folder(store, make, content):
    store.put(make)
    (store.folder / "agentrl-manifest.json").write_text(content)
    assert store.get() is None


@pytest.mark.parametrize("ending", [KeyboardInterrupt, PluginError("no weights")], ids=["an interrupt", "an error"])
def test_what_ends_the_making_leaves_nothing_behind(store, make, ending):
    def interrupted(folder: Path) -> None:
        make(folder)
        raise ending

    with pytest.raises(ending if isinstance(ending, type) else type(ending)):
        store.put(interrupted)
    assert {path.name for path in store.folder.parent.iterdir()} <= {"one.lock"}


PROCESS = """
import sys, time
from pathlib import Path
from agentrl_smollm2.store import FolderStore

def make(folder):
    with open(sys.argv[2], "a") as log:
        log.write("made\\n")
    time.sleep(0.2)
    (folder / "weights").write_text("x")

print(FolderStore(Path(sys.argv[1])).put(make))
"""


def test_processes_that_need_it_at_the_same_time_make_it_once(store, tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-c", PROCESS, str(store.folder), str(log)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {process.communicate(timeout=120)[0].strip() for process in processes} == {str(store.folder)}
    assert log.read_text().splitlines() == ["made"]


def test_a_place_that_cannot_be_written_is_an_error_with_a_fix(tmp_path, make):
    (tmp_path / "file").write_text("")
    with pytest.raises(PluginError, match="XDG_CACHE_HOME"):
        FolderStore(tmp_path / "file" / "one").put(make)
