"""What each sampler adds to the reverse pass (`udse_fast.sampling.diffusion.Likelihood`)."""
