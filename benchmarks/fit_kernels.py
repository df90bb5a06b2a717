"""Fit the constants of hwprune/kernels/src/choice.cpp to measured times.

    for net in vgg16 resnet20 mobilenetv1 resnet50; do
      for density in 0.2 0.05 0.01; do build/kernels_micro $net $density 1 1 --fit; done
    done > times.txt
    python benchmarks/fit_kernels.py times.txt

Non-negative least squares of the relative errors: a layer of a microsecond counts as much as one
of a millisecond. Prints nanoseconds per unit of work in the order of CostTerm (plan.h), and how far
the estimates are off.
"""

from __future__ import annotations

import sys

import numpy as np
from scipy.optimize import nnls


def main() -> None:
    """Fit the lines `fit TIME WORK...` of the files named on the command line."""
    rows = []
    for name in sys.argv[1:]:
        with open(name) as lines:
            rows += [line.split()[1:] for line in lines if line.startswith("fit ")]
    table = np.array(rows, dtype=float)
    table = table[table[:, 1:].any(axis=1)]  # depthwise layers are not estimated
    time, work = table[:, 0], table[:, 1:]
    keep = np.ones(len(time), dtype=bool)
    for _ in range(4):  # a run that something else disturbed is not the layout's fault
        constants, _ = nnls(work[keep] / time[keep, None], np.ones(keep.sum()))
        keep = np.abs(np.log(time / (work @ constants))) < 0.5
    error = work @ constants / time
    print(", ".join(f"{value:.3g}" for value in constants))
    quantiles = np.quantile(error, [0.05, 0.25, 0.5, 0.75, 0.95])
    print(
        f"{len(time)} measurements, {keep.sum()} used; estimate / time at 5 25 50 75 95 %:",
        " ".join(f"{value:.2f}" for value in quantiles),
    )


if __name__ == "__main__":
    main()
