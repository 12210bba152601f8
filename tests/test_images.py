"""Images: all formats of Pillow become rows, upright and of one size; errors name broken files."""

from __future__ import annotations

import io
import json
import logging
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import python
from PIL import Image, ImageFile, ImageOps
from sklearn.datasets import load_sample_images

from shmgen import Images, InputError, Loader, Remote, SampleError
from shmgen._sources import image_decoder
from shmgen._sources.image_decoder import ImageDecoder


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """A smooth picture: red grows to the right, green downwards."""
    red, green = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([red, green, np.full_like(red, 80)], axis=2).astype(np.uint8))


def row_of(folder: Path, id: str, size: Any = None, mode: Any = "RGB", resize: Any = "crop", **options: Any) -> np.ndarray:
    """The row that `Images` makes from one file."""
    source = Images(folder, size, mode, resize, **options)
    with Loader([id], None, 1, source=source, workers=0) as loader:
        (X,) = loader.batch(0)
        row: np.ndarray = X[0].copy()
    return row


def refused(folder: Path, id: str, **options: Any) -> str:
    """The reason in the error of one file."""
    with pytest.raises(SampleError) as caught:
        row_of(folder, id, **options)
    assert caught.value.path.startswith(f"{folder}/")
    return caught.value.reason


def test_formats(tmp_path: Path) -> None:
    """In each format, rows have the pixels of their file: exactly if the format is lossless."""
    ids = [f"{number}.{suffix}" for suffix in ("png", "jpg", "webp", "bmp", "tif", "gif", "ppm", "tga") for number in range(2)]
    images = [picture(), picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    for id in ids:
        images[int(id[0])].save(tmp_path / id, quality=95)
    with Loader(ids, range(16), 2, source=Images(tmp_path), workers=2) as loader:
        for X, y in loader:
            assert X.dtype == np.uint8
            for row, number in zip(X, y.tolist(), strict=True):
                lossless = ids[number].endswith(("png", "bmp", "tif", "ppm"))
                assert np.abs(row - np.asarray(images[number % 2]).astype(int)).mean() <= (0 if lossless else 6)


def test_a_worker_without_images_has_no_pillow(folder: Callable) -> None:
    """Only a worker that reads images imports Pillow."""
    data = folder(4)
    picture().save(data.path / "a.png")
    script = f"""
import json, pickle, subprocess, sys
from shmgen import Npy
before = "PIL" in sys.modules
from shmgen import Images
npy, images = Npy({str(data.path)!r}), Images({str(data.path)!r}, 8)
npy.bind(["id-0"])
images.bind(["a"])
def loaded(source):
    code = "import sys, pickle; pickle.load(sys.stdin.buffer); print('PIL' in sys.modules, 'numpy' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(source), capture_output=True, check=True)
    return ended.stdout.split()
print(json.dumps([before, *(word.decode() for source in (npy, images) for word in loaded(source))]))
"""
    assert json.loads(python("-c", script, check=True).stdout) == [False, "False", "False", "True", "True"]


MODES = {
    "1": picture().convert("1"),
    "L": picture().convert("L"),
    "LA": picture().convert("LA"),
    "P": picture().quantize(16),
    "RGB": picture(),
    "RGBA": picture().convert("RGBA"),
}


def test_modes(tmp_path: Path) -> None:
    """A row has the requested mode, whatever the file's mode is, with the numbers of Pillow's conversion."""
    for stored, image in MODES.items():
        image.save(tmp_path / f"{stored}.png")
        for mode, channels in (("RGB", 3), ("L", 1), ("RGBA", 4)):
            row = row_of(tmp_path, stored, mode=mode)
            np.testing.assert_array_equal(row, np.asarray(image.convert(mode)).reshape(row.shape))
            assert row.shape == (30, 40, channels)


def test_a_transparent_palette(tmp_path: Path) -> None:
    """A palette with transparency keeps its colours, and in mode RGBA its transparency, too; no warning is shown."""
    image = Image.new("P", (4, 4), 1)
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "a.png", transparency=b"\xff\x00")
    for mode, expected in (("RGB", [40, 50, 60]), ("RGBA", [40, 50, 60, 0])):
        assert row_of(tmp_path, "a", mode=mode)[0, 0].tolist() == expected


