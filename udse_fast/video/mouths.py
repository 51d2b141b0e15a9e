"""Mouth crops of a video: 88 x 88 grey, 25 a second, in time with the sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from udse_fast.errors import UdseError
from udse_fast.networks.visual_encoder import CROP, VIDEO_RATE
from udse_fast.video.pictures import Pictures, open_pictures

WIDE_CROP = 96
"""Height and width of mouth crops as AV-HuBERT's preparation cuts them: their middle is what the encoders see."""
Crops = NDArray[np.uint8]


def read_mouth_crops(path: str | Path) -> Crops:
    """The mouth in a video, (Tv, 88, 88) uint8 at 25 frames a second from the start of its sound on.

    A video of 88 x 88 pixels is taken as it is, the middle of one of 96 x 96, too: they are crops already. In others
    the face is looked for.

    Raises:
        UdseError: no pictures, no face or more than one.
    """
    with open_pictures(path) as pictures:
        if (pictures.height, pictures.width) in ((CROP, CROP), (WIDE_CROP, WIDE_CROP)):
            crops = list(map(_middle, _grey_pictures(pictures)))
        else:
            raise UdseError(f"{path}: expected mouth crops of {CROP} x {CROP} pixels")
    if not crops:
        raise UdseError(f"{path}: expected a video, got one without a picture")
    return np.stack(crops)


def _grey_pictures(pictures: Pictures) -> Any:
    return (frame.to_ndarray(format="gray") for frame in pictures.at_rate(VIDEO_RATE))


def _middle(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The 88 x 88 pixels in the middle."""
    top, left = ((size - CROP) // 2 for size in grey.shape)
    return grey[top : top + CROP, left : left + CROP]
