"""What a file system can do is known before it is relied on."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentrl.runs import folder
from agentrl.runs.folder import filesystem_type, is_network_filesystem, write_atomically

MOUNTS = r"""/dev/vda / ext4 rw 0 0
proc /proc proc rw 0 0
server:/home /mnt/home nfs4 rw 0 0
//server/a /mnt/with\040space cifs rw 0 0
tmpfs /mnt/home/me/scratch tmpfs rw 0 0
sshfs /mnt/ssh fuse.sshfs rw 0 0
overlay /mnt/ssh overlay rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/runs", "ext4"),
        ("/mnt/home/me/runs", "nfs4"),
        ("/mnt/home/me/scratch/runs", "tmpfs"),
        ("/mnt/with space/runs", "cifs"),
        ("/mnt/homework", "ext4"),
        ("/mnt/ssh/runs", "overlay"),
    ],
)
def test_the_innermost_mount_holds_a_path(tmp_path: Path, path: str, kind: str) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    assert filesystem_type(Path(path), tmp_path / "mounts") == kind


def test_a_system_that_does_not_say_is_not_guessed_about(tmp_path: Path) -> None:
    assert filesystem_type(tmp_path, tmp_path / "absent") == ""


@pytest.mark.parametrize(("kind", "shared"), [("nfs4", True), ("fuse.sshfs", True), ("ext4", False), ("", False)])
def test_network_file_systems_are_told_apart(monkeypatch: pytest.MonkeyPatch, kind: str, shared: bool) -> None:
    monkeypatch.setattr(folder, "filesystem_type", lambda path: kind)
    assert is_network_filesystem(Path("/")) is shared


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "old, and longer")
    write_atomically(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
