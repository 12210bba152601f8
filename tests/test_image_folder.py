"""`image_folder`: ids, labels and classes of a folder with a folder of images for each class; each class is split alike."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from shmgen import Images, InputError, Loader, image_folder


def make(folder: Path, *names: str) -> Path:
    """Make empty files with these names; they are never opened."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def pets(folder: Path, cats: int = 100, dogs: int = 10) -> Path:
    """A folder of two classes, one of them rare."""
    return make(folder, *(f"cats/{n}.jpg" for n in range(cats)), *(f"dogs/{n}.png" for n in range(dogs)))


def test_ids_labels_and_classes(tmp_path: Path) -> None:
    """All images are found, in order, also in sub-folders and through links; hidden files and other files are left out."""
    make(tmp_path, "dogs/b.JPEG", "dogs/a.png", "cats/small/c.webp", "cats/.hidden.jpg", "cats/notes.txt", ".trash/d.jpg")
    (tmp_path / "birds").symlink_to(tmp_path / "dogs")
    (tmp_path / "cats" / "again").symlink_to(tmp_path / "cats")
    partition, labels, classes = image_folder(tmp_path)
    assert classes == ["birds", "cats", "dogs"]
    ids = ["birds/a.png", "birds/b.JPEG", "cats/small/c.webp", "dogs/a.png", "dogs/b.JPEG"]
    assert partition == {"train": ids, "validation": []}
    assert labels == dict(zip(ids, [0, 0, 1, 2, 2], strict=True))


def test_each_class_is_split_alike(tmp_path: Path) -> None:
    """Each image is in one part; of each class, the rounded fraction is held out, but at least one image and not all."""
    pets(tmp_path)
    for split in (0.1, 0.5, 0.999):
        partition, labels, _ = image_folder(tmp_path, split)
        assert sorted(partition["train"] + partition["validation"]) == sorted(labels)
        counts = Counter(labels[id] for id in partition["validation"])
        assert counts == {0: min(99, round(100 * split)), 1: min(9, max(1, round(10 * split)))}
        assert partition["train"] == sorted(partition["train"], key=list(labels).index)
    make(tmp_path, "birds/only.jpg")
    found = image_folder(tmp_path, 0.5)
    assert "birds/only.jpg" in found.partition["train"], "a class's only image is trained on"
    assert found.ids == sorted(found.labels, key=list(found.labels).index)


def test_classes_may_be_named(tmp_path: Path) -> None:
    """``classes`` sets the order of the classes, and leaves other folders out; with it, a class may be named train."""
    pets(tmp_path, 2, 2)
    make(tmp_path, "other/a.jpg", "train/a.jpg", "val/b.jpg")
    _, labels, classes = image_folder(tmp_path, classes=["dogs", "cats", "train"])
    assert classes == ["dogs", "cats", "train"]
    assert labels == {"dogs/0.png": 0, "dogs/1.png": 0, "cats/0.jpg": 1, "cats/1.jpg": 1, "train/a.jpg": 2}


def test_a_loader_takes_the_ids_and_labels(tmp_path: Path) -> None:
    """A loader takes the ids and labels of `image_folder`: each row is its id's image, with the label of its folder."""
    for name, level in (("cats", 10), ("dogs", 200)):
        (tmp_path / name).mkdir()
        for number in range(6):
            Image.new("L", (9, 9), level + number).save(tmp_path / name / f"{number}.png")
    partition, labels, classes = image_folder(tmp_path, 0.34)
    for ids in partition.values():
        with Loader(ids, labels, 2, source=Images(tmp_path, 4, "L"), n_classes=len(classes), workers=0) as loader:
            for X, y in loader:
                np.testing.assert_array_equal(X[:, 0, 0, 0] > 100, y.argmax(axis=1))


