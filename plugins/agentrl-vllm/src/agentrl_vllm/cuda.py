"""A buffer in a GPU's memory that two processes see, by the CUDA driver's own calls.

torch's way of sharing a tensor pickles it, and what is in the pickle changes from one version of torch to the next:
learner and server have each their own. The driver's handle is 64 bytes, the same for both. The buffer is the driver's
too, since handles are of whole allocations, and torch's allocator may have none that can be shared.

This module imports nothing of agentrl: a copy of it runs in the server.
"""

from __future__ import annotations

import ctypes
from typing import Any, Self

import torch

__all__ = ["CudaBuffer", "CudaError", "gpu_of"]

_HANDLE = 64
_LAZY_PEER_ACCESS = 1


class CudaError(Exception):
    """A call to the CUDA driver failed."""


class _Handle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_char * _HANDLE),)


class _Driver:
    """The calls of ``libcuda`` that are used here; their names are the driver's."""

    def __init__(self) -> None:
        try:
            self._library: Any = ctypes.CDLL("libcuda.so.1")
        except OSError as error:
            raise CudaError(f"the CUDA driver cannot be loaded: {error}") from error

    def call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            raise CudaError(f"{name} failed: {(text.value or b'').decode() or status}")


class CudaBuffer:
    """A ``stream.Buffer`` on the current CUDA device."""

    def __init__(self, address: int, size: int, release: str, driver: _Driver) -> None:
        self._address = address
        self._release = release
        self._driver = driver
        self.bytes = torch.as_tensor(_Memory(address, size), device="cuda")

    @classmethod
    def made(cls, size: int) -> Self:
        """Returns a new buffer of ``size`` bytes. Raises ``CudaError`` where there is no room."""
        torch.cuda.synchronize()  # The device's context is this thread's from here on.
        driver, address = _Driver(), ctypes.c_uint64()
        driver.call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return cls(int(address.value), size, "cuMemFree_v2", driver)

    @classmethod
    def opened(cls, handle: str, size: int) -> Self:
        """Returns the buffer of another process that has this ``handle``. Raises ``CudaError``."""
        torch.cuda.synchronize()
        driver, address = _Driver(), ctypes.c_uint64()
        known = _Handle.from_buffer_copy(bytes.fromhex(handle))
        driver.call("cuIpcOpenMemHandle_v2", ctypes.byref(address), known, ctypes.c_uint(_LAZY_PEER_ACCESS))
        return cls(int(address.value), size, "cuIpcCloseMemHandle", driver)

    def handle(self) -> str:
        known = _Handle()
        self._driver.call("cuIpcGetMemHandle", ctypes.byref(known), ctypes.c_uint64(self._address))
        return bytes(known).hex()

    def close(self) -> None:
        address, self._address = self._address, 0
        if address:
            self.bytes = torch.empty(0, dtype=torch.uint8)
            torch.cuda.synchronize()
            self._driver.call(self._release, ctypes.c_uint64(address))

    def __del__(self) -> None:
        self.close()


class _Memory:
    """Memory of a GPU as torch takes it without a copy."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 3,
        }


def gpu_of(device: torch.device) -> str:
    """Returns the name that the GPU ``device`` has in every process; empty for another kind of device."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""
