"""Makes arrays of image files: decodes them, turns them upright, and gives them the mode and size of a row.

Plain 8-bit JPEGs are decoded by simplejpeg, and pixels of 8 bits are resized by cykooz-resizer, where these two packages are
installed. They compute what Pillow computes in less than half of its time: decoded numbers are the same, since both use
libjpeg-turbo, and resized ones differ by 2 of 255 at most, by rounding. All other images are Pillow's.

Imported only where `Images` is used, in workers too.
"""

from __future__ import annotations

import functools
import logging
import math
import sys
from collections.abc import Callable
from functools import partial
from io import BytesIO
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from PIL import Image

from shmgen._storage.local import refuse_pointer
from shmgen.errors import FormatError

try:
    import cykooz_resizer
    import simplejpeg
except ImportError:  # there is no wheel for this machine, or only Pillow was installed
    IS_FAST = False
else:
    IS_FAST = True

log = logging.getLogger("shmgen")

Mode: TypeAlias = Literal["RGB", "L", "RGBA", "P", "I;16"]
Resize: TypeAlias = Literal["crop", "pad", "stretch"]
Interpolation: TypeAlias = Literal["nearest", "bilinear", "bicubic", "lanczos"]

Box: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom, in pixels."""

CHANNELS = {"RGB": 3, "L": 1, "RGBA": 4, "P": 1, "I;16": 1}

OVERSIZE = 2
"""How many times the size that a row needs a JPEG is decoded at, at least. `Images` says by how much its numbers then differ from
those of one that was decoded whole; without this factor, they do by 33 of 255 (Pillow's test images at 32, 64 and 96 pixels)."""

JPEG, SCAN, APP1 = b"\xff\xd8\xff", 0xDA, 0xE1
"""How a JPEG begins, and the second bytes of two markers: of pixels, which end the header, and of EXIF, among others."""

EXIF = b"Exif\0\0"
"""How EXIF begins."""

ORIENTATION = 0x0112
"""The number of the EXIF tag that says how the camera was held."""

UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90,
}
"""By the value of that tag: what makes the image upright."""

SWAPPED = (5, 6, 7, 8)
"""Values with which an upright image is as wide as the stored one is high."""

WHITE = {"L;2": 3, "L;4": 15}
"""The number of white in grey of 2 and 4 bits, by how Pillow's names for these begin; Pillow makes 255 of it."""

SETTINGS = ("PIL.Image", "MAX_IMAGE_PIXELS"), ("PIL.ImageFile", "LOAD_TRUNCATED_IMAGES")
"""Variables of Pillow's that its documentation says to set: modules and names."""

AGAIN = "; write or copy it again, or leave its id out (on_error='replace' puts another in its place)"

REMEDY = "; convert it to JPEG or PNG, or read it by a function as source"


