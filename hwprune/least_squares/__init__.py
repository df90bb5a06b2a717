"""Without training: what is left of every layer is fitted to the dense network by least squares."""
