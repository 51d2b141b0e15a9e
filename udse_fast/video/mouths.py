"""Mouth crops of a video: 88 x 88 grey, 25 a second, in time with the sound."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from udse_fast.audio.inputs import opened
from udse_fast.errors import UdseError, first_line
from udse_fast.networks.visual_encoder import CROP, VIDEO_RATE
from udse_fast.video.faces import Grey, NoMouthError, Place, mouth_places
from udse_fast.video.pictures import Pictures

WIDE_CROP = 96
"""Height and width of mouth crops as AV-HuBERT's preparation cuts them: their middle is what the encoders see."""


def read_mouth_crops(path: str | Path) -> NDArray[np.uint8]:
    """The mouth in a video, (Tv, 88, 88) uint8 grey at 25 frames a second from the start of its sound on.

    A video of 88 x 88 pixels is taken as it is, the middle of one of 96 x 96, too: they are crops already. In others
    the face is looked for; where it has left the picture for more than 0.6 s, the crop is black, which stands for no
    video.

    Raises:
        NoMouthError: no pictures, no face, or two that may talk.
        UdseError: a file that cannot be read; a package is missing.
    """
    path = Path(path)
    try:
        with opened(path) as file:
            return mouth_crops(file, str(path))
    except OSError as error:
        raise UdseError(f"{path}: expected a video, got {error.strerror or first_line(error)}") from error


def mouth_crops(file: IO[bytes], name: str) -> NDArray[np.uint8]:
    """`read_mouth_crops` of an open file, which errors call `name`."""
    with _pictures(file, name) as pictures:
        if (pictures.height, pictures.width) in ((CROP, CROP), (WIDE_CROP, WIDE_CROP)):
            crops = [_middle(grey) for grey in pictures.grey(VIDEO_RATE)]
        else:
            places = mouth_places(pictures.grey(VIDEO_RATE))
            pictures.begin_again()
            crops = [_cut(grey, place) for grey, place in zip(pictures.grey(VIDEO_RATE), places, strict=True)]
        if not crops:
            raise NoMouthError("expected pictures, got a track without any")
    return np.stack(crops)


@contextmanager
def _pictures(file: IO[bytes], name: str) -> Iterator[Pictures]:
    import av

    try:
        pictures = Pictures(file)
    except (av.FFmpegError, ValueError) as error:
        raise NoMouthError(f"{name}: expected a video, got a file without pictures") from error
    try:
        yield pictures
    except UdseError as error:
        raise type(error)(f"{name}: {error}") from error
    except (av.FFmpegError, ValueError) as error:
        raise NoMouthError(f"{name}: expected a video, got damaged pictures ({first_line(error)})") from error
    finally:
        pictures.close()


def _middle(grey: Grey) -> Grey:
    """The 88 x 88 pixels in the middle."""
    top, left = ((size - CROP) // 2 for size in grey.shape)
    return grey[top : top + CROP, left : left + CROP]


def _cut(grey: Grey, place: NDArray[np.float64]) -> Grey:
    """The mouth at a place, upright; black where there is none."""
    import cv2

    if np.isnan(place[0]):
        return np.zeros((CROP, CROP), np.uint8)
    x, y, side, tilt = Place(*place)
    finer = max(1, round(side / CROP))  # large faces are cut in full, and averaged
    scale = finer * CROP / side
    cosine, sine = scale * np.cos(tilt), scale * np.sin(tilt)
    middle = (finer * CROP - 1) / 2
    turn = np.array([[cosine, sine, middle - cosine * x - sine * y], [-sine, cosine, middle + sine * x - cosine * y]])
    cut = cv2.warpAffine(
        np.ascontiguousarray(grey), turn, (finer * CROP, finer * CROP), borderMode=cv2.BORDER_REPLICATE
    )
    small = cv2.resize(cut, (CROP, CROP), interpolation=cv2.INTER_AREA) if finer > 1 else cut
    return np.asarray(small, np.uint8)