def test_images_without_a_class_are_warned_of(tmp_path: Path) -> None:
    """Images directly in the folder have no class: they are left out, and a warning names them."""
    make(pets(tmp_path, 2, 2), "stray.jpg", "README.md")
    with pytest.warns(UserWarning, match=r"itself have no class, and are left out: 'stray\.jpg'"):
        assert len(image_folder(tmp_path).labels) == 4


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["cats/a.jpg", "dogs/notes.txt"], r"class folder .*/dogs: expected images, .*found 'notes\.txt'; delete it, or name"),
        (["a.jpg", "b.jpg"], r"expected a folder of images for each class, found 'a\.jpg', 'b\.jpg'; give the folder"),
        ([".hidden/a.jpg"], "expected a folder of images for each class, found nothing"),
        (
            ["train/cats/a.jpg", "val/cats/b.jpg"],
            r"found 'train', 'val', which are parts of the data; call image_folder\('.*/train'\), and so on",
        ),
    ],
)
def test_folders_without_classes_are_refused(tmp_path: Path, names: list[str], text: str) -> None:
    """A folder without a folder of images for each class is refused; the error says what was found."""
    with pytest.raises(InputError, match=text):
        image_folder(make(tmp_path, *names))


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    """A missing folder, an unknown or repeated class, and a bad fraction raise errors that say what is expected."""
    pets(tmp_path / "pets", 2, 2)
    with pytest.raises(InputError, match=r"there is no folder .*/pests, and .* has 'pets'"):
        image_folder(tmp_path / "pests")
    with pytest.raises(InputError, match=r"folder .*/dog: expected a folder .*; there is no folder .*'dogs'"):
        image_folder(tmp_path / "pets", classes=["cats", "dog"])
    with pytest.raises(InputError, match="expected each name once, found 'cats' twice"):
        image_folder(tmp_path / "pets", classes=["cats", "cats"])
    for wrong in (1, -0.1, 20, float("nan"), "0.2"):
        with pytest.raises(InputError, match="validation_split: expected a fraction from 0 to below 1"):
            image_folder(tmp_path / "pets", wrong)  # type: ignore[arg-type]


def test_files_other_than_images_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All files with an image's suffix are taken; the log says once how many others there are, not counting those of Windows."""
    images = ["a/1.jfif", "a/2.JPE", "b/3.tga", "b/4.ico"]
    make(tmp_path, *images, "a/Thumbs.db", "a/desktop.ini", "b/.hidden")
    assert image_folder(tmp_path).ids == image_folder(tmp_path, labels=False).ids == images
    assert caplog.messages == []
    make(tmp_path, "a/5.heic", "b/6.txt")
    assert image_folder(tmp_path).ids == images
    assert caplog.messages == [f"folder {tmp_path}: files left out, without the suffix of an image: 2, such as 'a/5.heic'"]


def test_images_without_classes(tmp_path: Path) -> None:
    """With ``labels=False``, ids are all images in the order of their names; the error of a flat folder advises that."""
    make(tmp_path, "b.png", "a.jpg", "sub/c.webp", "notes.txt", ".hidden.png")
    found = image_folder(tmp_path, labels=False)
    assert found.ids == found.partition["train"] == ["a.jpg", "b.png", "sub/c.webp"]
    assert (found.labels, found.classes) == ({}, [])
    training, validation = image_folder(tmp_path, 0.4, labels=False).partition.values()
    assert (len(training), len(validation)) == (2, 1)
    with pytest.raises(InputError, match="without labels, pass labels=False"):
        image_folder(make(tmp_path / "flat", "a.jpg"))
    with pytest.raises(InputError, match=r"expected images, .* found 'notes\.txt'"):
        image_folder(make(tmp_path / "none", "notes.txt"), labels=False)


def test_parts_of_the_data_in_capitals_are_no_classes(tmp_path: Path) -> None:
    """Folders ``Training`` and ``Testing`` are parts of the data, as ``training`` and ``testing`` are."""
    with pytest.raises(InputError, match="which are parts of the data"):
        image_folder(make(tmp_path, "Training/a/1.jpg", "Testing/a/1.jpg"))
