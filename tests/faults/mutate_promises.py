"""Take out the code that keeps a promise of docs/reliability.md, and see its test fail.

    python tests/faults/mutate_promises.py [WORD ...]

Works in a copy of the checkout, a promise after the other; WORD picks those that hold it. A test
that then takes more than two minutes, or 8 GiB, has failed too. The exit code is 1 where a test
passes without the code.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SECONDS, MEMORY = 120, (8 * 1024**3, 8 * 1024**3)


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
             "lock(handle, wait=False)", "pass",
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
             "file = _FOLDER / FILE_NAME",
             "file = next(p / FILE_NAME for p in (Path(), _FOLDER) if (p / FILE_NAME).exists())",
             "tests/kernels/test_sessions.py::test_nothing_is_loaded_from_the_working_folder"),
    Mutation("SIGHUP ends a run as SIGTERM does", "cli/main.py",
             'getattr(signal, "SIGHUP", signal.SIGTERM)', "signal.SIGTERM",
             "tests/cli/test_edge.py::test_what_ends_a_run_lets_it_clean_up"),
    Mutation("hashes agree with the constraints", "constraints.txt",
             "numpy==2.4.6", "numpy==2.4.5",
             "tests/test_supply_chain.py::test_the_hashes_are_those_of_the_constraints"),
    Mutation("a file is there whole or not at all", "hwprune/files.py",
             "partial = partial_of(path)", "partial = path",
             "tests/test_files.py::test_a_file_is_there_whole_or_not_at_all"),
    Mutation("a file that cannot be emptied is not held", "hwprune/files.py",
             "            stream.close()\n            raise", "            raise",
             "tests/test_files.py::test_a_file_that_cannot_be_emptied_is_not_held"),
    Mutation("a report of another file is found", "hwprune/verify/sidecar_report.py",
             "return self.sha256 == artifact.sha256", "return True",
             "tests/verify/test_check.py::test_a_file_that_is_not_the_reported_one"),
    Mutation("a disk that fails anywhere is said", "hwprune/steps/output.py",
             "error.errno not in _OF_DISKS and path", "path",
             "tests/steps/test_output.py::test_a_disk_that_fails_anywhere_in_a_run_is_said"),
    Mutation("staging goes although the disk fails once", "hwprune/steps/output.py",
             "for _ in range(2):", "for _ in range(1):",
             "tests/steps/test_output.py::test_staging_is_taken_away_where_the_disk_fails_once"),
    Mutation("a checkpoint that cannot be written", "hwprune/training/checkpoints.py",
             "except OSError as error:\n                with",
             "except KeyError as error:\n                with",
             "tests/training/test_resume.py::test_a_full_disk_does_not_end_the_run"),
    Mutation("a disk that can only be read", "hwprune/steps/output.py",
             'os.open(path / MARKER, os.O_RDWR | os.O_CREAT, 0o644)',
             'os.open(path / MARKER, os.O_RDONLY)',
             "tests/e2e/test_surroundings.py::test_a_disk_that_can_only_be_read"),
    Mutation("what memory the libraries need", "cli/memory.py",
             "if limit is not None and limit < least:", "if False:",
             "tests/cli/test_memory.py::"
             "test_what_the_libraries_do_not_fit_into_is_refused_at_once"),
    Mutation("memory that runs out is said", "cli/memory.py",
             "if isinstance(cause, MemoryError):\n        return True", "",
             "tests/cli/test_memory.py::test_what_came_of_too_little_memory_is_said_so"),
    Mutation("nothing lies in shared memory", "hwprune/steps/output.py",
             "tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=path)",
             'tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir="/dev/shm")',
             "tests/e2e/test_surroundings.py::test_a_run_needs_no_shared_memory"),
    Mutation("a folder that was replaced is left alone", "hwprune/steps/output.py",
             "tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=path)",
             "tempfile.mkdtemp(prefix=_STAGING_PREFIX, dir=path.parent)",
             "tests/e2e/test_surroundings.py::test_a_folder_that_somebody_puts_in_place_of_it"),
    Mutation("files of another user", "cli/main.py",
             "errno.EACCES, ", "",
             "tests/e2e/test_surroundings.py::test_what_belongs_to_another_user"),
    Mutation("no clock of the day", "hwprune/sweep/run.py",
             "start = time.monotonic()", "start = time.time()",
             "tests/test_reliability.py::test_no_code_reads_the_time_of_day"),
    Mutation("somebody else's files", "hwprune/steps/output.py",
             "not (path / MARKER).exists() and any(path.iterdir())", "False",
             "tests/steps/test_output.py::test_foreign_files_are_refused_and_left_alone"),
    Mutation("what is rejected is set apart", "hwprune/compiler.py",
             'if name != "model.onnx" and (place / "model.onnx").exists():', "if False:",
             "tests/e2e/test_outcomes.py"),
    Mutation("a signal ends native code", "cli/main.py",
             "end_now(given_up)", "pass",
             "tests/cli/test_long_loads.py::test_a_signal_ends_a_load"),
    Mutation("a load has a deadline", "hwprune/verify/deadline.py",
             "timer.start()", "pass",
             "tests/cli/test_long_loads.py::test_a_load_that_takes_longer_is_given_up"),
    Mutation("a loop is given up", "hwprune/frontend/onnx_file.py",
             "options.terminate = time.process_time() - start > _LOOP_SECONDS", "pass",
             "tests/frontend/test_onnx_files.py::test_a_loop_that_does_not_end_is_given_up"),
    Mutation("a sweep's log that cannot be written", "hwprune/sweep/run.py",
             "    except OSError as error:\n        raise OutputError(f\"{folder}.log",
             "    except KeyError as error:\n        raise OutputError(f\"{folder}.log",
             "tests/sweep/test_run.py::test_a_log_that_cannot_be_written_is_said"),
    Mutation("seeds make runs equal", "hwprune/training/finetune.py",
             "torch.Generator().manual_seed(config.seed)\n",
             "torch.Generator()\n        self.generator.seed()\n",
             "tests/training/test_resume.py"),
    Mutation("integer networks round as onnxruntime", "hwprune/firmware/runtime/hwp_layers.c",
             "(value + 31 + (quotient & 1)) >> 6", "value >> 6", "tests/firmware/test_runtime.py"),
    Mutation("tensors that take no room", "hwprune/frontend/state.py",
             "if repeated > _MOST_REPEATED:", "if False:",
             "tests/frontend/test_checkpoints.py::test_a_small_file_of_endless_tensors_is_refused"),
    Mutation("npz files that would fill the memory", "hwprune/frontend/sources/arrays.py",
             "if unpacked > _MOST_PACKED * path.stat().st_size + 2**30:", "if False:",
             "tests/frontend/test_data_files.py::"
             "test_archives_that_would_fill_the_memory_are_not_unpacked"),
    Mutation("nodes of a MODEL", "hwprune/frontend/onnx_file.py",
             "if inlined_nodes(proto) > MOST_NODES:", "if False:",
             "tests/frontend/test_onnx_files.py::"
             "test_functions_that_double_at_each_step_are_not_inlined"),
    Mutation("long texts of an artifact", "hwprune/onnx_size.py",
             "> MOST_TEXT:", "< 0:",
             "tests/test_onnx_size.py::test_what_is_over_a_bound_is_refused_before_work"),
    Mutation("tensors that declare too much", "hwprune/onnx_size.py",
             "> MOST_ELEMENTS:", "< 0:",
             "tests/test_onnx_size.py::test_what_is_over_a_bound_is_refused_before_work"),
    Mutation("a file over its bound is not read", "hwprune/files.py",
             "if os.fstat(stream.fileno()).st_size > most:", "if False:",
             "tests/test_files.py::test_what_has_no_end_or_is_none_is_not_read"),
    Mutation("a safetensors header's bound", "hwprune/frontend/archive.py",
             "if length > _SAFETENSORS_HEADER_LIMIT:", "if False:",
             "tests/frontend/test_checkpoints.py::"
             "test_headers_that_say_they_are_endless_are_not_read"),
    Mutation("a saved state's header's bound", "hwprune/training/statefile.py",
             "if size > _MAX_HEADER:", "if False:",
             "tests/training/test_resume.py::test_a_header_that_says_it_is_endless_is_not_read"),
    Mutation("a shape expression's bound", "hwprune/frontend/exported.py",
             "known and len(nodes) <= _MOST_NODES", "known",
             "tests/frontend/test_hostile.py::test_a_program_whose_text_could_become_code"),
    Mutation("the licence of every pin", "docs/licences.md", "numpy", "nunpy",
             "tests/test_supply_chain.py::test_the_licence_of_every_pin_is_listed"),
    Mutation("what a cut connection leaves", "hwprune/remote/device_runner.py",
             "shutil.rmtree(folder, ignore_errors=True)", "pass",
             "tests/remote/test_ssh.py::test_a_connection_that_is_cut"),
)  # fmt: skip


def passes(folder: Path, test: str) -> bool:
    """Return whether a test passes in a copy."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    try:
        ran = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
             "-m", "slow or not slow", test],
            cwd=folder, env=environment, capture_output=True, text=True, check=False,
            timeout=SECONDS, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, MEMORY),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False
    skipped = ran.returncode == 0 and " passed" not in ran.stdout
    if skipped or "no tests ran" in ran.stdout or ran.returncode in (2, 3, 4, 5):
        raise RuntimeError(f"{test}: {ran.stdout[-600:]}")
    return ran.returncode == 0


def main() -> int:
    """Mutate what was asked for."""
    words, wrong = sys.argv[1:], 0
    for each in MUTATIONS:
        text = (ROOT / each.file).read_text(encoding="utf-8")
        assert each.old in text, f"{each.file} no longer holds {each.old!r}"
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
