"""The papers: one reverse-diffusion loop, what each sampler adds to it, noise models and read-out."""