def test_masks_keep_their_numbers(tmp_path: Path) -> None:
    """Mode P gives a palette's or grey image's numbers, not colours; resizing a mask creates no new numbers."""
    numbers = np.array([[0, 7], [7, 255]], np.uint8).repeat(8, 0).repeat(8, 1)
    image = Image.fromarray(numbers).convert("P")
    image.putpalette(bytes(range(255, -1, -1)) * 3)
    image.save(tmp_path / "palette.png")
    Image.fromarray(numbers).save(tmp_path / "grey.png")
    Image.fromarray(numbers > 0).save(tmp_path / "bits.png")
    for name in ("palette", "grey"):
        np.testing.assert_array_equal(row_of(tmp_path, name, mode="P")[..., 0], numbers)
        assert set(np.unique(row_of(tmp_path, name, (5, 5), "P"))) == {0, 7, 255}
    np.testing.assert_array_equal(row_of(tmp_path, "bits", mode="P")[..., 0], numbers > 0)
    picture().save(tmp_path / "colours.png")
    assert "found mode 'RGB'; pass mode='RGB'" in refused(tmp_path, "colours", mode="P")


def packed(numbers: np.ndarray, bits: int) -> bytes:
    """Numbers packed into ``bits`` bits each, highest bit first; each line begins with a new byte."""
    unpacked = np.unpackbits(numbers.astype(">u4").view(np.uint8).reshape(*numbers.shape, 4), axis=2)[..., 32 - bits :]
    return np.packbits(unpacked.reshape(len(numbers), -1), axis=1).tobytes()


def png(numbers: np.ndarray, bits: int) -> bytes:
    """A grey PNG."""
    lines = packed(numbers, bits)
    height, width = numbers.shape
    filtered = b"".join(b"\0" + lines[at : at + len(lines) // height] for at in range(0, len(lines), len(lines) // height))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(filtered)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def tiff(numbers: np.ndarray, bits: int, *, white_is_zero: bool = False) -> bytes:
    """An uncompressed grey TIFF, whose pixels begin at byte 8."""
    data = packed(numbers, bits)
    height, width = numbers.shape
    tags = {
        256: width,
        257: height,
        258: bits,
        259: 1,
        262: 0 if white_is_zero else 1,
        273: 8,
        277: 1,
        278: height,
        279: len(data),
    }
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + table + bytes(4)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_masks_of_few_bits_keep_their_numbers(tmp_path: Path, bits: int) -> None:
    """Grey of 1 to 8 bits gives class numbers from 0 on, although Pillow scales them to 255 and may invert them."""
    numbers = (np.arange(9 * 16).reshape(9, 16) * 7 % 2**bits).astype(np.uint8)
    (tmp_path / "a.png").write_bytes(png(numbers, bits))
    (tmp_path / "b.tif").write_bytes(tiff(numbers, bits))
    (tmp_path / "c.tif").write_bytes(tiff(numbers, bits, white_is_zero=True))
    (tmp_path / "d.pgm").write_bytes(b"P5 16 9 %d\n" % (2**bits - 1) + numbers.tobytes())
    for id in ("a.png", "b.tif", "c.tif", "d.pgm"):
        np.testing.assert_array_equal(row_of(tmp_path, id, mode="P")[..., 0], numbers, id)
        assert set(np.unique(row_of(tmp_path, id, (3, 7), "P"))) <= set(range(2**bits))


DEEP = np.linspace(0, 65535, 30 * 40).reshape(30, 40).astype(np.uint16)


def test_16_bits(tmp_path: Path) -> None:
    """Mode I;16 keeps 16 bits, 8-bit modes the upper 8; 8 bits become 16 with white kept; resized pixels are means."""
    Image.fromarray(DEEP).save(tmp_path / "deep.png")
    row = row_of(tmp_path, "deep", mode="I;16")
    assert row.dtype == np.uint16
    np.testing.assert_array_equal(row[..., 0], DEEP)
    for mode in ("L", "RGB"):
        np.testing.assert_array_equal(row_of(tmp_path, "deep", mode=mode)[..., 0], DEEP >> 8)
    picture().convert("L").save(tmp_path / "grey.png")
    np.testing.assert_array_equal(
        row_of(tmp_path, "grey", mode="I;16")[..., 0], np.asarray(picture().convert("L")) * np.uint16(257)
    )
    half = row_of(tmp_path, "deep", (15, 20), "I;16")[4:-4, 4:-4, 0].astype(float)
    means = DEEP.reshape(15, 2, 20, 2).mean(axis=(1, 3))[4:-4, 4:-4]
    assert np.abs(half - means).max() <= 2


def test_lossy_modes_are_refused(tmp_path: Path) -> None:
    """Images that a mode can't hold without loss (colours in I;16, floats, 32 bits) are refused with a remedy."""
    picture().save(tmp_path / "colours.png")
    assert "found mode 'RGB'; pass mode='RGB'" in refused(tmp_path, "colours", mode="I;16")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "floats.tif")
    assert "found floats; convert it" in refused(tmp_path, "floats")
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "wide.tif")
    Image.fromarray(np.full((4, 4), 200, np.int32)).save(tmp_path / "small.tif")
    assert "found one of 32, which does not say what is white; pass mode='I;16'" in refused(tmp_path, "small")
    assert row_of(tmp_path, "small", mode="I;16")[0, 0, 0] == 200
    assert "found 70,000 to 70,000; convert it" in refused(tmp_path, "wide", mode="I;16")


