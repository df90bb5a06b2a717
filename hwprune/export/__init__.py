"""torch -> slim ONNX -> sparse ONNX, and reading it back.

Import the files directly: the ones that read artifacts work where torch is not installed.
"""
