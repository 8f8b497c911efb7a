"""Writing to a disk that may be full, read-only, or shared with other machines."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from agentrl.errors import RunError

__all__ = [
    "cannot_write",
    "disk_is_full",
    "filesystem_type",
    "has_space",
    "is_network_filesystem",
    "reserve",
    "sync",
    "sync_tree",
    "write_atomically",
]

_NETWORK_FILESYSTEMS = frozenset(
    {"9p", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "ocfs2", "smb3", "smbfs"}
)
_CRUMBS = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def disk_is_full(error: BaseException) -> bool:
    """Whether ``error`` says that no space is left, in the words of the system or of SQLite."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return os.strerror(errno.ENOSPC) in str(error) or "disk is full" in str(error)


def has_space(folder: Path) -> bool:
    """Whether more than crumbs are left: libraries that fail to write do not always say why."""
    return shutil.disk_usage(folder).free > _CRUMBS


def cannot_write(path: Path, error: BaseException) -> RunError:
    """The one-line error for a write to ``path`` that failed while the run went on."""
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    if disk_is_full(error):
        return RunError(f"cannot write {path}: {reason}", fix="free some space, or set run.dir to another disk")
    return RunError(f"cannot write {path}: {reason}", fix="make it writable, or set run.dir to another folder")


def write_atomically(path: Path, text: str) -> None:
    """Write ``path`` whole or not at all, and durably. Raises ``OSError`` and then leaves nothing behind."""
    aside = _aside(path)
    try:
        with aside.open("r+" if aside.exists() else "w", encoding="utf-8") as file:
            file.write(text)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def reserve(path: Path, size: int = 4096) -> None:
    """Take the room that ``write_atomically`` needs for ``path``, so that a disk which fills later leaves it."""
    with _aside(path).open("w", encoding="utf-8") as file:
        file.write(" " * size)
        file.flush()
        os.fsync(file.fileno())


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


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
