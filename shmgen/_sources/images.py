"""`Images`: image files, one a sample. Needs Pillow, which the extra ``images`` installs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from shmgen._checks import check_choice
from shmgen._samples.files import IMAGES
from shmgen._samples.sample_spec import RowSpec, SampleSpec, check_shape
from shmgen._sources.folder import Files, FolderReader, FolderSource
from shmgen.errors import FormatError, InputError

if TYPE_CHECKING:
    from numpy.typing import DTypeLike

    from shmgen._sources.image_decoder import ImageDecoder, Interpolation, Mode, Resize
    from shmgen._storage.remote import Remote

FOUND = ("", *(suffix for lower in IMAGES.suffixes for suffix in (lower, lower.upper())))
"""Suffixes that are tried where an id does not end in that of an image."""


class Images(FolderSource):
    """The image files ``<folder>/<id>``, one a sample: JPEG, PNG, WebP, TIFF, and other formats of Pillow's.

    Rows have the shape ``(height, width, channels)``; their numbers go from 0 to 255, or to 65,535 with 16 bits. Images are
    turned as the camera has noted in them (EXIF). Of several frames, the first is read.

    A JPEG that is much larger than a row is decoded at a half, a quarter or an eighth of its size, though never at less than
    twice the size of a row. A number then differs from what the whole image would give by 10 of 255 at most on photographs, and
    by 15 on text and noise (measured on Pillow's test images). With ``interpolation="nearest"`` it is always decoded whole.

    Pillow's settings, as they are when the loader is made, hold in workers, too: `PIL.Image.MAX_IMAGE_PIXELS`,
    `PIL.ImageFile.LOAD_TRUNCATED_IMAGES`, and formats that other packages have registered, such as HEIC by
    ``pillow_heif.register_heif_opener()``.

    Args:
        folder: the folder of the files, out of which no id may lead; or a URL, as for `Npy`. None where ids are paths.
        size: height and width in pixels of what an image becomes; an int for both. By default, images keep their sizes.
        mode: ``"RGB"``; ``"L"`` for grey; ``"RGBA"``; ``"I;16"`` for grey of 16 bits, dtype uint16; or ``"P"`` for the numbers in
            the file themselves, those of a palette's colours or of grey of 1 to 8 bits, as masks have them. Images of another
            mode are converted: colours become grey by their brightness, transparency is dropped, 12 or 16 bits keep their upper
            8, and 8 bits are scaled to 16 so that white stays white. Grey of 32 bits is taken only by ``"I;16"``, if its numbers
            fit.
        resize: what becomes of an image of another size. ``"crop"``: its middle, as large as its proportions allow, fills the
            size. ``"pad"``: all of it is in the middle, and the rest is 0. ``"stretch"``: its proportions are not kept.
        interpolation: between pixels: ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"lanczos"``. By default ``"bilinear"``,
            and always ``"nearest"`` for ``"P"``, whose numbers have no middle.
        dim: height and width of a row, if images differ from it in size: a transform cuts larger ones, or ``pad_value`` fills up
            smaller ones. By default, ``size``, or else the size of the first image, which all must have.
        dtype: of a row, such as ``"float32"`` for a transform that scales; by default uint8, from 0 to 255, or uint16.
        pad_value: what fills the rest of a row to the right of a smaller image, and below.
        suffix: what follows an id in its file's name. By default, an id is the name of a file if it ends as one of an image does;
            else the suffix is looked for: that of the first id's file, and where that is missing any other.

    Attributes:
        folder: as it is if it is a URL; else as an absolute path.

    Raises:
        InputError: an argument is of no use, or Pillow is not installed.
        SampleError: by `bind`, or from a request for a batch: an image is missing, broken, or can't become one of this mode.

    Examples:
        >>> names = [f"{id}.png" for id in ids]
        >>> loader = Loader(names, batch_size=4, source=Images("photos", size=(32, 48)))
        >>> (X,) = loader.batch(0)
        >>> X.shape, X.dtype
        ((4, 32, 48, 3), dtype('uint8'))

        A random part of each image, of 24 x 24 pixels:

        >>> def crop(x, rng):
        ...     top, left = rng.integers(x.shape[0] - 23), rng.integers(x.shape[1] - 23)
        ...     return x[top : top + 24, left : left + 24]
        >>> loader = Loader(names, batch_size=4, source=Images("photos", dim=(24, 24)), transform=crop)
        >>> (X,) = loader.batch(0)
        >>> X.shape
        (4, 24, 24, 3)
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | Remote | None,
        size: int | Iterable[int] | None = None,
        mode: Mode = "RGB",
        resize: Resize = "crop",
        *,
        interpolation: Interpolation | None = None,
        dim: int | Iterable[int] | None = None,
        dtype: DTypeLike | None = None,
        pad_value: float | None = None,
        suffix: str | None = None,
    ) -> None:
        try:
            from shmgen._sources import image_decoder
        except ImportError as error:
            raise InputError(f"Images needs Pillow: pip install 'shmgen[images]' ({error})") from None
        interpolation = "nearest" if mode == "P" else interpolation or "bilinear"
        check_choice(mode, "mode", get_args(image_decoder.Mode))
        check_choice(resize, "resize", get_args(image_decoder.Resize))
        check_choice(interpolation, "interpolation", get_args(image_decoder.Interpolation))
        super().__init__(ImageFiles(folder, suffix))
        self._decoder = image_decoder.ImageDecoder(_pair(size, "size"), mode, resize, interpolation)
        dtype = dtype or ("uint16" if mode == "I;16" else "uint8")
        self.given = SampleSpec.checked(_pair(dim, "dim"), image_decoder.CHANNELS[mode], dtype, pad_value)

    def _reader(self, files: Any, first: object, varies: bool) -> ImagesReader:
        from shmgen._sources import image_decoder

        image_decoder.say_once_if_slow()
        files.learn(first)
        array = files.load(first, self._decoder.decode)
        reader = ImagesReader(files, self._decoder, self.given.row(array.shape, array.dtype, varies=varies))
        reader.check(array)
        return reader


