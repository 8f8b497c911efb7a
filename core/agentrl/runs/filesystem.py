"""Writing to a disk that may be full, read-only, or shared with other machines."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from agentrl.errors import RunError

__all__ = [
    "cannot_write",
    "disk_is_full",
    "filesystem_type",
    "is_network_filesystem",
    "sync",
    "sync_tree",
    "write_atomically",
]

_NETWORK_FILESYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "smb3", "smbfs"}
)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def disk_is_full(error: BaseException) -> bool:
    """Whether ``error``, or what it came from, says that no space is left.

    Libraries that write model files wrap the system's error in their own, so its text is looked at too.
    """
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    text = str(error)
    return os.strerror(errno.ENOSPC) in text or "disk is full" in text


def cannot_write(path: Path, error: BaseException) -> RunError:
    """The one-line error for a write to ``path`` that failed while the run went on."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    if disk_is_full(error):
        return RunError(f"cannot write {path}: {reason}", fix="free some space, or set run.dir to another disk")
    return RunError(f"cannot write {path}: {reason}", fix="make it writable, or set run.dir to another folder")


def write_atomically(path: Path, text: str) -> None:
    """Write ``path`` whole or not at all, and durably. Raises ``OSError`` and then leaves nothing behind."""
    aside = path.with_name(f".{path.name}.part")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync_tree(folder: Path) -> None:
    """Make every file under ``folder`` durable, and the folders that name them."""
    for root, _, names in os.walk(folder):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))


def sync(path: Path) -> None:
    """Make what a file holds, or which names a folder holds, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_network_filesystem(path: Path) -> bool:
    """Whether other machines may have the file system of ``path`` mounted too, as far as can be told."""
    kind = filesystem_type(path)
    return kind in _NETWORK_FILESYSTEMS or kind.startswith("fuse.")


def filesystem_type(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """The type of the file system that holds ``path``, such as ``ext4``; empty where the system does not say."""
    try:
        lines = mounts.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    target, best, kind = path.resolve(), -1, ""
    for fields in (line.split(" ") for line in lines):
        mount = Path(_unescape(fields[1]))
        # Of mounts on one point the last hides the others.
        if target.is_relative_to(mount) and len(mount.parts) >= best:
            best, kind = len(mount.parts), fields[2]
    return kind


def _unescape(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
