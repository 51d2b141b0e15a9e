"""Which implementation of an operation runs, the CUDA library and CUDA graphs."""
