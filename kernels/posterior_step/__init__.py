"""One reverse step of each posterior sampler: the next state and the power of the M-step."""

from udse_fast.kernels.posterior_step import reference
from udse_fast.kernels.step import dispatched_update

__all__ = [
    "ddrm_step",
    "joint_guidance",
    "marginal_guidance",
    "noise_posterior_guidance",
    "posterior_mean",
    "predictor_residual",
    "product_of_gaussians",
    "score_noise_guidance",
    "unexplained_power",
]

marginal_guidance = dispatched_update(reference.marginal_guidance)
product_of_gaussians = dispatched_update(reference.product_of_gaussians)
noise_posterior_guidance = dispatched_update(reference.noise_posterior_guidance)
predictor_residual = dispatched_update(reference.predictor_residual)
score_noise_guidance = dispatched_update(reference.score_noise_guidance)
joint_guidance = dispatched_update(reference.joint_guidance)
unexplained_power = dispatched_update(reference.unexplained_power)
ddrm_step = dispatched_update(reference.ddrm_step)
posterior_mean = dispatched_update(reference.posterior_mean)
