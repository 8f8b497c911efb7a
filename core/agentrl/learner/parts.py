"""The state of a learner whose weights are spread over ranks: a folder to which each rank writes what it has.

The tensors are written by ``torch.distributed.checkpoint`` as safetensors, which any number of ranks reads again, one
too; beside them are what is too small to be spread, and a list of the files with their checksums.
"""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from agentrl.errors import RunError, cannot_write, one_line, shortened
from agentrl.learner.folder import read_state, write_state
from agentrl.learner.ranks import Ranks

__all__ = ["are_whole", "read_parts", "read_tensors", "write_parts"]

_SMALL = "state.pt"
_LIST = "parts.json"
_CHUNK = 1 << 24


def write_parts(small: Mapping[str, Any], tensors: Mapping[str, Tensor], parts: Path, ranks: Ranks) -> None:
    """Write ``tensors``, of which each rank has its share, and ``small``, that of rank 0, into the folder ``parts``.

    All ranks call it, and all can write to the folder. Raises ``RunError``, on every rank, where a file
    cannot be written.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save  # type: ignore[attr-defined]
    from torch.distributed.checkpoint.api import CheckpointException

    failure: RunError | None = None
    try:
        parts.mkdir(parents=True, exist_ok=True)
        if ranks.rank == 0:
            for old in parts.glob("*.safetensors"):
                old.unlink()
            write_state(small, parts / _SMALL)
    except OSError as error:
        failure = cannot_write(parts, error)
    except RunError as error:
        failure = error
    ranks.agree(failure)
    try:
        if tensors:
            save(dict(tensors), storage_writer=HuggingFaceStorageWriter(str(parts), save_distributed=True))
    except CheckpointException as error:
        raise _of_ranks(parts, error) from error
    mine = sorted(parts.glob(f"shard-{ranks.rank + 1:05d}-*.safetensors"))
    listed = {file.name: _sum(file) for each in [[*mine, parts / _SMALL]] for file in each}
    together = {name: held for of_rank in ranks.gather(listed) for name, held in of_rank.items()}

    def write_list() -> None:
        try:
            (parts / _LIST).write_text(json.dumps({"ranks": ranks.size, "files": together}) + "\n", encoding="utf-8")
        except OSError as error:
            raise cannot_write(parts / _LIST, error) from error

    ranks.first(write_list)


def read_parts(parts: Path, ranks: Ranks) -> dict[str, Any]:
    """Return the ``small`` of ``write_parts``; all ranks call it, and each looks at a share of the parts.

    Raises ``RunError``, on every rank, where a part is missing or damaged, naming it.
    """
    damaged = _damaged(parts, ranks.rank, ranks.size)
    failure: RunError | None = None
    for name, reason in damaged[:1]:
        failure = RunError(
            f"{parts / name} {reason}",
            fix=f"restore it from a copy, or delete {parts.parent} to go on from the checkpoint before it",
        )
    ranks.agree(failure)
    return read_state(parts / _SMALL)


def read_tensors(tensors: Mapping[str, Tensor], parts: Path, ranks: Ranks) -> None:
    """Read into ``tensors``, whole ones or those of which each rank has its share, what ``write_parts`` wrote.

    All ranks call it. Raises ``RunError``, on every rank, where a file does not have what is asked for.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load  # type: ignore[attr-defined]
    from torch.distributed.checkpoint.api import CheckpointException

    reader = HuggingFaceStorageReader(str(parts))
    try:
        with warnings.catch_warnings():  # That a single process loads is what is meant.
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(dict(tensors), storage_reader=reader, no_dist=not ranks.together)
    except (CheckpointException, SafetensorError, RuntimeError, KeyError) as error:
        raise RunError(
            f"the learner's state in {parts} is not that of this model: {shortened(one_line(error))}",
            fix="resume with the model and the training.lora that the run was started with",
        ) from error


def are_whole(parts: Path) -> bool:
    """Whether every part of the state in the folder ``parts`` is there and has its checksum.

    Raises ``OSError`` where a file cannot be read, and what JSON raises for a list that is damaged.
    """
    return not list(_damaged(parts))


def _damaged(parts: Path, rank: int = 0, size: int = 1) -> list[tuple[str, str]]:
    """The parts that are not as they were written, each with what is wrong; of ``size`` shares that of ``rank``."""
    try:
        listed = list(json.loads((parts / _LIST).read_text(encoding="utf-8"))["files"].items())
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [(_LIST, "is missing" if isinstance(error, FileNotFoundError) else "is damaged")]
    found = []
    for name, known in listed[rank::size]:
        if not (parts / name).is_file():
            found.append((name, "is missing"))
        elif _sum(parts / name) != known:
            found.append((name, "is damaged: it is not as it was written"))
    return found


def _sum(file: Path) -> list[int]:
    """Size and CRC-32."""
    size = checksum = 0
    with file.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return [size, checksum]


def _of_ranks(parts: Path, error: Any) -> RunError:
    """The error of the first rank that could not write its part."""
    rank, (cause, _) = next(iter(error.failures.items()))
    if isinstance(cause, OSError):
        return cannot_write(parts, cause)
    return RunError(f"cannot write {parts}: rank {rank} of the learner failed: {shortened(one_line(cause))}")
