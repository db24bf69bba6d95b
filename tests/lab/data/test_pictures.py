"""A picture of any mode in any file comes out as a person sees it, or is refused by name."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibnorm.errors import UsageError
from calibnorm.lab.data import read_picture, to_rgb
from lab.data.drawn_pictures import COLOR_LOSS, DEEP, MODES, RAMP, SIXTEEN, drawn, seen

FORMATS = (
    *("AVIF", "BMP", "DDS", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "MSP", "PCX"),
    *("PNG", "PPM", "QOI", "SGI", "SPIDER", "TGA", "TIFF", "WEBP", "XBM"),
)
"""Those that Pillow writes and reads, in any size; IM is going to be removed from it."""
LOSS = {"JPEG": 35, "MPO": 35, "AVIF": 8, "WEBP": 16}
"""What a format itself loses of a value at most; JPEG of black dots beside white ones."""
WRITES_LESS = {
    **{(form, mode): "8 bits, whatever is above is cut off" for form in ("AVIF", "GIF", "WEBP") for mode in DEEP},
    **{("GIF", mode): "transparent or not, nothing between" for mode in ("LA", "RGBA")},
    **{(form, "RGBA"): "opacity is lost" for form in ("BMP", "DIB", "PPM")},
}
"""What Pillow does not write as it is."""


@pytest.mark.parametrize("mode", [*MODES, *DEEP])
def test_a_picture_in_memory(mode: str) -> None:
    shown = to_rgb(drawn(mode))
    assert shown.mode == "RGB"
    assert np.abs(np.asarray(shown) - seen(mode)).max() <= COLOR_LOSS.get(mode, 1)


@pytest.mark.parametrize("mode", [*MODES, *DEEP])
def test_a_picture_in_each_format_that_writes_it(tmp_path: Path, mode: str) -> None:
    read = []
    for form in FORMATS:
        path = tmp_path / f"picture.{form.lower()}"
        try:
            drawn(mode).save(path, format=form, quality=95)
        except (OSError, ValueError, TypeError, KeyError):
            continue  # the format has no such mode
        if (form, mode) in WRITES_LESS:
            assert read_picture(path).size == (24, 16)
        elif form == "SPIDER" and mode != "F":  # written as decimal fractions of 0 to 255, or of 0 to 65535
            with pytest.raises(UsageError, match=r"mode F is read as 0 \(black\) to 1 \(white\)"):
                read_picture(path)
        else:
            error = np.abs(np.asarray(read_picture(path)) - seen(mode)).max()
            assert error <= COLOR_LOSS.get(mode, 1) + LOSS.get(form, 0), form
        read.append(form)
    assert read or mode == "La"


@pytest.mark.parametrize("form", ["PNG", "TIFF", "PPM"])
def test_deep_gray_is_that_of_eight_bits(tmp_path: Path, form: str) -> None:
    """The same picture in 8 and in 16 bits is the same, to the bit: at all 65536 values, and in decimal fractions."""
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    path = tmp_path / "deep"
    Image.fromarray(values).save(path, format=form)
    assert np.array_equal(np.asarray(read_picture(path))[..., 0], np.rint(values / 257).astype(np.uint8))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (RAMP.astype(np.uint16), "0 to 255, and mode I;16"),
        (RAMP.astype(np.int32), "0 to 255, and mode I "),
        (SIXTEEN.astype(np.int32) * 4, "0 to 262140, and mode I "),
        (SIXTEEN.astype(np.int32) - 9000, "-9000 to 56535, and mode I "),
        (RAMP.astype(np.float32), "0 to 255, and mode F "),
        ((RAMP / 255 - 0.5).astype(np.float32), "-0.5 to 0.5, and mode F "),
        (np.full((2, 2), np.nan, dtype=np.float32), "nan to nan, and mode F "),
        (np.full((2, 2), np.inf, dtype=np.float32), "inf to inf, and mode F "),
        ((RAMP / 1e5).astype(np.float32), "0 to 0.00255, and mode F "),
    ],
)
def test_deep_gray_that_would_be_black_or_white_is_refused(tmp_path: Path, values: np.ndarray, found: str) -> None:
    path = tmp_path / "deep.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(UsageError) as error:
        read_picture(path)
    assert str(error.value).startswith(f"{path}: no picture that can be read (its values are {found}")
    assert "scale them to that range, or save 8 bits" in str(error.value)


def test_a_black_picture_of_many_bits_is_black() -> None:
    for mode in DEEP:
        assert to_rgb(Image.new(mode, (2, 2))).getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize(
    ("bits", "white_is_zero", "data", "gray"),
    [
        (16, False, struct.pack("<3H", 0, 25700, 65535), [0, 100, 255]),
        (16, True, struct.pack("<3H", 0, 25700, 65535), [255, 155, 0]),
        (12, False, bytes([0x00, 0x06, 0x46, 0xFF, 0xF0]), [0, 100, 255]),
        (8, True, bytes([0, 100, 255]), [255, 155, 0]),
    ],
)
def test_tiff_says_how_its_numbers_are_meant(bits: int, white_is_zero: bool, data: bytes, gray: list[int]) -> None:
    """Files that Pillow reads and does not write: 12 bits, and 16 bits with white as the smallest value."""
    tags = {256: 3, 257: 1, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 134, 277: 1, 278: 1, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    file = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries
    with Image.open(io.BytesIO(file.ljust(134, b"\0") + data)) as image:
        assert np.asarray(to_rgb(image))[0, :, 1].tolist() == gray


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "MPO", "AVIF"])
def test_turned_as_the_camera_was_held(tmp_path: Path, form: str) -> None:
    """The eight orientations of EXIF: what was top left is where the standard has it."""
    upright = np.zeros((32, 48, 3), dtype=np.uint8)
    upright[:16, :24] = 200
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[274] = orientation
        path = tmp_path / f"{orientation}"
        Image.fromarray(np.ascontiguousarray(pixels)).save(path, format=form, exif=exif)
        shown = np.asarray(read_picture(path)).astype(int)
        assert shown.shape == upright.shape, orientation
        assert np.abs(shown - upright).max() < 60, orientation


def test_damaged_exif_is_no_orientation(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "photo.jpg"
    for exif in (b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0", b"Exif\0\0nonsense", b"Exif\0\0"):
        drawn("RGB").save(path, exif=exif)
        assert read_picture(path).size == (24, 16)
    image = drawn("RGB")
    image.getexif()[274] = "top"
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image))
    assert [str(w.message) for w in recwarn] == []


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "I;16"])
def test_one_transparent_color_lies_on_white(tmp_path: Path, mode: str) -> None:
    """A file of these modes names a color, or an entry of the palette, that is transparent."""
    image = Image.new(mode, (2, 1))
    image.putpixel((1, 0), {"1": 1, "P": 1, "RGB": (9, 9, 9), "I;16": 2570}.get(mode, 10))
    if mode == "P":
        image.putpalette([0, 0, 0, 10, 10, 10])
    path = tmp_path / "picture.png"
    image.save(path, transparency=(0, 0, 0) if mode == "RGB" else 0)
    other = {"1": 255, "RGB": 9}.get(mode, 10)
    assert np.asarray(read_picture(path))[0].tolist() == [[255] * 3, [other] * 3]


def test_a_palette_of_half_transparent_colors(tmp_path: Path) -> None:
    image = Image.new("P", (3, 1))
    image.putdata([0, 1, 2])
    image.putpalette([0, 0, 0, 100, 0, 0, 0, 200, 0])
    image.save(tmp_path / "picture.png", transparency=bytes([0, 255, 51]))
    shown = np.asarray(read_picture(tmp_path / "picture.png"))[0].tolist()
    assert shown == [[255, 255, 255], [100, 0, 0], [204, 244, 204]]


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
def test_of_several_pictures_the_first(tmp_path: Path, form: str) -> None:
    frames = [Image.new("RGB", (16, 16), (40 + 100 * number, 0, 0)) for number in range(3)]
    frames[0].save(tmp_path / "moving", format=form, save_all=True, append_images=frames[1:])
    assert abs(np.asarray(read_picture(tmp_path / "moving")).mean((0, 1)) - [40, 0, 0]).max() < 3


def test_a_mode_that_is_not_known_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As LAB is where Pillow was built without color management."""
    path = tmp_path / "picture.tif"
    drawn("LAB").save(path)

    def unknown(*_: object) -> None:
        raise ValueError("conversion from LAB to RGB not supported")

    monkeypatch.setattr(Image.Image, "convert", unknown)
    with pytest.raises(UsageError, match=r"picture.tif: no picture that can be read \(ValueError: conversion from LAB"):
        read_picture(path)
