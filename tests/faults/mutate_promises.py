"""Take out the code that keeps a promise of docs/reliability.md, and see its test fail.

    python tests/faults/mutate_promises.py [WORD ...]

Works in a copy of the checkout, a promise after the other; WORD picks those that hold it. A test
that takes more than five minutes then has failed too: it waits for what never comes. The exit code
is 1 where a test passes without the code, or does not pass with it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 300


class Mutation(NamedTuple):
    """What is taken out: ``old`` becomes ``new`` in ``file``, and ``test`` is to fail."""

    promise: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = (
    Mutation("publishing that stops half-way is undone", "hwprune/steps/output.py",
             "undo.callback(_bring_back, retired, destination)", "pass",
             "tests/steps/test_output.py::test_what_stops_half_way_is_undone"),
    Mutation("two runs in one folder", "hwprune/steps/output.py",
             "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass",
             "tests/steps/test_output.py::test_two_writers_at_once_are_refused"),
    Mutation("a sweep tries again what crashed", "hwprune/sweep/run.py",
             "for more in range(retries, -1, -1):", "for more in range(1):",
             "tests/sweep/test_run.py::test_a_crash_is_tried_again_and_told"),
    Mutation("classes of a pickle are stand-ins", "hwprune/frontend/pickled.py",
             "return _OWN.get(full) or self.foreign[full]",
             "return _OWN.get(full) or super().find_class(module, name)",
             "tests/frontend/test_hostile.py::"
             "test_a_state_dict_that_runs_code_is_refused_and_does_not_run"),
    Mutation("guards of a program are not compiled", "hwprune/frontend/exported.py",
             'program["guards_code"] = []', "pass",
             "tests/frontend/test_hostile.py::test_guards_which_are_source_text_are_not_compiled"),
    Mutation("archives that unpack to many times their size", "hwprune/frontend/archive.py",
             "if unpacked > 16 * packed + 16 * 1024**2:", "if False:",
             "tests/frontend/test_hostile.py::"
             "test_archives_that_unpack_to_many_times_their_size"),
    Mutation("functions that double are counted", "hwprune/export/artifact.py",
             "if nodes > MOST_NODES:", "if False:",
             "tests/cli/test_long_loads.py::test_functions_that_double_are_refused"),
    Mutation("text is escaped on a page", "hwprune/report/html.py",
             "autoescape=True,", "autoescape=False,",
             "tests/report/test_render.py::test_text_is_escaped_in_the_page"),
    # Weights that are none are refused twice, by the reader and by the ranking; scores once.
    Mutation("scores that are no numbers are refused by name", "hwprune/sparsity/topk_masks.py",
             "if flat.size and np.isnan(np.max(flat)):", "if False:",
             "tests/sparsity/test_topk_masks.py::test_a_nan_is_an_error_that_names_the_tensor"),
    Mutation("the kernels' library comes from the package", "hwprune/kernels/library.py",
             "file = Path(__file__).resolve().parent / FILE_NAME",
             "file = next(p / FILE_NAME for p in (Path(), Path(__file__).resolve().parent)"
             " if (p / FILE_NAME).exists())",
             "tests/kernels/test_sessions.py::test_nothing_is_loaded_from_the_working_folder"),
    Mutation("SIGHUP ends a run as SIGTERM does", "cli/main.py",
             'getattr(signal, "SIGHUP", signal.SIGTERM)', "signal.SIGTERM",
             "tests/cli/test_edge.py::test_what_ends_a_run_lets_it_clean_up"),
    Mutation("hashes agree with the constraints", "constraints.txt",
             "numpy==2.4.6", "numpy==2.4.5",
             "tests/test_supply_chain.py::test_the_hashes_are_those_of_the_constraints"),
)  # fmt: skip


def passes(folder: Path, test: str) -> bool:
    """Return whether a test passes in a copy."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
            timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    if "no tests ran" in ran.stdout or ran.returncode in (2, 3, 4, 5):
        raise RuntimeError(f"{test}: {ran.stdout[-600:]}")
    return ran.returncode == 0


def main() -> int:
    """Mutate what was asked for."""
    words, wrong = sys.argv[1:], 0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "copy"
        left_out = shutil.ignore_patterns(
            "build*", ".git", ".venv*", "demo-out", "dist", "__pycache__"
        )
        shutil.copytree(ROOT, folder, symlinks=True, ignore=left_out)
        for each in MUTATIONS:
            if words and not any(word in each.promise for word in words):
                continue
            path = folder / each.file
            text = path.read_text(encoding="utf-8")
            assert each.old in text, f"{each.file} no longer holds {each.old!r}"
            path.write_text(text.replace(each.old, each.new), encoding="utf-8")
            caught = not passes(folder, each.test)
            path.write_text(text, encoding="utf-8")
            wrong += not caught
            print(
                f"{'caught' if caught else 'NOT CAUGHT'}: {each.promise}: {each.test}", flush=True
            )
    print(f"{wrong} promises without a test that fails")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