def test_12_bits(tmp_path: Path) -> None:
    """From 12 bits, mode L keeps the upper 8, and mode I;16 the file's numbers."""
    numbers = DEEP >> 4
    (tmp_path / "a.tif").write_bytes(tiff(numbers, 12))
    np.testing.assert_array_equal(row_of(tmp_path, "a", mode="L")[..., 0], numbers >> 4)
    np.testing.assert_array_equal(row_of(tmp_path, "a", mode="I;16")[..., 0], numbers)


def near(row: np.ndarray, image: Image.Image, within: float = 3.0) -> bool:
    """Whether a row shows the picture, except for interpolation at the edges."""
    return bool(np.abs(row[2:-2, 2:-2].astype(int) - np.asarray(image)[2:-2, 2:-2]).max() <= within)


@pytest.mark.parametrize(("suffix", "within"), [("png", 3), ("jpg", 12)])
def test_crop_is_the_middle(tmp_path: Path, suffix: str, within: int) -> None:
    """The default crop fills a row with the image's middle, in proportion, also if a JPEG is decoded at a smaller scale."""
    for width, height in ((300, 400), (40, 30), (401, 33)):
        picture(width, height).save(tmp_path / f"a.{suffix}", quality=95)
        row = row_of(tmp_path, "a", (60, 60))
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        expected = picture(width, height).resize((60, 60), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
        assert near(row, expected, within), (width, height)


def test_pad_keeps_the_whole_image(tmp_path: Path) -> None:
    """With ``resize='pad'``, the image is in the middle of the row, and the rest is 0, also in a slot used before."""
    Image.new("RGB", (400, 200), (9, 9, 9)).save(tmp_path / "wide.png")
    Image.new("RGB", (200, 400), (9, 9, 9)).save(tmp_path / "high.png")
    source = Images(tmp_path, (40, 40), resize="pad")
    with Loader(["wide", "high"] * 4, None, 1, source=source, slots=2, workers=0, shuffle=False) as loader:
        for number, (X,) in enumerate(loader):
            expected = np.zeros((40, 40, 3), np.uint8)
            expected[(slice(10, 30), slice(0, 40)) if number % 2 == 0 else (slice(0, 40), slice(10, 30))] = 9
            np.testing.assert_array_equal(X[0], expected)


def test_an_image_of_the_rows_size_is_not_interpolated(tmp_path: Path) -> None:
    """An image of the row's size is not interpolated, whatever ``resize`` says."""
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    for resize in ("crop", "pad", "stretch"):
        np.testing.assert_array_equal(row_of(tmp_path, "a", (30, 40), resize=resize), noise)


def test_a_large_jpeg_is_decoded_at_twice_the_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large JPEG is decoded at the smallest scale that has at least twice the row's size."""
    picture(1600, 1200).save(tmp_path / "a.jpg", quality=95)
    decoded = []
    resized = ImageDecoder._resized

    def watched(self: ImageDecoder, pixels: np.ndarray, *args: Any) -> np.ndarray:
        decoded.append(pixels.shape[:2])
        return resized(self, pixels, *args)

    monkeypatch.setattr(ImageDecoder, "_resized", watched)
    row_of(tmp_path, "a", (150, 200))
    row_of(tmp_path, "a", (151, 200))
    assert set(decoded) == {(300, 400), (600, 800)}


PHOTOS = [Image.fromarray(photo) for photo in load_sample_images().images]
"""Two photographs of 640 x 427."""

NOISE = Image.fromarray((np.random.default_rng(0).integers(0, 2, (480, 640)) * 255).astype(np.uint8)).convert("RGB")
"""Random black and white pixels, for which decoding at a smaller scale loses the most."""


@pytest.mark.parametrize(("mode", "size"), [("RGB", None), ("L", 96)])
def test_pillow_alone_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, size: Any) -> None:
    """Without the faster packages, pixels differ by at most 2 of 255, and not at all without resizing."""
    PHOTOS[0].save(tmp_path / "0.jpg", quality=90)
    PHOTOS[1].save(tmp_path / "1.jpg", progressive=True, subsampling=0, quality=75)
    PHOTOS[0].convert("L").save(tmp_path / "2.jpg")
    PHOTOS[1].convert("CMYK").save(tmp_path / "3.jpg")
    NOISE.save(tmp_path / "4.jpg", quality=100)
    PHOTOS[0].save(tmp_path / "5.png")
    PHOTOS[1].crop((0, 0, 333, 427)).save(
        tmp_path / "6.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0" + bytes(4)
    )
    data = (tmp_path / "0.jpg").read_bytes()
    (tmp_path / "7.jpg").write_bytes(data[:20] + b"junk" + data[20:])  # damaged, but Pillow can read it
    assert image_decoder.IS_FAST
    for number in range(8):
        fast = row_of(tmp_path, str(number), size, mode)
        with monkeypatch.context() as patch:
            patch.setattr(image_decoder, "IS_FAST", False)
            by_pillow = row_of(tmp_path, str(number), size, mode)
        assert np.abs(fast.astype(int) - by_pillow).max() <= (0 if size is None else 2), number


