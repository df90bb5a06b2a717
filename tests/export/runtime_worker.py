"""Runs ONNX files in whatever onnxruntime the interpreter has: started by test_runtimes.py.

    python runtime_worker.py FOLDER

FOLDER holds *.onnx and NAME.npz for each, or feeds.npz for all; the first output of each goes to
NAME.npy and, where the second argument is ``kernels``, that of a session with hwprune's kernels to
NAME.kernels.npy.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime

folder = Path(sys.argv[1])
providers = ["CPUExecutionProvider"]
for path in sorted(folder.glob("*.onnx")):
    own = path.with_suffix(".npz")
    feeds = dict(np.load(own if own.exists() else folder / "feeds.npz"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    plain = onnxruntime.InferenceSession(str(path), options, providers=providers)
    np.save(path.with_suffix(".npy"), plain.run(None, feeds)[0])
    if "kernels" in sys.argv[2:]:
        import hwprune

        session = hwprune.session(path)
        assert session.hwprune.registered or path.stem == "dense", session.hwprune.reason
        np.save(path.with_suffix(".kernels.npy"), session.run(None, feeds)[0])
print(onnxruntime.__version__)
