"""Tensors from another process lie in memory that both have, and nothing is left of it."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agentrl.errors import BackendError
from agentrl.inference import shared_memory
from agentrl.inference.shared_memory import MemoryAddress, Place, SharedMemory, write

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8]
CHILD = """
import json, sys, torch
from dataclasses import asdict
from agentrl.inference.shared_memory import MemoryAddress, write
torch.manual_seed(0)
named = [("one", torch.randn(300, 7)), ("two", torch.randn(5).bfloat16()), ("turned", torch.randn(4, 6).t())]
print(json.dumps([asdict(place) for place in write(named, MemoryAddress(*sys.argv[1:]))]))
"""


def test_what_another_process_has_written_is_read_where_it_lies() -> None:
    with SharedMemory() as memory:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *memory.address], capture_output=True, text=True, check=True
        )
        places = [Place(**{**each, "shape": tuple(each["shape"])}) for each in json.loads(done.stdout)]
        found = dict(memory.tensors(places))
        again = dict(memory.tensors(places))
    torch.manual_seed(0)
    expected = {"one": torch.randn(300, 7), "two": torch.randn(5).bfloat16(), "turned": torch.randn(4, 6).t()}
    assert found.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    again["one"][0, 0] = 5.0
    assert found["one"][0, 0] == 5.0, "nothing is copied"


def test_where_there_is_no_memory_without_a_name_it_is_a_temporary_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.setattr(shared_memory, "_IS_LINUX", False)
    with SharedMemory() as memory:
        places = write([("one", torch.arange(6.0))], memory.address)
        assert [tensor.tolist() for _, tensor in memory.tensors(places)] == [[0, 1, 2, 3, 4, 5]]
        assert Path(memory.address.path).exists()
    assert not Path(memory.address.path).exists()


@given(st.lists(st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 5), max_size=3)), max_size=6))
def test_any_tensors_come_as_they_were(kinds: list[tuple[torch.dtype, list[int]]]) -> None:
    named = [(f"tensor {index}", torch.randint(0, 100, shape).to(dtype)) for index, (dtype, shape) in enumerate(kinds)]
    with SharedMemory() as memory:
        first = write(named[:2], memory.address)
        rest = write(named[2:], memory.address, first[-1].end if first else 0)
        found = list(memory.tensors([*first, *rest]))
    assert [name for name, _ in found] == [name for name, _ in named]
    for (_, tensor), (_, original) in zip(found, named, strict=True):
        assert tensor.dtype == original.dtype
        assert torch.equal(tensor, original)


def test_nothing_is_written_into_another_file(tmp_path: Path) -> None:
    other = tmp_path / "precious"
    other.write_bytes(b"precious")
    with pytest.raises(BackendError, match="is another file"):
        write([("one", torch.ones(3))], MemoryAddress(str(other), "agentrl-0"))
    assert other.read_bytes() == b"precious"


def test_memory_that_is_gone_is_an_error_that_says_so() -> None:
    memory = SharedMemory()
    memory.close()
    memory.close()
    with pytest.raises(BackendError, match="No such file"):
        write([("one", torch.ones(3))], memory.address)


@pytest.mark.skipif(sys.platform != "linux", reason="it lists the open files of a process")
def test_the_memory_is_given_back_with_its_tensors() -> None:
    def mapped() -> int:
        return Path("/proc/self/maps").read_text().count("memfd:agentrl-")

    gc.collect()
    files, before = len(os.listdir("/proc/self/fd")), mapped()
    with SharedMemory() as memory:
        (_, tensor), *_ = memory.tensors(write([("one", torch.ones(3))], memory.address))
    assert mapped() == before + 1
    assert tensor.sum() == 3
    del tensor, _
    gc.collect()
    assert mapped() == before
    assert len(os.listdir("/proc/self/fd")) == files
