"""`Images`: image files, one a sample. Needs Pillow, which the extra ``images`` installs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from shmgen._sources.base import Source
from shmgen._sources.ids import as_ints, refuse_ways_out
from shmgen._sources.npy_format import OPEN_FLAGS, explain, file_versions
from shmgen._sources.sample_spec import check_shape
from shmgen._sources.suggest import IMAGES, for_missing_file
from shmgen.errors import FormatError, InputError, SampleError

if TYPE_CHECKING:
    from shmgen._sources.image_decoder import Interpolation, Mode, Resize

FOUND = ("", *(suffix for lower in IMAGES.suffixes for suffix in (lower, lower.upper())))
"""Suffixes that are tried where an id ends in none of an image's."""


class Images(Source):
    """The image files ``<folder>/<id>``, one a sample: JPEG, PNG, WebP, TIFF, and what else Pillow reads.

    Rows have the shape ``(height, width, channels)``; their numbers go from 0 to 255, or to 65,535 with 16 bits. Images are
    turned as the camera has noted in them (EXIF). Of several frames it is the first. JPEG is decoded at a smaller size where a
    row needs no more, which may change a number by a few units.

    Args:
        folder: where the files are, and beyond which no id may lead; or a URL, as for `Npy`. None where ids are paths.
        size: height and width of a row in pixels; an int for both. By default, those of the first image, which all must have.
        mode: ``"RGB"``; ``"L"`` for grey; ``"RGBA"``; ``"I;16"`` for grey of 16 bits, dtype uint16; or ``"P"`` for the numbers in
            the file themselves, those of a palette's colours or of grey, as masks have them. Images of another mode are
            converted: colours become grey by their brightness, transparency is left out, of 16 bits the upper 8 are kept, and 8
            bits become 16 so that white is white.
        resize: what becomes of an image of another size. ``"crop"``: its middle, as large as its proportions allow, fills the
            row. ``"pad"``: all of it is in the middle of a row, and the rest is 0. ``"stretch"``: its proportions are not kept.
        interpolation: between pixels: ``"nearest"``, ``"bilinear"``, ``"bicubic"`` or ``"lanczos"``. By default ``"bilinear"``,
            and ``"nearest"`` for ``"P"``, which allows no other.
        suffix: what follows an id in its file's name. By default, an id is the name of a file if it ends as one of an image does;
            else the suffix is looked for: that of the first id's file, and where that is missing any other.
        storage_options: of a URL; see `Npy`.
        cache: of a URL: a folder on a local disk, in which files are kept.
        cache_bytes: that files take there, at most; those that were not used for the longest time go first.

    Attributes:
        folder: as it is if it is a URL; else as an absolute path.
        shape: of a row.
        dtype: of a row: uint8 or uint16.

    Raises:
        InputError: an argument is of no use, or Pillow is not installed.
        SampleError: by `bind` and `fill`: an image is missing, broken, or can't become one of this mode.

    Examples:
        >>> names = [f"{id}.png" for id in ids]
        >>> loader = Loader(names, batch_size=4, source=Images("photos", size=(32, 48)))
        >>> (X,) = loader.batch(0)
        >>> X.shape, X.dtype
        ((4, 32, 48, 3), dtype('uint8'))
    """

    concurrent = True  # Pillow lets other threads run while it decodes
    dtype: str

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        size: int | Iterable[int] | None = None,
        mode: Mode = "RGB",
        resize: Resize = "crop",
        *,
        interpolation: Interpolation | None = None,
        suffix: str | None = None,
        storage_options: Mapping[str, Any] | None = None,
        cache: str | os.PathLike[str] | None = None,
        cache_bytes: int | None = None,
    ) -> None:
        try:
            from shmgen._sources import image_decoder
        except ImportError as error:
            raise InputError(f"Images needs Pillow: pip install 'shmgen[images]' ({error})") from None
        from shmgen._sources.remote import remote

        interpolation = interpolation or ("nearest" if mode == "P" else "bilinear")
        _check(mode, "mode", image_decoder.Mode)
        _check(resize, "resize", image_decoder.Resize)
        _check(interpolation, "interpolation", image_decoder.Interpolation)
        if mode == "P" and interpolation != "nearest":
            raise InputError(
                f"interpolation: expected 'nearest' with mode 'P', whose numbers have no middle, found {interpolation!r}"
            )
        self._remote = remote(folder, storage_options, cache, cache_bytes)
        self.folder = os.path.abspath(folder or "") if self._remote is None else str(folder)
        self._ids_are_paths = folder is None
        self._suffix = suffix
        self._usual = ".jpg"
        self._decoder = image_decoder.ImageDecoder(_checked_size(size), mode, resize, interpolation)
        self.dtype = self._decoder.dtype

    def bind(self, ids: Sequence[object]) -> None:
        """Decode the first image: a wrong folder shows, and the size, where it was left out.

        Raises:
            InputError: an id leads out of the folder; or it ends in no suffix, and the files at a URL can't be looked for.
            SampleError: the image can't be decoded.
        """
        if not self._ids_are_paths and as_ints(ids) is None:
            refuse_ways_out(ids, self.folder, "Images(None, ...)")
        if self._remote is not None:
            self._refuse_unnamed(ids)
            self._remote.prepare()
        first = ids[0]
        try:
            self._usual = self._found(first)[len(str(first)) :] if self._is_open(first) else ""
            self.shape = self._array(first, os.O_NONBLOCK).shape  # an ordinary open of a FIFO would wait for ever
        except (OSError, ValueError, FormatError) as error:
            raise SampleError(first, self.path(first), explain(error) + self._meant(first, error)) from None
        finally:
            if self._remote is not None:
                self._remote.store.close()

    def open(self) -> None:
        if self._remote is not None:
            self._remote = self._remote.for_reader()

    def fill(self, ids: Sequence[object], rows: np.ndarray) -> None:
        """Decode the images ``ids`` into ``rows``.

        Raises:
            SampleError: one can't be decoded; it names the file, what was expected and what was found.
        """
        for self.rows_begun[0], id in enumerate(ids, 1):
            try:
                array = self._array(id)
                if array.shape != self.shape:
                    raise FormatError(
                        f"expected shape {self.shape}, as the first has, found {array.shape}; pass size=(height, width)"
                    )
            except (OSError, ValueError, FormatError) as error:
                from shmgen._sources.remedies import for_unreadable_file

                folder = None if self._ids_are_paths else self.folder
                remedy = for_unreadable_file(error, self.path(id), folder, can_scan=False)
                raise SampleError(id, self.path(id), explain(error) + remedy) from None
            rows[self.rows_begun[0] - 1] = array

    def path(self, id: object) -> str:
        """The file of sample ``id``: its path, or its URL."""
        try:
            name = self._name(id)
        except (OSError, ValueError, FormatError):
            name = f"{id}{self._usual}"
        return self._path(name) if self._remote is None else self._remote.store.place(name)

    def place(self, id: object) -> str:
        return self.path(id)

    def version(self, ids: Sequence[object]) -> object:
        if self._remote is not None:
            return None  # it would take a request a sample
        try:
            folder = os.open(self.folder, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return file_versions([self.path(id) for id in ids], folder)
        finally:
            os.close(folder)

    def _array(self, id: object, flags: int = 0) -> np.ndarray:
        name = self._name(id)
        if self._remote is None:
            return self._decoder(_read(self._path(name), flags))
        get, cache = partial(self._remote.store.get, name, lambda body: body.read(sys.maxsize)), self._remote.cache
        if cache is None:
            return self._decoder(get())
        found: list[np.ndarray] = []
        if not cache.read(key := self.path(id), lambda fd: found.append(self._decoder(_read(fd)))):
            data = get()
            found.append(self._decoder(data))
            cache.keep(key, data)
        return found[0]

    def _name(self, id: object) -> str:
        """The file of ``id``, as a path from the folder; one that is there, if any is."""
        if not self._is_open(id):
            return self._named(id)
        usual = f"{id}{self._usual}"
        return usual if self._remote is not None or os.path.exists(self._path(usual)) else self._found(id)

    def _is_open(self, id: object) -> bool:
        """Whether the suffix of the file of ``id`` has to be found out."""
        return self._suffix is None and not IMAGES.has(str(id))

    def _named(self, id: object) -> str:
        return str(id) if self._suffix is None or str(id).endswith(self._suffix) else f"{id}{self._suffix}"

    def _found(self, id: object) -> str:
        """The only file that the name of ``id`` is of but for its suffix.

        Raises:
            FileNotFoundError: there is none.
            FormatError: there are several.
        """
        names = [name for suffix in FOUND if os.path.isfile(self._path(name := f"{id}{suffix}"))]
        # A file system that does not tell upper from lower case shows one file under two names.
        found = list({_identity(self._path(name)): name for name in reversed(names)}.values())[::-1]
        if not found:
            raise FileNotFoundError
        if len(found) > 1:
            raise FormatError(
                f"expected one image, found {' and '.join(found)}; pass suffix={found[0][len(str(id)) :]!r}, for one"
            )
        return found[0]

    def _path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def _refuse_unnamed(self, ids: Sequence[object]) -> None:
        unnamed = next((id for id in ids if self._is_open(id)), None)
        if unnamed is not None:
            raise InputError(
                f"id {unnamed!r}: expected one that ends in the suffix of an image, since files at a URL can't be looked for; "
                "pass suffix='.jpg', for example"
            )

    def _meant(self, id: object, error: Exception) -> str:
        """A guess at what was meant by an id whose file is not there."""
        if not isinstance(error, FileNotFoundError):
            return ""
        return for_missing_file(id, self.path, None if self._ids_are_paths else self.folder, IMAGES)


def _check(value: str, name: str, known: Any) -> None:
    if value not in get_args(known):
        raise InputError(f"{name}: expected {' or '.join(map(repr, get_args(known)))}, found {value!r}")


def _checked_size(size: int | Iterable[int] | None) -> tuple[int, int] | None:
    sizes = check_shape(size)
    if sizes is None:
        return None
    if len(sizes) not in (1, 2):
        raise InputError(f"size: expected (height, width) in pixels, found {sizes}")
    return sizes[0], sizes[-1]


def _identity(path: str) -> tuple[int, int]:
    """What two names of one file have in common."""
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _read(file: str | int, flags: int = 0) -> bytes:
    """All bytes of a file: of a path, or of a descriptor, which stays open."""
    fd = file if isinstance(file, int) else os.open(file, OPEN_FLAGS | flags)
    with open(fd, "rb", buffering=0, closefd=fd != file) as opened:
        return opened.read()