def test_a_jpeg_that_is_not_resized_is_decoded_into_its_row(tmp_path: Path) -> None:
    """A JPEG is decoded directly into a row of its shape and dtype; other rows are not written to."""
    PHOTOS[0].save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    row = np.zeros((427, 640, 3), np.uint8)
    decode = ImageDecoder(None, "RGB", "crop", "bilinear").decode
    assert decode(data, row) is row
    np.testing.assert_array_equal(row, decode(data))
    for other in (np.zeros((427, 640, 3), np.float32), np.zeros((427, 641, 3), np.uint8), np.zeros((640, 427, 3), np.uint8)):
        np.testing.assert_array_equal(decode(data, other), row)
        assert not other.any()


def test_a_jpeg_decoded_at_a_smaller_scale(tmp_path: Path) -> None:
    """A JPEG decoded at a smaller scale differs by no more than is documented; with "nearest", not at all."""
    for image, size, most in ((PHOTOS[0], 64, 10), (NOISE, 32, 15), (NOISE, 96, 15)):
        image.save(tmp_path / "a.jpg", quality=95)
        Image.open(tmp_path / "a.jpg").save(tmp_path / "whole.png")
        small, whole = (row_of(tmp_path, id, size, resize="stretch").astype(int) for id in ("a", "whole"))
        assert np.abs(small - whole).max() <= most
        assert np.abs(small - whole).mean() < 3
        small, whole = (row_of(tmp_path, id, size, interpolation="nearest") for id in ("a", "whole"))
        np.testing.assert_array_equal(small, whole)


def test_images_stand_upright(tmp_path: Path) -> None:
    """Whatever its EXIF orientation, an image stands upright in the row, cropped, padded or whole."""
    turned = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    seen = picture(320, 200)
    for orientation, turn in turned.items():
        stored = seen if turn is None else seen.transpose(turn)
        exif = Image.Exif()
        exif[0x0112] = orientation
        for id in ("a.jpg", "a.png"):
            stored.save(tmp_path / id, exif=exif, quality=95)
            assert near(row_of(tmp_path, id), seen, 12), orientation
            assert near(row_of(tmp_path, id, (20, 32)), picture(32, 20), 24), orientation
            assert row_of(tmp_path, id, (41, 64), resize="pad")[:, 32].any(axis=1).tolist() == [True] * 40 + [False]


