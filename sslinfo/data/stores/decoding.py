"""One image file: opened without waiting, looked at, and decoded by PIL. What is no image is told by its path."""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from PIL import ExifTags, Image, ImageOps, TiffImagePlugin
from torch import Tensor

from sslinfo.data.stores.base import BadImage, shown
from sslinfo.data.stores.pixels import is_16_bit_grey, to_tensor
from sslinfo.errors import UserError

OWN_CLASS = "a data set class of your own can return all of it, as a float tensor (C, H, W) in [0, 1]"

# The kinds whose endings readers.scan.KINDS lists. PIL goes by the content, and knows kinds that are programs: it hands
# PostScript to Ghostscript.
_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM")
_PNG = b"\x89PNG\r\n\x1a\n"
_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations in which width and height change places
# What TIFF calls its fields.
_BITS, _BANDS, _FORMAT = 258, 277, 339


def size_of(path: str) -> tuple[int, int]:
    """Height and width of the image as it is shown, from the file's header.

    Raises:
        BadImage: it is no file, or no image.
        OSError: the system cannot read it; the error names the file.
    """
    with _opened(path) as (_, image):
        if image.format == "TIFF" and _orientation(image) in _SIDEWAYS:
            image.load()  # PIL turns these by itself, and only some versions say so before
        sideways = image.format != "TIFF" and _orientation(image) in _SIDEWAYS
        return (image.width, image.height) if sideways else (image.height, image.width)


def pixels_of(path: str, channels: int) -> tuple[Tensor, bool]:
    """The image as uint8 (C, H, W), turned as its EXIF orientation says, and whether 16 bits were scaled to 8.

    Raises:
        BadImage: it is no file, or cannot be decoded whole.
        OSError: the system cannot read it; the error names the file.
    """
    with _opened(path) as (file, image):
        if image.format == "PNG":
            _check_sums(file)
        _check_whole(image)
        image.load()
        if _orientation(image, loaded=True) != 1:
            ImageOps.exif_transpose(image, in_place=True)
        return to_tensor(image, channels), is_16_bit_grey(image)


@contextmanager
def _opened(path: str) -> Iterator[tuple[IO[bytes], Image.Image]]:
    try:
        with opened(path) as file, _recognised(file) as image:
            yield file, image
    except Exception as error:
        if isinstance(error, BadImage | MemoryError):
            raise
        # PIL reports broken files by many kinds of exception; errno is only set by the operating system.
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, error.strerror, path) from error
        raise BadImage(f"{shown(path)} cannot be decoded ({error})") from error


def opened(path: str) -> IO[bytes]:
    """The file, opened so that a pipe does not wait for its writer.

    Raises:
        BadImage: there is something that is no file, or a link that leads nowhere.
        OSError: the system cannot open it.
    """
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0)))  # noqa: SIM115
    except OSError as error:
        reason = _why_no_file(path)
        if reason is None:
            raise
        raise BadImage(f"{shown(path)} {reason}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise BadImage(f"{shown(path)} {_why_no_file(path) or 'is no file'}")
    return file


def _why_no_file(path: str) -> str | None:
    """What is there in place of a file; None where there is a file, nothing, or no permission to look."""
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
    except OSError:
        return f"is a link to {shown(os.readlink(path))}, which leads nowhere" if os.path.islink(path) else None
    return None if kind == stat.S_IFREG else f"is {kinds.get(kind, 'a device')}, no image file"


def _recognised(file: IO[bytes]) -> Image.Image:
    try:
        return Image.open(file, formats=_FORMATS)
    except Image.UnidentifiedImageError as error:
        layout = _tiff_layout(file)
        if layout is None:
            raise UserError(f"it is no image of a known kind: {', '.join(_FORMATS)}") from error
        raise UserError(f"a TIFF of {layout}, which PIL cannot read; {OWN_CLASS}") from error


def _tiff_layout(file: IO[bytes]) -> str | None:
    """Bands and bits of a TIFF file, None for another one."""
    file.seek(0)
    try:
        fields = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(fields.next)
        fields.load(file)
        bands, bits = fields.get(_BANDS, 1), fields.get(_BITS, (1,))[0]
        kind = "floating-point numbers" if fields.get(_FORMAT, (1,))[0] == 3 else "bits"
    except Exception:
        return None
    return f"{bands} bands of {bits} {kind}" if kind == "bits" else f"{bands} bands of {kind}"


def _check_whole(image: Image.Image) -> None:
    """Refuse what PIL would decode in part: some bands, some bits or the first page of a file."""
    if image.format == "TIFF":
        bands = image.tag_v2.get(_BANDS, 1)  # type: ignore[attr-defined]
        if bands > len(image.getbands()):
            raise UserError(f"it has {bands} bands, of which PIL reads {len(image.getbands())}; {OWN_CLASS}")
        pages = getattr(image, "n_frames", 1)
        if pages > 1:
            raise UserError(f"it has {pages} pages: save each as a file of its own, or {OWN_CLASS}")
    if _bits(image) > 8 and image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        raise UserError(
            f"it has {_bits(image)} bits in each of its channels, of which PIL reads 8: convert it, or {OWN_CLASS}"
        )


def _bits(image: Image.Image) -> int:
    """Bits of each channel in the file, as far as PIL's decoder says."""
    for tile in getattr(image, "tile", ()):
        arguments: Any = tile[3]
        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
        if any(isinstance(word, str) and ";16" in word for word in arguments):
            return 16
        if tile[0] == "ppm" and isinstance(arguments[-1], int) and arguments[-1] > 255:
            return 16
    return 8


def _check_sums(file: IO[bytes]) -> None:
    """Compare the checksums of a PNG file's chunks, which PIL leaves out for the pixels."""
    place = file.tell()
    file.seek(0)
    content = memoryview(file.read())
    file.seek(place)
    start, kind = len(_PNG), b""
    while kind != b"IEND":
        if start + 12 > len(content):
            raise UserError("the file ends too early")
        (length,) = struct.unpack(">I", content[start : start + 4])
        end = start + 8 + length
        kind = bytes(content[start + 4 : start + 8])
        if end + 4 > len(content):
            raise UserError("the file ends too early")
        if zlib.crc32(content[start + 4 : end]) != struct.unpack(">I", content[end : end + 4])[0]:
            raise UserError(f"the checksum of its part {kind.decode('latin1')} is wrong")
        start = end + 4


def _orientation(image: Image.Image, loaded: bool = False) -> int:
    if image.format == "PNG" and not loaded and "exif" not in image.info:
        return 1  # PIL would decode the whole file to look behind the pixels
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1  # a damaged note beside the pixels: the image is shown as it is stored
