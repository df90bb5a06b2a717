"""The library of sparse kernels for onnxruntime: finding it, and making sessions that use it."""

from hwprune.kernels.library import path, resident_bytes, status
from hwprune.kernels.session import Speed, register_kernels, session

__all__ = ["Speed", "path", "register_kernels", "resident_bytes", "session", "status"]