def test_exif_orientation_is_found_anywhere() -> None:
    """The orientation is found where Pillow finds it: in late EXIF, after a fill byte, in a second EXIF part, and in XMP."""
    exif, image = Image.Exif(), io.BytesIO()
    exif[0x0112] = 6
    picture().save(image, "JPEG", exif=exif)
    data = image.getvalue()
    start, scan = data.index(b"\xff\xe1"), data.index(b"\xff\xda")
    stop = start + 2 + int.from_bytes(data[start + 2 : start + 4], "big")
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation='6'/>"
    told = {
        "before the pixels": data[:start] + data[stop:scan] + data[start:stop] + data[scan:],
        "behind a filling byte": data[:start] + b"\xff" + data[start:],
        "second": data[:start] + b"\xff\xe1\0\x08Exif\0\0" + data[start:],
        "XMP": data[:start] + b"\xff\xe1" + (2 + len(xmp)).to_bytes(2, "big") + xmp + data[stop:],
    }
    for where, file in told.items():
        with Image.open(io.BytesIO(file)) as opened:
            upright = ImageOps.exif_transpose(opened).convert("RGB")
        assert np.array_equal(ImageDecoder(None, "RGB", "stretch", "bilinear").decode(file), np.asarray(upright)), where


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_truncated_image_is_an_error(tmp_path: Path, suffix: str) -> None:
    """A file that ends anywhere before its last pixel raises an error with a remedy; it never becomes a partial row."""
    whole = io.BytesIO()
    picture().save(whole, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix))
    data = whole.getvalue()
    source = Images(tmp_path, 16)
    decode = ImageDecoder((16, 16), "RGB", "crop", "bilinear").decode
    for kept in range(0, len(data), max(1, len(data) // 15)):
        (tmp_path / f"a.{suffix}").write_bytes(data[:kept])
        if len(data) - kept <= 20 and suffix == "png":  # only checksum and end mark are missing, no pixels
            np.testing.assert_array_equal(decode(data[:kept]), decode(data))
            continue
        with pytest.raises(SampleError, match=r"a\.\w+: expected an? .*found.*; (write or copy it again|convert it)"):
            source.bind(["a"])


def test_a_broken_image_is_named_or_replaced(tmp_path: Path) -> None:
    """A broken image raises an error with id and file; with ``on_error="replace"``, another sample and its label replace it."""
    for number in range(8):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.jpg", quality=100)
    (tmp_path / "5.jpg").write_bytes((tmp_path / "5.jpg").read_bytes()[:300])
    ids = [f"{number}.jpg" for number in range(8)]
    options: dict[str, Any] = {"source": Images(tmp_path, 8), "batch_size": 4, "shuffle": False, "workers": 1}
    with Loader(ids, **options) as loader:
        loader.batch(0)
        with pytest.raises(SampleError, match=r"sample '5\.jpg', file .*/5\.jpg: expected a whole image, found") as caught:
            loader.batch(1)
        assert caught.value.id == "5.jpg"
    with Loader(ids, range(8), on_error="replace", max_damaged=0.5, **options) as loader:
        X, y = loader.batch(1)
        assert y[1] != 5
        assert np.abs(X[:, 0, 0, 0].astype(int) - y).max() <= 1
        assert [damaged.id for damaged in loader.damaged] == ["5.jpg"]


def test_other_things_than_images_are_named(tmp_path: Path) -> None:
    """Errors say whether an empty file, another kind of file, a folder or a pipe was found."""
    (tmp_path / "empty.png").touch()
    assert "an empty file (0 bytes); write or copy it again" in refused(tmp_path, "empty.png")
    (tmp_path / "text.png").write_text("hello, world")
    assert "one that begins with b'hello, w'; convert it" in refused(tmp_path, "text.png")
    (tmp_path / "folder.png").mkdir()
    assert "found a directory" in refused(tmp_path, "folder.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "an empty file" in refused(tmp_path, "pipe.png")


def test_ids_with_and_without_a_suffix(tmp_path: Path) -> None:
    """Ids may have a suffix or not, in sub-folders, too; a given ``suffix`` is always added."""
    (tmp_path / "cats").mkdir()
    for number, name in enumerate(["a.png", "cats/b.JPG", "c.001.png", "d.jpeg"]):
        Image.new("L", (8, 8), number * 40).save(tmp_path / name, {"JPG": "JPEG", "jpeg": "JPEG"}.get(name.split(".")[-1], "PNG"))
    for ids in (["a", "cats/b", "c.001", "d"], ["a.png", "cats/b.JPG", "c.001.png", "d.jpeg"]):
        with Loader(ids, None, 4, source=Images(tmp_path, mode="L"), shuffle=False, workers=0) as loader:
            assert loader.batch(0)[0][:, 0, 0, 0].tolist() == [0, 40, 80, 120]
    assert row_of(tmp_path, "a", suffix=".png").shape == (8, 8, 3)
    with pytest.raises(SampleError) as caught:
        row_of(tmp_path, "a", suffix=".gif")
    assert caught.value.path == str(tmp_path / "a.gif")
    Image.new("L", (8, 8)).save(tmp_path / "7.001.png")
    with Loader([7], None, 1, source=Images(tmp_path, suffix=".001.png"), workers=0) as loader:
        assert loader.batch(0)[0].shape == (1, 8, 8, 3)


def test_two_files_of_one_id(tmp_path: Path) -> None:
    """An id that fits two files is refused, unless the suffix is given, or one file has the first sample's suffix."""
    Image.new("L", (8, 8), 1).save(tmp_path / "a.png")
    Image.new("L", (8, 8), 2).save(tmp_path / "a.bmp")
    assert "found a.png and a.bmp; pass suffix='.png', for one" in refused(tmp_path, "a")
    assert row_of(tmp_path, "a", suffix=".bmp")[0, 0, 0] == 2
    os.link(tmp_path / "a.png", tmp_path / "b.png")
    os.link(tmp_path / "a.png", tmp_path / "b.PNG")
    assert row_of(tmp_path, "b")[0, 0, 0] == 1
    Image.new("L", (8, 8), 1).save(tmp_path / "c.png")
    Image.new("L", (8, 8), 2).save(tmp_path / "c.JPG", "JPEG")
    assert "found c.JPG and c.png; pass suffix='.JPG', for one" in refused(tmp_path, "c")
    with Loader(["a.png", "c"], None, 2, source=Images(tmp_path), shuffle=False, workers=0) as loader:
        assert loader.batch(0)[0][:, 0, 0, 0].tolist() == [1, 1]


def test_a_missing_image_names_similar_files(tmp_path: Path) -> None:
    """The error of a missing image names what exists: another suffix, another folder, a similar id."""
    (tmp_path / "photos").mkdir()
    picture().save(tmp_path / "photos" / "a.png")
    assert "a.png is there: pass [os.path.splitext(id)[0] for id in ids]" in refused(tmp_path / "photos", "a.jpg")
    assert "photos has 'a.png'" in refused(tmp_path / "photos", "b")
    picture().save(tmp_path / "photos" / "b.sgi")
    assert "; b.sgi is there: pass suffix='.sgi' if it is an image" in refused(tmp_path / "photos", "b")
    assert row_of(tmp_path / "photos", "b", suffix=".sgi").shape == row_of(tmp_path / "photos", "a").shape
    assert "photos has 'b.sgi'" in refused(tmp_path / "photos", "b.png")
    for suffix in ("jpg", "png"):
        picture().save(tmp_path / "photos" / f"c.{suffix}")
    assert "photos has 'c.png'" in refused(tmp_path / "photos", "c.PNG")
    assert "there is no folder" in refused(tmp_path / "photo", "a")
    remedy = r"; a\.png is there: pass the source of such files, as Images\(folder\)"
    for id in ("a", "a.png"):
        with pytest.raises(SampleError, match=remedy):
            Loader([id], None, 1, data_dir=tmp_path / "photos")


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    """Without a size, rows have the first image's, and an image of another size raises an error that advises to give one."""
    picture().save(tmp_path / "a.png")
    picture(41, 30).save(tmp_path / "b.png")
    with (
        Loader(["a", "b"], None, 1, source=Images(tmp_path), shuffle=False, workers=0) as loader,
        pytest.raises(SampleError, match=r"found \(30, 41, 3\); pass size="),
    ):
        list(loader)


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    """Wrong arguments raise errors that say what is expected."""
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"mode": "BGR"}, "mode: expected 'RGB' or 'L'"),
        ({"resize": "fit"}, "resize: expected 'crop' or 'pad' or 'stretch', found 'fit'"),
        ({"interpolation": "cubic"}, "interpolation: expected 'nearest'"),
        ({"size": (1, 2, 3)}, r"size: expected \(height, width\) in pixels, found \(1, 2, 3\)"),
        ({"size": (0, 5)}, "size: expected an int from 1, found 0"),
        ({"size": "224"}, "size: expected an int from 1, found '224'"),
        ({"dim": (1, 2, 3)}, r"dim: expected \(height, width\) in pixels, found \(1, 2, 3\)"),
    ]
    for options, text in mistakes:
        with pytest.raises(InputError, match=text):
            Images(tmp_path, **options)


