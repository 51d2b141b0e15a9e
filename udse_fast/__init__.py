"""Fast and streaming unsupervised diffusion-based speech enhancement."""
