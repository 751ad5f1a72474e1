"""The flash backend: Triton kernels for GPUs. Imported only where they run, as triton is optional."""