def test_without_pillow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow, `Images` can be imported, and its constructor's error says what to install."""
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.delitem(sys.modules, "shmgen._sources.image_decoder", raising=False)
    monkeypatch.delattr("shmgen._sources.image_decoder", raising=False)
    with pytest.raises(InputError, match=r"pip install 'shmgen\[images\]'"):
        Images("photos")


def test_faster_packages_are_suggested_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """If only Pillow is installed, the log says once what to install for more speed; otherwise, nothing."""
    image_decoder.say_once_if_slow.cache_clear()
    picture().save(tmp_path / "a.jpg")
    with caplog.at_level(logging.WARNING, "shmgen"):
        row_of(tmp_path, "a")
        assert not caplog.messages
        image_decoder.say_once_if_slow.cache_clear()
        monkeypatch.setattr(image_decoder, "IS_FAST", False)
        row_of(tmp_path, "a")
        row_of(tmp_path, "a")
    [said] = caplog.messages
    assert said.endswith("pip install 'shmgen[images]'")
    image_decoder.say_once_if_slow.cache_clear()


def test_pillows_settings_hold_in_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow's settings for the maximum size and for truncated files apply in workers, too."""
    picture().save(tmp_path / "a.jpg", quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "b.jpg").write_bytes(data[: len(data) - 30])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with Loader(["a", "b"], None, 2, source=Images(tmp_path), workers=1) as loader:
        assert loader.batch(0)[0].shape == (2, 30, 40, 3)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
    source = Images(tmp_path, size=8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)  # Pillow raises an error above twice that
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "1.png")
    with (
        Loader(["0", "1"], None, 2, source=source, workers=1) as loader,
        pytest.raises(SampleError, match="exceeds limit of 1400"),
    ):
        loader.batch(0)


