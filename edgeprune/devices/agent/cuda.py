"""The few calls of the CUDA runtime that the agent needs, through ctypes: it comes with JetPack, pycuda does not."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
from typing import Any, Callable

from .wire import Failure

LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so.10.2", "libcudart.so")
TO_DEVICE, TO_HOST = 1, 2  # cudaMemcpyKind
MAJOR, MINOR = 75, 76  # cudaDevAttrComputeCapability...
RELAXED = 2  # cudaStreamCaptureModeRelaxed: TensorRT may allocate meanwhile


class Cuda:
    """One stream on device 0."""

    def __init__(self) -> None:
        self._runtime = _open()
        self.stream = ctypes.c_void_p()
        self._call("cudaStreamCreate", ctypes.byref(self.stream))

    def capability(self) -> str:
        """Compute capability, such as "8.7"."""
        found = []
        for attribute in (MAJOR, MINOR):
            value = ctypes.c_int()
            self._call("cudaDeviceGetAttribute", ctypes.byref(value), attribute, 0)
            found.append(str(value.value))
        return ".".join(found)

    def allocate(self, size: int) -> int:
        """Device memory; Failure("out-of-memory") when there is none."""
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(size))
        return int(pointer.value or 0)

    def free(self, pointer: int) -> None:
        """Give memory back."""
        self._call("cudaFree", ctypes.c_void_p(pointer))

    def upload(self, pointer: int, array: Any) -> None:
        """Copy a contiguous array to the device."""
        self._copy(pointer, array.ctypes.data, array.nbytes, TO_DEVICE)

    def download(self, array: Any, pointer: int) -> None:
        """Copy from the device into a contiguous array."""
        self._copy(array.ctypes.data, pointer, array.nbytes, TO_HOST)

    def wait(self) -> None:
        """Until all that was asked of the stream is done."""
        self._call("cudaStreamSynchronize", self.stream)

    def graph(self, work: Callable[[], Any]) -> Callable[[], Any] | None:
        """Record what `work` asks of the stream; a call that repeats it, or None where it cannot be recorded."""
        recorded, executable = ctypes.c_void_p(), ctypes.c_void_p()
        try:
            self._call("cudaStreamBeginCapture", self.stream, RELAXED)
            try:
                work()
            finally:
                self._call("cudaStreamEndCapture", self.stream, ctypes.byref(recorded))
            # CUDA 11 takes an error node, a log and its size here, CUDA 12 one word of flags: zeros are both.
            nothing = (ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_size_t(0))
            self._call("cudaGraphInstantiate", ctypes.byref(executable), recorded, *nothing)
        except Failure:
            with contextlib.suppress(Failure):
                self._call("cudaGetLastError")
            return None
        launch, synchronise, stream = self._runtime.cudaGraphLaunch, self._runtime.cudaStreamSynchronize, self.stream

        def repeat() -> None:
            if launch(executable, stream) or synchronise(stream):
                raise Failure("runtime", "a CUDA graph could not be launched")

        return repeat

    def _copy(self, target: int, source: int, size: int, kind: int) -> None:
        pointers = (ctypes.c_void_p(target), ctypes.c_void_p(source))
        self._call("cudaMemcpyAsync", *pointers, ctypes.c_size_t(size), kind, self.stream)

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._runtime, name)(*arguments)
        if code == 2:
            raise Failure("out-of-memory", "the GPU has no memory left (%s)" % name, 137)
        if code:
            text = self._runtime.cudaGetErrorString
            text.restype = ctypes.c_char_p
            raise Failure("runtime", "%s: %s" % (name, (text(code) or b"?").decode()))


def _open() -> Any:
    for name in (*LIBRARIES, ctypes.util.find_library("cudart")):
        if name:
            with contextlib.suppress(OSError):
                return ctypes.CDLL(name)
    raise Failure("missing-runtime", "the CUDA runtime (libcudart) is not installed on the device")
