"""One reverse step of each posterior sampler: the next state and the power of the M-step."""

from udse_fast.backends.dispatch import dispatched
from udse_fast.kernels.posterior_step import reference
from udse_fast.kernels.posterior_step.reference import NoiseVariance

__all__ = [
    "NoiseVariance",
    "ddrm_step",
    "joint_guidance",
    "marginal_guidance",
    "noise_posterior_guidance",
    "predictor_residual",
    "product_of_gaussians",
    "score_noise_guidance",
    "unexplained_power",
]

marginal_guidance = dispatched(reference.marginal_guidance)
product_of_gaussians = dispatched(reference.product_of_gaussians)
noise_posterior_guidance = dispatched(reference.noise_posterior_guidance)
predictor_residual = dispatched(reference.predictor_residual)
score_noise_guidance = dispatched(reference.score_noise_guidance)
joint_guidance = dispatched(reference.joint_guidance)
unexplained_power = dispatched(reference.unexplained_power)
ddrm_step = dispatched(reference.ddrm_step)
