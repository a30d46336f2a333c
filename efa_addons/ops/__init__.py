"""Functions on tensors: the mathematics of EFA. No modules, no hosts."""
