"""`image_folder`: ids of a folder of images; with labels and class names if it has a folder for each class."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterable
from typing import NamedTuple

from shmgen._checks import check_float, check_int
from shmgen._samples.checked_values import names_of
from shmgen._samples.files import IMAGES, files_below, some_of
from shmgen._samples.remedies import for_missing_folder
from shmgen._samples.validation_split import split
from shmgen.errors import InputError

log = logging.getLogger("shmgen")

LITTER = frozenset({"thumbs.db", "desktop.ini"})
"""Names, in lower case, of files that Windows adds to folders of images."""

SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
"""Names, in lower case, of folders of parts of the data; where there are no others, they are not taken for classes."""


class ImageFolder(NamedTuple):
    """What `image_folder` found.

    Attributes:
        partition: the ids by ``"train"`` and ``"validation"``, sorted; each is the path of an image from the folder on, such as
            ``"cats/001.jpg"``.
        labels: the number of the class of each id; empty where images have none.
        classes: the names of the classes, in the order of their numbers.
    """

    partition: dict[str, list[str]]
    labels: dict[str, int]
    classes: list[str]

    @property
    def ids(self) -> list[str]:
        """All ids, class by class."""
        return list(self.labels) or sorted(self.partition["train"] + self.partition["validation"])


def image_folder(
    folder: str | os.PathLike[str],
    validation_split: float = 0.0,
    *,
    seed: int = 0,
    classes: Iterable[str] | None = None,
    labels: bool = True,
) -> ImageFolder:
    """The ids, labels and class names of a folder that has a folder of images for each class; or the ids of any folder of images.

    The same fraction of each class becomes ``"validation"``; see `split`. Images in sub-folders of a class's folder belong to it.
    Links are followed. Names that begin with a dot are left out; so are files without an image's suffix, which the log counts.

    Args:
        folder: with a folder for each class.
        validation_split: the fraction of the images that become ``partition["validation"]``, from 0 to below 1.
        seed: of the choice, an int from 0.
        classes: the folders that are classes, in the order of their numbers. By default all, sorted by name.
        labels: False for images without classes, to predict for instance: then all images in and below the folder are ``ids``.

    Raises:
        InputError: there is no such folder, or none of a class; or a class has no images.

    Examples:
        >>> partition, labels, classes = image_folder("pets", validation_split=0.25)
        >>> len(partition["train"]), len(partition["validation"]), classes
        (12, 4, ['cats', 'dogs'])
        >>> loader = Loader(partition["train"], labels, batch_size=4, source=Images("pets", size=32), n_classes=len(classes))
        >>> X, y = loader.batch(0)
        >>> X.shape, y.shape
        ((4, 32, 32, 3), (4, 2))
        >>> image_folder("photos", labels=False).ids[:2]
        ['id-0.png', 'id-1.png']
    """
    expected = "a fraction from 0 to below 1"
    fraction = check_float(validation_split, "validation_split", expected, lambda number: 0 <= number < 1)
    check_int(seed, "seed", 0)
    path = os.path.abspath(folder)
    numbers: dict[str, int] = {}
    try:
        if not labels:
            [ids] = _images(path, [""])
            return ImageFolder(_partition(ids, {}, fraction, seed), {}, [])
        names = _class_folders(folder, path) if classes is None else list(map(str, names_of(classes)))
        for number, ids in enumerate(_images(path, names)):
            numbers |= dict.fromkeys(ids, number)
    except OSError as error:
        remedy = for_missing_folder(error.filename, IMAGES) if isinstance(error, FileNotFoundError) else ""
        found = f"{error.strerror}{remedy}"
        raise InputError(f"folder {error.filename}: expected a folder that can be read, found: {found}") from None
    return ImageFolder(_partition(list(numbers), numbers, fraction, seed), numbers, names)


def _partition(ids: list[str], labels: dict[str, int], fraction: float, seed: int) -> dict[str, list[str]]:
    """The ids of both parts; a single image is trained on."""
    if not fraction or len(ids) < 2:
        return {"train": ids, "validation": []}
    training, validation = split(ids, labels, fraction, stratify=bool(labels), seed=seed)
    return {"train": training, "validation": validation}


def _class_folders(folder: str | os.PathLike[str], path: str) -> list[str]:
    with os.scandir(path) as scanned:
        entries = sorted((entry for entry in scanned if not entry.name.startswith(".")), key=lambda entry: entry.name)
    names = [entry.name for entry in entries if entry.is_dir()]
    images = [entry.name for entry in entries if IMAGES.has(entry.name) and entry.name not in names]
    if not names:
        found = some_of([entry.name for entry in entries])
        remedy = "give the folder that has them, take ids and labels from a table, or, without labels, pass labels=False"
        raise InputError(f"folder {path}: expected a folder of images for each class, found {found}; {remedy}")
    if SPLITS.issuperset(map(str.lower, names)):
        first = os.path.join(folder, names[0])
        remedy = f"call image_folder({first!r}), and so on; or, if these are classes, pass classes={names}"
        found = f"{some_of(names)}, which are parts of the data"
        raise InputError(f"folder {path}: expected a folder for each class, found {found}; {remedy}")
    if images:
        warnings.warn(f"images in {path} itself have no class, and are left out: {some_of(images)}", stacklevel=3)
    return names


def _images(folder: str, names: list[str]) -> list[list[str]]:
    """The paths, from ``folder`` on, of all images in each of the folders of these names, sorted."""
    images, others = [], list[str]()
    for name in names:
        path = os.path.join(folder, name)
        files = [os.path.join(name, file) for file in files_below(path)]
        found = [file for file in files if IMAGES.has(file)]
        if not found:
            remedy = "; delete it, or name the folders that are classes: classes=[...]" if name else ""
            expected = f"images, {', '.join(IMAGES.suffixes)}, found {some_of(os.listdir(path))}"
            raise InputError(f"{'class ' if name else ''}folder {path}: expected {expected}{remedy}")
        images.append(found)
        others += [file for file in files if not IMAGES.has(file) and os.path.basename(file).lower() not in LITTER]
    if others:
        log.warning("folder %s: files left out, without the suffix of an image: %d, such as %r", folder, len(others), others[0])
    return images
