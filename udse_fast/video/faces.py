"""Where the mouth is in each picture of a video: faces and eyes by OpenCV's cascades, the rest by proportions.

A talking face is found in every third picture, followed over short gaps, and its place averaged over half a second, as
AV-HuBERT's preparation averages landmarks. Eyes give scale and tilt; where they are not found, the face's box does.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from udse_fast.errors import UdseError

STRIDE = 3
"""Of the pictures, each of these is searched."""
SEARCHED_SIDE = 400
"""Pixels of the longer side of what is searched: faces of an eighth of it are found."""
LONGEST_GAP = 15
"""Pictures in which a face may be missed (0.6 s); in longer ones there is none."""
AVERAGED = 12
"""Pictures, of a place."""
ALIKE = 0.6
"""A second face of so much of the width of the first is one that may talk, too."""
OFTEN = 0.1
"""Share of the searched pictures with two faces from which on it is not known who talks."""
BETWEEN_EYES = 0.43
"""Of a face's box: distance of the eyes, by its width."""
EYES_AT = 0.38
"""Of a face's box: height of the eyes, from the top."""
MOUTH_BELOW = 0.97
"""Of the mouth below the middle of the eyes, by their distance."""
CROP_SIDE = 1.47
"""Of a mouth crop, by the distance of the eyes."""

Grey = NDArray[np.uint8]


class Place(NamedTuple):
    """Of a mouth in a picture."""

    x: float
    y: float
    side: float
    """Of the crop, pixels."""
    tilt: float
    """Of the eyes, radians, clockwise."""


class NoMouthError(UdseError):
    """A video in which no mouth can be seen, or it is not known whose."""


class FaceFinder:
    """Finds faces in grey pictures.

    Raises:
        UdseError: OpenCV is not there.
    """

    def __init__(self) -> None:
        self._faces = _cascade("frontalface_default")
        self._eyes = _cascade("eye")

    def __call__(self, grey: Grey) -> list[Place]:
        """The mouths of all faces of a picture (height, width), the widest first."""
        import cv2

        grey = np.ascontiguousarray(grey)
        scale = min(1.0, SEARCHED_SIDE / max(grey.shape))
        small = cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else grey
        least = max(24, max(small.shape) // 8)
        boxes = self._faces.detectMultiScale(small, 1.1, 6, minSize=(least, least))
        boxes = sorted((tuple(map(int, box)) for box in boxes), key=lambda box: -box[2])
        return [self._mouth(small, box, 1 / scale) for box in boxes]

    def _mouth(self, grey: Grey, box: tuple[int, ...], scale: float) -> Place:
        left, top, width, _ = box
        middle, between, tilt = np.array([left + width / 2, top + EYES_AT * width]), BETWEEN_EYES * width, 0.0
        upper = grey[top : top + round(0.6 * width), left : left + width]
        eyes = [(x + w / 2, y + h / 2) for x, y, w, h in self._eyes.detectMultiScale(upper, 1.1, 4)]
        if len(eyes) == 2:
            (x0, y0), (x1, y1) = sorted(eyes)
            distance, angle = float(np.hypot(x1 - x0, y1 - y0)), float(np.arctan2(y1 - y0, x1 - x0))
            if 0.3 * width < distance < 0.6 * width and abs(angle) < 0.6:
                middle, between, tilt = np.array([left + (x0 + x1) / 2, top + (y0 + y1) / 2]), distance, angle
        below = MOUTH_BELOW * between
        x, y = middle + below * np.array([-np.sin(tilt), np.cos(tilt)])
        return Place(scale * x, scale * y, scale * CROP_SIDE * between, tilt)


def _cascade(name: str) -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UdseError(
            f"finding the mouth in a video needs the package OpenCV ({error}): pip install udse-fast[video]"
        ) from None
    return cv2.CascadeClassifier(str(Path(cv2.__file__).parent / "data" / f"haarcascade_{name}.xml"))


def mouth_places(pictures: Iterable[Grey]) -> NDArray[np.float64]:
    """The mouth in each picture, (Tv, 4) as `Place`, NaN where there is no face.

    Raises:
        NoMouthError: no face at all, or two that may both be the one who talks.
    """
    find, found, several = FaceFinder(), list[list[float]](), 0
    for number, grey in enumerate(pictures):
        places = find(grey) if number % STRIDE == 0 else []
        several += len(places) > 1 and places[1].side > ALIKE * places[0].side
        found.append(list(_nearest(places, found)) if places else [np.nan] * 4)
    track = np.array(found).reshape(-1, 4)
    searched = -(-len(track) // STRIDE)
    seen = np.flatnonzero(~np.isnan(track[:, 0]))
    if not len(seen):
        raise NoMouthError("expected a face that looks at the camera, found none")
    if several > OFTEN * searched:
        raise NoMouthError(f"expected one face, found more in {several} of {searched} pictures; crop it to the talker")
    return _averaged(_bridged(track, seen))


def _nearest(places: list[Place], before: list[list[float]]) -> Place:
    """The face that is followed: the one nearest to where it was last, at first the widest."""
    last = next((place for place in reversed(before[-LONGEST_GAP:]) if not np.isnan(place[0])), None)
    if last is None:
        return places[0]
    return min(places, key=lambda place: np.hypot(place.x - last[0], place.y - last[1]))


def _bridged(track: NDArray[np.float64], seen: NDArray[np.intp]) -> NDArray[np.float64]:
    """With short gaps filled by interpolation, and held at the ends."""
    numbers = np.arange(len(track))
    filled = np.stack([np.interp(numbers, seen, column[seen]) for column in track.T], axis=1)
    after = np.searchsorted(seen, numbers)
    following, preceding = seen[np.minimum(after, len(seen) - 1)], seen[np.maximum(after - 1, 0)]
    inside = (preceding <= numbers) & (numbers <= following)
    gap = np.where(inside, following - preceding, 2 * np.minimum(abs(following - numbers), abs(numbers - preceding)))
    is_seen = np.isin(numbers, seen)
    filled[~is_seen & (gap > LONGEST_GAP)] = np.nan
    return filled


def _averaged(track: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each place as the mean of as many before as after it, where the face is there without a gap."""
    there = ~np.isnan(track[:, 0])
    mean = np.full_like(track, np.nan)
    edges = np.flatnonzero(np.diff(there.astype(int), prepend=0, append=0))
    for first, end in zip(edges[::2], edges[1::2], strict=True):
        sums = np.concatenate([np.zeros((1, 4)), track[first:end].cumsum(0)])
        number = np.arange(end - first)
        half = np.minimum(AVERAGED // 2, np.minimum(number, end - first - 1 - number))
        mean[first:end] = (sums[number + half + 1] - sums[number - half]) / (2 * half + 1)[:, None]
    return mean
