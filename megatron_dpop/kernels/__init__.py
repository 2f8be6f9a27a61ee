"""Triton kernels for GPUs; beside each stands what it computes in plain torch. On CPUs none of them runs."""