def test_registered_formats_are_read_in_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A format that the main process has registered with Pillow is read in workers."""

    class Flag(ImageFile.ImageFile):
        format = "FLAG"

        def _open(self) -> None:
            self._mode, self._size = "RGB", (4, 2)
            self.tile = [ImageFile._Tile("raw", (0, 0, 4, 2), 8, "RGB")]

    for table in ("OPEN", "ID"):
        monkeypatch.setattr(Image, table, getattr(Image, table).copy())
    Image.register_open("FLAG", Flag, lambda prefix: prefix.startswith(b"FLAGFLAG"))
    (tmp_path / "a.flag").write_bytes(b"FLAGFLAG" + bytes(range(24)))
    with Loader(["a"], None, 1, source=Images(tmp_path, suffix=".flag"), workers=1) as loader:
        np.testing.assert_array_equal(loader.batch(0)[0].ravel(), range(24))


def places(folder: Path) -> list[str]:
    """Write images of several sizes, whose pixels are (row, column, 7), and masks of their rows; return the ids."""
    (folder / "masks").mkdir()
    ids = [f"{number}.png" for number in range(12)]
    for number, id in enumerate(ids):
        rows, columns = np.mgrid[: 12 + number, : 16 + number % 5].astype(np.uint8)
        Image.fromarray(np.stack([rows, columns, np.full_like(rows, 7)], axis=2)).save(folder / id)
        Image.fromarray(rows).save(folder / "masks" / id)
    return ids


def test_random_crops(tmp_path: Path) -> None:
    """Images are resized to ``size``, and a transform crops them at random to ``dim``, differently in each epoch."""
    ids = places(tmp_path)
    seen = set()

    def crop(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        seen.add(x.shape)
        top, left = rng.integers(x.shape[0] - 7), rng.integers(x.shape[1] - 7)
        return x[top : top + 8, left : left + 8]

    for size in (None, (10, 12)):
        seen.clear()
        with Loader(ids, None, 12, source=Images(tmp_path, size, dim=8), transform=crop, workers=0, shuffle=False) as loader:
            epochs = [np.array(X) for _ in range(2) for (X,) in loader]
            assert epochs[0].shape == (12, 8, 8, 3)
            assert not np.array_equal(epochs[0], epochs[1])
        if size:
            assert seen == {(10, 12, 3)}
        else:
            assert (epochs[0][..., 0] == epochs[0][:, :1, :1, 0] + np.arange(8)[:, None]).all()
            assert (epochs[0][..., 1] == epochs[0][:, :1, :1, 1] + np.arange(8)).all()


def test_smaller_images_are_padded(tmp_path: Path) -> None:
    """With ``pad_value``, smaller images are padded on the right and below; a larger one raises an error."""
    ids = places(tmp_path)
    with Loader(ids, None, 12, source=Images(tmp_path, dim=(24, 21), pad_value=9), shuffle=False, workers=0) as loader:
        (X,) = loader.batch(0)
        for number, row in enumerate(X):
            assert (row[12 + number :] == 9).all()
            assert (row[:, 16 + number % 5 :] == 9).all()
            assert (row[: 12 + number, : 16 + number % 5, 2] == 7).all()
    with (
        Loader(ids, None, 12, source=Images(tmp_path, dim=(22, 21), pad_value=9), shuffle=False, workers=0) as loader,
        pytest.raises(SampleError, match=r"11\.png: .*found \(23, 17, 3\)"),
    ):
        loader.batch(0)


def test_a_format_that_another_thread_is_loading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While another thread loads Pillow's plugin for a format, an image of it does not count as broken."""
    picture().save(tmp_path / "a.webp", lossless=True)
    data = (tmp_path / "a.webp").read_bytes()
    monkeypatch.setattr(Image, "ID", [name for name in Image.ID if name != "WEBP"])

    def loaded_by_another_thread() -> bool:
        if "WEBP" not in Image.ID and asked:
            Image.ID.append("WEBP")
        asked.append(True)
        return False

    asked: list[bool] = []
    monkeypatch.setattr(Image, "init", loaded_by_another_thread)
    np.testing.assert_array_equal(ImageDecoder(None, "RGB", "crop", "bilinear").decode(data), np.asarray(picture()))


