"""What only extreme sparsity needs: ways to every output, DyReLU phased out, shared weights."""

import hwprune.training  # noqa: F401 (the two know each other for now: training is loaded first)
