"""A convolution of a U-Net and what stands around it: norm and SiLU before, bias and another map or its 1x1 convolution
added, the statistics that the next norm needs."""

from udse_fast.kernels.convolution.choice import convolution, switch
from udse_fast.kernels.convolution.reference import Convolution

__all__ = ["Convolution", "convolution", "switch"]