def test_images_at_a_url(root: Path, proxy: Any, tmp_path: Path) -> None:
    """Images at a URL take one request each, and none once cached; a broken one is not cached, and read once repaired."""
    ids = [f"{number}.png" for number in range(6)]
    for number, id in enumerate(ids):
        Image.new("L", (8, 8), number).save(root / id)
    whole = (root / ids[5]).read_bytes()
    (root / ids[5]).write_bytes(whole[:-30])
    images = Images(Remote(proxy.url, cache=tmp_path / "cache"), mode="L")
    with Loader(ids, None, 5, source=images, shuffle=False, workers=0, tail="keep") as loader:
        assert loader.batch(0)[0][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
        with pytest.raises(SampleError, match=f"sample '5.png', {proxy.url}/5.png: expected a whole image"):
            loader.batch(1)
        (root / ids[5]).write_bytes(whole)
        assert loader.batch(1)[0][:, 0, 0, 0].tolist() == [5]
    proxy.requests.clear()
    with Loader(ids, None, 6, source=images, shuffle=False, workers=1) as loader:
        assert loader.batch(0)[0][:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert proxy.requests == []
    with pytest.raises(InputError, match=r"id 'a': expected one that ends in the suffix of an image.*; pass suffix='\.jpg'"):
        Loader(["a"], None, 1, source=Images(proxy.url))
    with Loader([0, 1], None, 2, source=Images(proxy.url, suffix=".png", mode="L"), shuffle=False, workers=1) as loader:
        assert loader.batch(0)[0][:, 0, 0, 0].tolist() == [0, 1]