class ImageDecoder(NamedTuple):
    """Makes rows of image files, as the arguments of `Images` say."""

    size: tuple[int, int] | None
    mode: Mode
    resize: Resize
    interpolation: Interpolation

    def __reduce__(self) -> tuple[Any, ...]:
        """Carries along how Pillow is set in the main process: `SETTINGS`, and openers of other packages, such as HEIC's."""
        import cloudpickle  # late: workers don't need it

        settings = {(module, name): getattr(sys.modules[module], name) for module, name in SETTINGS if module in sys.modules}
        openers = {id: opener for id, opener in Image.OPEN.items() if not opener[0].__module__.startswith("PIL.")}
        return _restored, (tuple(self), settings, cloudpickle.dumps(openers) if openers else b"")

    def decode(self, data: bytes, row: np.ndarray | None = None) -> np.ndarray:
        """The array of an image file, ``(height, width, channels)``: ``row`` if it fits; a FormatError if it is damaged."""
        if not data:
            raise FormatError("expected an image, found an empty file (0 bytes)" + AGAIN)
        try:
            found = self._by_simplejpeg(data, row)
            if found is not None:
                return found
            with _opened(data) as image:
                return self._by_pillow(image)
        except (FormatError, MemoryError):
            raise
        except Image.UnidentifiedImageError:
            refuse_pointer(data)
            raise FormatError(f"expected an image that Pillow reads, found one that begins with {data[:8]!r}{REMEDY}") from None
        except Image.DecompressionBombError as error:
            remedy = "make it smaller, or set PIL.Image.MAX_IMAGE_PIXELS before the loader is made"
            raise FormatError(f"expected an image of a size that Pillow reads, found: {error}; {remedy}") from None
        except Exception as error:  # of all kinds: each format has a decoder of its own
            raise FormatError(f"expected a whole image, found: {str(error) or type(error).__name__}{AGAIN}") from None

    def _by_simplejpeg(self, data: bytes, row: np.ndarray | None) -> np.ndarray | None:
        """The array of a plain JPEG, ``row`` if it was decoded into it; None for what is left to Pillow."""
        header = _plain_jpeg(data) if IS_FAST and self.mode in ("RGB", "L") else None
        if header is None:
            return None
        size, orientation = header
        fitted, box = self._fitted(size, swapped=orientation in SWAPPED)
        wanted = self._draft_size(size, fitted, box)
        # What Pillow's `draft` does.
        scale = next((scale for scale in (8, 4, 2) if wanted and min(size[0] // wanted[0], size[1] // wanted[1]) >= scale), 1)
        width, height = -(-size[0] // scale), -(-size[1] // scale)
        shape = height, width, CHANNELS[self.mode]
        fits = (
            row is not None
            and fitted in (None, (width, height))
            and orientation not in UPRIGHT
            and row.shape == shape
            and row.dtype == np.uint8
            and row.flags.c_contiguous
        )
        color = "RGB" if self.mode == "RGB" else "GRAY"
        try:
            pixels = simplejpeg.decode_jpeg(data, color, min_height=height, min_width=width, buffer=row if fits else None)
        except ValueError:  # it is damaged; how much of that is harmless is up to Pillow
            return None
        if pixels.shape != shape:
            return None
        return row if fits else self._finished(pixels, scale, fitted, box, orientation)

    def _by_pillow(self, image: Any) -> np.ndarray:
        stored = image.tile[0].args if image.tile else ""
        raw, *others = stored if isinstance(stored, tuple) and stored else (stored,)
        raw = str(raw)  # Pillow's name for how the file stores pixels
        white = others[0] if image.format == "PPM" and others else WHITE.get(raw[:3], 255)
        is_drafted = image.format in ("JPEG", "MPO")  # can be decoded at an eighth, a quarter or a half of their size
        if not is_drafted:
            image.load()  # some formats know their orientation only once they are loaded, and loading turns a TIFF
        orientation = _orientation(image.getexif)
        fitted, box = self._fitted(image.size, swapped=orientation in SWAPPED)
        scale = 1
        if is_drafted:
            # Grey is decoded as grey, and at a smaller size if the row is much smaller.
            image.draft(self.mode, self._draft_size(image.size, fitted, box))
            scale = image.decoderconfig[0] if image.decoderconfig else 1
        return self._finished(self._converted(image, raw, white), scale, fitted, box, orientation)

    def _finished(self, pixels: np.ndarray, scale: int, fitted: tuple[int, int] | None, box: Box, orientation: int) -> np.ndarray:
        """Resize, turn and pad pixels that were decoded at 1 / ``scale`` of the image's size; `_fitted` gives the rest."""
        height, width = pixels.shape[:2]
        box = (box[0] / scale, box[1] / scale, box[2] / scale, box[3] / scale)
        if fitted is not None and (fitted, box) != ((width, height), (0, 0, width, height)):
            pixels = self._resized(pixels, fitted, box)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        if orientation in UPRIGHT:
            pixels = np.ascontiguousarray(UPRIGHT[orientation](pixels))
        return pixels if self.size is None or pixels.shape[:2] == self.size else _padded(pixels, self.size)

    def _fitted(self, size: tuple[int, int], *, swapped: bool) -> tuple[tuple[int, int] | None, Box]:
        """The width and height that an image is resized to, and the part of it that is resized; both before it is turned."""
        whole = (0.0, 0.0, float(size[0]), float(size[1]))
        if self.size is None:
            return None, whole
        wanted = self.size if swapped else (self.size[1], self.size[0])
        scales = wanted[0] / size[0], wanted[1] / size[1]
        if self.resize == "pad":
            scale = min(scales)
            return (max(1, round(size[0] * scale)), max(1, round(size[1] * scale))), whole
        if self.resize == "stretch":
            return wanted, whole
        scale = max(scales)
        left, top = (max(0.0, (side - part / scale) / 2) for side, part in zip(size, wanted, strict=True))
        return wanted, (left, top, size[0] - left, size[1] - top)

    def _draft_size(self, size: tuple[int, int], fitted: tuple[int, int] | None, box: Box) -> tuple[int, int] | None:
        """The least width and height that a JPEG of this size is decoded at; None for its own."""
        if fitted is None or self.interpolation == "nearest":
            return None
        left, top, right, bottom = box
        across, down = fitted[0] / (right - left), fitted[1] / (bottom - top)
        return max(1, round(OVERSIZE * across * size[0])), max(1, round(OVERSIZE * down * size[1]))

    def _converted(self, image: Any, raw: str, white: int) -> np.ndarray:
        """The pixels that Pillow decodes, in the mode of a row. For "P", these are the numbers in the file of a grey image."""
        found = image.mode
        if found == "I" or found.startswith("I;16"):
            return self._from_deep(image, raw)
        if self.mode == "I;16":
            if found not in ("1", "L", "LA"):
                raise FormatError(f"expected a grey image of 16 bits, found mode {found!r}; pass mode='RGB'")
            return np.asarray(image.convert("L")).astype("<u2") * 257
        if self.mode == "P":
            if found not in ("P", "L", "1"):
                raise FormatError(f"expected an image with a palette, or a grey one, found mode {found!r}; pass mode='RGB'")
            numbers = np.asarray(image).astype(np.uint8)
            if found != "P" and "I" in raw:  # 0 is white in the file, so Pillow has inverted the numbers
                numbers = (1 if found == "1" else 255) - numbers
            return numbers if white == 255 else np.rint(numbers * (white / 255)).astype(np.uint8)
        if found == "F":
            raise FormatError(f"expected an image of 8 or 16 bits, found floats{REMEDY}")
        if found == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return np.asarray(image if image.mode == self.mode and "transparency" not in image.info else image.convert(self.mode))

    def _from_deep(self, image: Any, raw: str) -> np.ndarray:
        """As `_converted`, of a grey image of more than 8 bits; Pillow itself would make white of all that is above 255."""
        if self.mode == "P":
            raise FormatError("expected an image of 8 bits, found one of 16; pass mode='I;16'")
        deep = np.asarray(image)
        if image.mode == "I" and image.format != "PPM":  # grey of more than 8 bits is scaled to 16 bits
            if self.mode != "I;16":
                found = "one of 32, which does not say what is white; pass mode='I;16' if its numbers go from 0 to 65,535"
                raise FormatError(f"expected an image of 8 or 16 bits, found {found}{REMEDY}")
            if deep.min() < 0 or deep.max() >= 1 << 16:
                raise FormatError(f"expected numbers from 0 to 65,535, found {deep.min():,} to {deep.max():,}{REMEDY}")
        if self.mode == "I;16":
            return deep.astype("<u2")
        grey = (deep >> (4 if raw == "I;12" else 8)).astype(np.uint8)
        return np.asarray(Image.fromarray(grey).convert(self.mode))

    def _resized(self, pixels: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
        """The part ``box`` of pixels, of ``size``: width and height."""
        if IS_FAST and self.interpolation == "bilinear" and self.mode in ("RGB", "L"):
            return _by_cykooz(pixels, size, box)
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling[self.interpolation.upper()], box))


@functools.cache
def say_once_if_slow() -> None:
    """Log what would make decoding faster, unless it is installed."""
    if not IS_FAST:
        log.warning("JPEGs would be decoded in half of the time with simplejpeg and cykooz-resizer: pip install 'shmgen[images]'")


def _restored(fields: tuple[Any, ...], settings: dict[tuple[str, str], Any], openers: bytes) -> ImageDecoder:
    """A decoder that was pickled in another process. Pillow is set here as it was there."""
    import importlib
    import pickle

    for (module, name), value in settings.items():
        setattr(importlib.import_module(module), name, value)
    for id, (factory, accepts) in (pickle.loads(openers) if openers else {}).items():
        Image.register_open(id, factory, accepts)
    return ImageDecoder(*fields)


def _opened(data: bytes) -> Any:
    """The image in a file's bytes, which are not decoded yet."""
    try:
        return Image.open(BytesIO(data))
    except Image.UnidentifiedImageError:
        # Pillow loads most formats when it first needs one. In another thread that may just be going on: then it does not know
        # this one yet, and does not wait.
        Image.init()
        return Image.open(BytesIO(data))


def _plain_jpeg(data: bytes) -> tuple[tuple[int, int], int] | None:
    """The width and height of a JPEG, and how the camera was held; None for what is left to Pillow."""
    # Pillow's own look at a header takes a third of the time in which simplejpeg decodes a photo.
    if len(data) == len(JPEG) or not data.startswith(JPEG):
        return None
    exif, place = b"", len(JPEG)
    while (marker := data[place]) != SCAN:
        segment = data[place + 3 : place + 1 + int.from_bytes(data[place + 1 : place + 3], "big")]
        if marker == APP1:
            if exif or not segment.startswith(EXIF):
                return None
            exif = segment
        place += 4 + len(segment)
        if place >= len(data) or data[place - 1] != 0xFF or marker == 0xFF:
            return None
    try:
        height, width, color, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if color not in ("YCbCr", "Gray") or width * height > (Image.MAX_IMAGE_PIXELS or math.inf):
        return None
    return (width, height), _orientation(partial(_exif, exif)) if exif else 1


def _exif(data: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(data)
    return exif


def _orientation(exif: Callable[[], Any]) -> int:
    """How the camera was held, as EXIF tags say; 1, upright, where they do not say it, or not in a way that can be read."""
    try:
        found = exif().get(ORIENTATION, 1)
    except Exception:  # of all kinds; pixels are not in doubt
        return 1
    return found if isinstance(found, int) else 1


def _by_cykooz(pixels: np.ndarray, size: tuple[int, int], box: Box) -> np.ndarray:
    height, width, channels = pixels.shape if pixels.ndim == 3 else (*pixels.shape, 1)
    pixel = cykooz_resizer.PixelType.U8x3 if channels == 3 else cykooz_resizer.PixelType.U8
    left, top, right, bottom = box
    options = cykooz_resizer.ResizeOptions(
        cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.bilinear),
        crop_box=cykooz_resizer.CropBox(left, top, right - left, bottom - top),
    )
    resized = cykooz_resizer.ImageData(*size, pixel)
    cykooz_resizer.Resizer().resize(cykooz_resizer.ImageData(width, height, pixel, pixels.tobytes()), resized, options)
    return np.frombuffer(resized.get_buffer(), np.uint8).reshape(size[1], size[0], channels)


def _padded(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``array`` in the middle of zeros."""
    row = np.zeros((*size, array.shape[2]), array.dtype)
    top, left = ((outer - inner) // 2 for outer, inner in zip(size, array.shape[:2], strict=True))
    row[top : top + array.shape[0], left : left + array.shape[1]] = array
    return row