class ImagesReader(FolderReader):
    reads_one_by_one = True

    def __init__(self, files: Files, decoder: ImageDecoder, row: RowSpec) -> None:
        super().__init__(files)
        self.shape, self.dtype, self.varies = row.shape, row.dtype, row.varies
        self._decoder = decoder

    def _read(self, key: object, row: Any) -> np.ndarray:
        array: np.ndarray = self.files.load(key, lambda data: self._decoder.decode(data, row))
        self.check(array)
        return array

    def check(self, array: np.ndarray) -> None:
        if array.shape != self.shape and not self.varies:
            size = self.shape[:2]
            remedy = f"pass size={size} to resize images, or dim={size}, and a transform that makes such rows, or a pad_value"
            raise FormatError(f"expected shape {self.shape}, found {array.shape}; {remedy}")


class ImageFiles(Files):
    """Where images are: their suffixes may have to be found out."""

    kind = IMAGES

    def __init__(self, folder: Any, suffix: str | None) -> None:
        super().__init__(folder, ".jpg" if suffix is None else suffix)
        self._finds = suffix is None

    def prepare(self, ids: Sequence[object], source: str) -> None:
        unnamed = None if self.remote is None else next((id for id in ids if self._is_open(id)), None)
        if unnamed is not None:
            expected = "one that ends in the suffix of an image, since files at a URL can't be looked for"
            raise InputError(f"id {unnamed!r}: expected {expected}; pass suffix='.jpg', for example")
        super().prepare(ids, source)

    def learn(self, first: object) -> None:
        """Find out the suffix that most files will have: that of the first sample's."""
        if self._finds:
            name = self._found(first) if self._is_open(first) else str(first)
            self.suffix = name.removeprefix(IMAGES.stem(name))

    def path(self, id: object) -> str:
        try:
            return super().path(id)
        except (OSError, ValueError, FormatError):
            return self.place(f"{id}{self.suffix}")

    def name(self, id: object) -> str:
        """The file of ``id``, as a path from the folder; one that is there, if any is. Several are a FormatError."""
        if not self._is_open(id):
            return str(id) if self._finds or str(id).endswith(self.suffix) else f"{id}{self.suffix}"
        usual = f"{id}{self.suffix}"
        return usual if os.path.exists(self.place(usual)) else self._found(id)

    def _is_open(self, id: object) -> bool:
        """Whether the suffix of the file of ``id`` has to be found out."""
        return self._finds and not IMAGES.has(str(id))

    def _found(self, id: object) -> str:
        """The only file whose name is ``id`` plus a suffix; raises as `name`."""
        # By identity, since a file system that does not tell upper from lower case has one file under two names.
        found: dict[tuple[int, int], str] = {}
        for name in (f"{id}{suffix}" for suffix in FOUND):
            with suppress(OSError, ValueError):
                status = os.stat(self.place(name))
                if stat.S_ISREG(status.st_mode):
                    found.setdefault((status.st_dev, status.st_ino), name)
        names = list(found.values())
        if not names:
            raise FileNotFoundError
        if len(names) > 1:
            remedy = f"pass suffix={names[0][len(str(id)) :]!r}, for one"
            raise FormatError(f"expected one image, found {' and '.join(names)}; {remedy}")
        return names[0]


def _pair(size: int | Iterable[int] | None, name: str) -> tuple[int, int] | None:
    """A height and a width; one int is both."""
    sizes = check_shape(size, name)
    if sizes is None:
        return None
    if len(sizes) not in (1, 2):
        raise InputError(f"{name}: expected (height, width) in pixels, found {sizes}")
    return sizes[0], sizes[-1]
