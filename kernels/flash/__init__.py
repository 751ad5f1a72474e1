"""The flash backend: Triton kernels for GPUs; triton is imported only where they run."""
