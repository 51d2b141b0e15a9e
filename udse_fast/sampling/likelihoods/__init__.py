"""What each sampler adds to the reverse pass, a file each: `base.Likelihood` says what that is."""
