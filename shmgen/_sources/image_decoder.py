"""Image files become arrays, by Pillow: decoded, turned as the camera says, of the mode and size that a row has.

Imported only where `Images` is used, in workers too.
"""

from __future__ import annotations

from io import BytesIO
from math import ceil
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from shmgen.errors import FormatError

Mode: TypeAlias = Literal["RGB", "L", "RGBA", "P", "I;16"]
Resize: TypeAlias = Literal["crop", "pad", "stretch"]
Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]

CHANNELS = {"RGB": 3, "L": 1, "RGBA": 4, "P": 1, "I;16": 1}

GREY = ("1", "L", "LA")

DRAFTED = ("JPEG", "MPO")
"""Formats that are decoded at an eighth, a quarter or a half of their size where a row needs no more."""

ORIENTATION = 0x0112
"""The number of the EXIF tag that says how the camera was held."""

TURNED_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By the value of that tag: what makes the image upright."""

SWAPPED = (5, 6, 7, 8)
"""Values with which an upright image is as wide as the stored one is high."""

AGAIN = "; write or copy it again, or leave its id out (on_error='replace' puts another in its place)"

OTHERWISE = "; convert it to JPEG or PNG, or read it by a function as source"

IF_WHOLE = "; if it is whole, convert it to JPEG or PNG, or read it by a function as source"


class ImageDecoder(NamedTuple):
    """Makes rows of image files.

    Attributes:
        size: height and width of a row in pixels; None for those of the image.
        mode: of a row, as Pillow calls it.
        resize: how an image of other proportions is made to fit.
        interpolation: between pixels.
    """

    size: tuple[int, int] | None
    mode: Mode
    resize: Resize
    interpolation: Interpolation

    @property
    def dtype(self) -> str:
        return "<u2" if self.mode == "I;16" else "|u1"

    def decode(self, data: bytes) -> np.ndarray:
        """An image file's array, of shape ``(height, width, channels)``.

        Raises:
            FormatError: it is no image, a broken one, or one that does not become one of this mode without loss.
        """
        if not data:
            raise FormatError("expected an image, found an empty file (0 bytes)" + AGAIN)
        try:
            with _opened(data) as image:
                return self._decoded(image)
        except (FormatError, MemoryError):
            raise
        except Image.UnidentifiedImageError:
            raise FormatError(f"expected an image that Pillow reads, found one that begins with {data[:8]!r}{IF_WHOLE}") from None
        except Image.DecompressionBombError as error:
            raise FormatError(f"expected an image of a size that Pillow reads, found: {error}; make it smaller") from None
        except Exception as error:  # of all kinds: each format has a decoder of its own
            raise FormatError(f"expected a whole image, found: {str(error) or type(error).__name__}{AGAIN}") from None

    def _decoded(self, image: Any) -> np.ndarray:
        is_drafted = image.format in DRAFTED
        if not is_drafted:
            image.load()  # only then some formats know how they are to be turned, and TIFF is turned
        orientation = _orientation(image)
        stored, box = self._fitted(image.size, swapped=orientation in SWAPPED)
        if is_drafted and stored is not None:
            width, height = image.size
            left, top, right, bottom = box
            image.draft(self.mode, (ceil(stored[0] * width / (right - left)), ceil(stored[1] * height / (bottom - top))))
            across, down = image.size[0] / width, image.size[1] / height
            box = left * across, top * down, right * across, bottom * down
        image = self._converted(image)
        if stored is not None:
            image = image.resize(stored, Image.Resampling[self.interpolation.upper()], box)
        if orientation in TURNED_BY:
            image = image.transpose(TURNED_BY[orientation])
        array = np.asarray(image)
        array = array.reshape(*array.shape[:2], CHANNELS[self.mode])
        return array if self.size is None or array.shape[:2] == self.size else _padded(array, self.size)

    def _fitted(
        self, size: tuple[int, int], *, swapped: bool
    ) -> tuple[tuple[int, int] | None, tuple[float, float, float, float]]:
        """The width and height that an image of ``size`` is resized to before it is turned, and the part of it that is.

        Args:
            size: width and height as they are stored.
            swapped: whether they change places when the image is turned.
        """
        whole = (0.0, 0.0, *map(float, size))
        if self.size is None:
            return None, whole  # type: ignore[return-value]
        wanted = self.size if swapped else self.size[::-1]
        scales = wanted[0] / size[0], wanted[1] / size[1]
        if self.resize == "pad":
            scale = min(scales)
            return (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))), whole  # type: ignore[return-value]
        if self.resize == "stretch":
            return wanted, whole  # type: ignore[return-value]
        scale = max(scales)
        left, top = ((side - part / scale) / 2 for side, part in zip(size, wanted, strict=True))
        left, top = max(0.0, left), max(0.0, top)
        return wanted, (left, top, size[0] - left, size[1] - top)

    def _converted(self, image: Any) -> Any:
        """The image in the mode of a row."""
        found = image.mode
        if found == "I" or found.startswith("I;16"):
            return self._from_deep(image)
        if self.mode == "I;16":
            if found not in GREY:
                raise FormatError(f"expected a grey image of 16 bits, found mode {found!r}; pass mode='RGB'")
            return Image.fromarray(np.asarray(image.convert("L")).astype("<u2") * 257)
        if self.mode == "P":
            if found not in ("P", "L", "1"):
                raise FormatError(f"expected an image with a palette, or a grey one, found mode {found!r}; pass mode='RGB'")
            return Image.fromarray(np.asarray(image).astype(np.uint8)) if found == "1" else image
        if found == "F":
            raise FormatError(f"expected an image of 8 or 16 bits, found floats{OTHERWISE}")
        if found == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image if image.mode == self.mode and "transparency" not in image.info else image.convert(self.mode)

    def _from_deep(self, image: Any) -> Any:
        """As `_converted`, of a grey image of 16 bits; Pillow itself would make white of all that is above 255."""
        if self.mode == "P":
            raise FormatError("expected an image of 8 bits, found one of 16; pass mode='I;16'")
        deep = np.asarray(image)
        if image.mode == "I" and (deep.min() < 0 or deep.max() >= 1 << 16):
            raise FormatError(f"expected an image of 8 or 16 bits, found one of 32{OTHERWISE}")
        if self.mode == "I;16":
            return Image.fromarray(deep.astype("<u2"))
        return Image.fromarray((deep >> 8).astype(np.uint8)).convert(self.mode)


def _opened(data: bytes) -> Any:
    """The image in a file's bytes, which are not decoded yet."""
    try:
        return Image.open(BytesIO(data))
    except Image.UnidentifiedImageError:
        # Pillow loads most formats when it first needs one. In another thread that may just be going on: then it does not know
        # this one yet, and does not wait.
        Image.init()
        return Image.open(BytesIO(data))


def _orientation(image: Any) -> int:
    """How the camera was held; 1, upright, where the image does not say it, or not in a way that can be read."""
    try:
        found = image.getexif().get(ORIENTATION, 1)
    except Exception:  # of all kinds; pixels are not in doubt
        return 1
    return found if isinstance(found, int) else 1


def _padded(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``array`` in the middle of zeros."""
    row = np.zeros((*size, array.shape[2]), array.dtype)
    top, left = ((outer - inner) // 2 for outer, inner in zip(size, array.shape[:2], strict=True))
    row[top : top + array.shape[0], left : left + array.shape[1]] = array
    return row
