"""Kinds of file and folder entry that a data set of images may hold, each with what is right by its own definition.

``tried`` puts one of them among good images and reads all of it with the readers that a training uses.
"""

from __future__ import annotations

import contextlib
import io
import os
import socket
import struct
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from sslinfo.data import TwoViewDataModule, View
from sslinfo.data.stores import FileStore
from sslinfo.errors import UserError

GOOD = 8  # images of the two classes beside the entry
Pixels = NDArray[np.uint8]
# image: is read, as it is shown. bad: a message that names it, or skipped and counted. left out: not read, and named.
# system: the system's error with the file, in both modes. passed over: not read, its kind is counted.
Right = Literal["image", "bad", "left out", "passed over", "system"]


@dataclass(frozen=True)
class Kind:
    """One kind of entry.

    Attributes:
        name: what it is, in words.
        right: what is right.
        file: its name in the class folder.
        make: writes it, given its path.
        shown: the pixels (H, W, 3) that it shows; None where that is not looked at.
        tolerance: in levels, for what a lossy format and rounding may change.
        says: words of the message, for what is refused and could be read otherwise.
        change: done to it between listing and reading.
        around: what holds while it is read.
    """

    name: str
    right: Right
    file: str
    make: Callable[[Path], Any]
    shown: Pixels | None = None
    tolerance: int = 0
    says: str = ""
    change: Callable[[Path], Any] | None = None
    around: Callable[[Path], contextlib.AbstractContextManager[Any]] | None = None


# What is written


def ramp(height: int, width: int, channels: int = 3) -> Pixels:
    """Smooth colours, which lossy formats keep."""
    rows, columns = np.mgrid[0:height, 0:width]
    planes = [40 + 4 * rows + 2 * columns, 200 - 3 * rows, 60 + 5 * columns, 255 - 6 * rows]
    return np.stack(planes[:channels], 2).clip(0, 255).astype(np.uint8)


COLOURS = ramp(20, 24)
GREY = COLOURS[:, :, 0]
IMAGE = Image.fromarray(COLOURS)


def saved(image: Image.Image, **options: Any) -> Callable[[Path], None]:
    return lambda path: image.save(path, **options)


def written(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content) and None


def cut(share: float, **options: Any) -> Callable[[Path], None]:
    """An image file that ends after this share of its bytes."""

    def make(path: Path) -> None:
        big = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
        big.save(path, **options)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return make


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(height: int, width: int, bits: int, colour: int, rows: bytes, *more: bytes) -> bytes:
    """A PNG file by its specification; ``rows`` are all bytes, each row after a filter byte of 0."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_of_16_bits(values: NDArray[np.uint16], colour: int) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[0], values.shape[1], 16, colour, rows)


def wrong_checksum(kind: bytes) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        IMAGE.save(path)
        content = bytearray(path.read_bytes())
        place = content.index(kind)
        (length,) = struct.unpack(">I", content[place - 4 : place])
        content[place + 4 + length] ^= 1
        path.write_bytes(bytes(content))

    return make


def one_bit_changed(path: Path) -> None:
    """A pixel's bit that turned on the disk."""
    IMAGE.save(path)
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 4
    path.write_bytes(bytes(content))


def tiff(pixels: NDArray[Any], kind: int = 1) -> bytes:
    """A TIFF file by its specification, uncompressed; ``kind`` is 1 for integers, 3 for floats."""
    bands, bits = pixels.shape[2], 8 * pixels.dtype.itemsize
    fields = TiffImagePlugin.ImageFileDirectory_v2()
    content = {256: pixels.shape[1], 257: pixels.shape[0], 258: (bits,) * bands, 259: 1, 262: 1 if bands < 3 else 2}
    content |= {273: 0, 277: bands, 278: pixels.shape[0], 279: pixels.nbytes, 284: 1, 339: (kind,) * bands}
    if bands > 3:
        content[338] = (0,) * (bands - 3)
    for tag, value in content.items():
        fields[tag] = value  # PIL makes 273, where the pixels start, the end of the fields
    return b"II\x2a\0\x08\0\0\0" + fields.tobytes(8) + pixels.tobytes()


def pnm(magic: str, values: NDArray[np.uint16]) -> bytes:
    return f"{magic}\n{values.shape[1]} {values.shape[0]}\n65535\n".encode() + values.astype(">u2").tobytes()


def over_white(colours: NDArray[Any], alpha: NDArray[Any]) -> Pixels:
    share = alpha[:, :, None] / 255
    return np.rint(share * colours + (1 - share) * 255).astype(np.uint8)


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """What an image of this EXIF orientation shows, by the standard: where its first row and column lie."""
    by_row_and_column = {
        1: pixels,
        2: pixels[:, ::-1],  # first row on top, first column right
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.transpose(1, 0, 2),
        6: pixels.transpose(1, 0, 2)[:, ::-1],  # first row right, first column on top
        7: pixels.transpose(1, 0, 2)[::-1, ::-1],
        8: pixels.transpose(1, 0, 2)[::-1],
    }
    return by_row_and_column[orientation]


def exif(orientation: int) -> Image.Exif:
    entries = Image.Exif()
    entries[274] = orientation
    return entries


def damaged_exif(path: Path) -> None:
    IMAGE.save(path, quality=95, exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff")


def animated(path: Path, **options: Any) -> None:
    IMAGE.save(path, save_all=True, append_images=[Image.new("RGB", IMAGE.size, "red")] * 2, **options)


def grey3(grey: NDArray[Any]) -> Pixels:
    return np.repeat(np.asarray(grey, dtype=np.uint8)[:, :, None], 3, axis=2)


def palette(path: Path, transparent: bool = False) -> None:
    image = Image.fromarray((GREY // 16).astype(np.uint8), "L").convert("P")
    image.putpalette([value for i in range(16) for value in (16 * i, 255 - 10 * i, 7 * i)])
    image.save(path, **({"transparency": 5} if transparent else {}))


def of_palette(transparent: bool = False) -> Pixels:
    table = np.array([(16 * i, 255 - 10 * i, 7 * i) for i in range(16)], dtype=np.uint8)
    if transparent:
        table[5] = 255
    return table[GREY // 16]


def cmyk(path: Path) -> None:
    Image.merge("CMYK", [Image.fromarray(ramp(20, 24, 4)[:, :, i]) for i in range(4)]).save(path)


def of_cmyk() -> Pixels:
    inks = 1 - ramp(20, 24, 4) / 255
    return np.rint(255 * inks[:, :, :3] * inks[:, :, 3:]).astype(np.uint8)


def inner_image(path: Path) -> None:
    path.parent.mkdir()
    IMAGE.save(path)


def failing(path: Path) -> None:
    """Linux answers a read at the start of a process's memory as it does one of a bad sector."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


def bound_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket has to be short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def link_to(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def outside(path: Path) -> None:
    """A link to an image that lies elsewhere: the usual way to make a subset."""
    away = path.parents[2] / "away"
    away.mkdir()
    IMAGE.save(away / "image.png")
    path.symlink_to(away / "image.png")


@contextlib.contextmanager
def unprivileged(path: Path) -> Iterator[None]:
    path.chmod(0)
    root = os.geteuid() == 0
    if root:
        for folder in list(path.parents)[:3]:
            folder.chmod(0o755)
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        path.chmod(0o600)


def wide(values: NDArray[Any]) -> NDArray[np.uint16]:
    """Levels of 8 bits on the scale of 16: 65535 = 257 x 255."""
    return (values.astype(np.uint16)) * 257


WIDE = wide(COLOURS)
CLEAR = np.dstack([COLOURS, ramp(20, 24, 4)[:, :, 3]])
BOMB = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0))
BOMB += chunk(b"IDAT", zlib.compress(bytes(5001))) + chunk(b"IEND", b"")
TEXT_BOMB = chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(80_000_000), 9))
WHOLE = "data set class of your own"
LONG_GREY = np.repeat(ramp(20, 20)[:, :, :1].repeat(3, 2), 1000, axis=0)


def colour_key(path: Path) -> None:
    """One colour is transparent."""
    pixels = COLOURS.copy()
    pixels[:5] = (1, 2, 3)
    Image.fromarray(pixels).save(path, transparency=(1, 2, 3))


def of_colour_key() -> Pixels:
    pixels = COLOURS.copy()
    pixels[:5] = 255
    return pixels


KINDS = (
    # damaged
    Kind("PNG, half of it", "bad", "x.png", cut(0.5)),
    Kind("JPEG, half of it", "bad", "x.jpg", cut(0.5)),
    Kind("GIF, half of it", "bad", "x.gif", cut(0.5)),
    Kind("WebP, half of it", "bad", "x.webp", cut(0.5)),
    Kind("TIFF, half of it", "bad", "x.tif", cut(0.5)),
    Kind("BMP, half of it", "bad", "x.bmp", cut(0.5)),
    Kind("PPM, half of it", "bad", "x.ppm", cut(0.5)),
    Kind("PNG without its last bytes", "bad", "x.png", cut(0.9995)),
    Kind("PNG, its header only", "bad", "x.png", cut(0.002)),
    Kind("no bytes, .png", "bad", "x.png", written(b"")),
    Kind("no bytes, .jpg", "bad", "x.jpg", written(b"")),
    Kind("text named .png", "bad", "x.png", written(b"not an image\n")),
    Kind("a web page named .jpg", "bad", "x.jpg", written(b"<!DOCTYPE html><title>404</title>")),
    Kind("zeros named .tif", "bad", "x.tif", written(bytes(5000))),
    Kind("PostScript named .png", "bad", "x.png", saved(IMAGE, format="EPS"), says="no image of a known kind"),
    Kind("icon named .png", "bad", "x.png", saved(IMAGE, format="ICO"), says="no image of a known kind"),
    Kind("Targa named .jpg", "bad", "x.jpg", saved(IMAGE, format="TGA"), says="no image of a known kind"),
    Kind("PNG, wrong checksum of the pixels", "bad", "x.png", wrong_checksum(b"IDAT")),
    Kind("PNG, wrong checksum of the header", "bad", "x.png", wrong_checksum(b"IHDR")),
    Kind("PNG, wrong checksum of the end", "bad", "x.png", wrong_checksum(b"IEND")),
    Kind("PNG, one bit of a pixel turned", "bad", "x.png", one_bit_changed),
    Kind("decompression bomb, pixels", "bad", "x.png", written(BOMB)),
    Kind(
        "decompression bomb, text",
        "bad",
        "x.png",
        written(png(1, 1, 8, 0, b"\0\0", TEXT_BOMB)),
    ),
    # colours
    Kind("RGB PNG", "image", "x.png", saved(IMAGE), COLOURS),
    Kind("RGB BMP", "image", "x.bmp", saved(IMAGE), COLOURS),
    Kind("RGB PPM", "image", "x.ppm", saved(IMAGE), COLOURS),
    Kind("JPEG", "image", "x.jpg", saved(IMAGE, quality=95), COLOURS, 12),
    Kind("JPEG, progressive, ending .JPEG", "image", "x.JPEG", saved(IMAGE, quality=95, progressive=True), COLOURS, 12),
    Kind("JPEG named .png", "image", "x.png", saved(IMAGE, format="JPEG", quality=95), COLOURS, 12),
    Kind("grey PNG", "image", "x.png", saved(Image.fromarray(GREY)), grey3(GREY)),
    Kind("grey JPEG", "image", "x.jpg", saved(Image.fromarray(GREY), quality=95), grey3(GREY), 6),
    Kind(
        "grey + alpha",
        "image",
        "x.png",
        saved(Image.fromarray(np.dstack([GREY, CLEAR[:, :, 3]]))),
        over_white(grey3(GREY), CLEAR[:, :, 3]),
        1,
    ),
    Kind("RGBA PNG", "image", "x.png", saved(Image.fromarray(CLEAR)), over_white(COLOURS, CLEAR[:, :, 3]), 1),
    Kind(
        "RGBA WebP",
        "image",
        "x.webp",
        saved(Image.fromarray(CLEAR), lossless=True, exact=True),
        over_white(COLOURS, CLEAR[:, :, 3]),
        1,
    ),
    Kind("RGB with a transparent colour", "image", "x.png", colour_key, of_colour_key()),
    Kind("palette", "image", "x.png", palette, of_palette()),
    Kind("palette, one entry transparent", "image", "x.png", lambda p: palette(p, True), of_palette(True)),
    Kind("CMYK JPEG", "image", "x.jpg", cmyk, of_cmyk(), 16),
    Kind("CMYK TIFF", "image", "x.tif", cmyk, of_cmyk(), 2),
    Kind("1 bit", "image", "x.png", saved(Image.fromarray(GREY > 90)), grey3(255 * (GREY > 90))),
    # depth
    Kind("16-bit grey PNG", "image", "x.png", written(png_of_16_bits(wide(GREY), 0)), grey3(GREY)),
    Kind("16-bit grey TIFF", "image", "x.tif", written(tiff(wide(GREY)[:, :, None])), grey3(GREY)),
    Kind("16-bit grey PGM", "image", "x.pgm", written(pnm("P5", wide(GREY))), grey3(GREY)),
    Kind("16-bit grey + alpha PNG", "bad", "x.png", written(png_of_16_bits(WIDE[:, :, :2], 4)), says=WHOLE),
    Kind("16-bit RGB PNG", "bad", "x.png", written(png_of_16_bits(WIDE, 2)), says=WHOLE),
    Kind("16-bit RGBA PNG", "bad", "x.png", written(png_of_16_bits(wide(CLEAR), 6)), says=WHOLE),
    Kind("16-bit RGB TIFF", "bad", "x.tif", written(tiff(WIDE)), says=WHOLE),
    Kind("16-bit RGB PPM", "bad", "x.ppm", written(pnm("P6", WIDE)), says=WHOLE),
    Kind("float TIFF", "bad", "x.tif", saved(Image.fromarray(GREY.astype(np.float32))), says=WHOLE),
    Kind("float RGB TIFF", "bad", "x.tif", written(tiff(COLOURS.astype(np.float32), 3)), says=WHOLE),
    Kind("32-bit TIFF", "bad", "x.tif", saved(Image.fromarray(GREY.astype(np.int32))), says=WHOLE),
    Kind("TIFF of 3 pages", "bad", "x.tif", animated, says=WHOLE),
    Kind("TIFF of 4 bands", "bad", "x.tif", written(tiff(ramp(20, 24, 4))), says=WHOLE),
    Kind("TIFF of 5 bands", "bad", "x.tif", written(tiff(COLOURS[:, :, [0, 1, 2, 0, 1]])), says=WHOLE),
    Kind("TIFF of 13 bands of 16 bits", "bad", "x.tif", written(tiff(WIDE[:, :, [0] * 13])), says="13 bands of 16"),
    # orientation
    *(
        Kind(
            f"JPEG, EXIF orientation {n}",
            "image",
            "x.jpg",
            saved(IMAGE, quality=95, exif=exif(n)),
            turned(COLOURS, n),
            12,
        )
        for n in range(2, 9)
    ),
    Kind("PNG, EXIF orientation 6", "image", "x.png", saved(IMAGE, exif=exif(6)), turned(COLOURS, 6)),
    Kind("WebP, EXIF orientation 6", "image", "x.webp", saved(IMAGE, lossless=True, exif=exif(6)), turned(COLOURS, 6)),
    Kind("TIFF, EXIF orientation 6", "image", "x.tif", saved(IMAGE, exif=exif(6)), turned(COLOURS, 6)),
    Kind("JPEG, damaged EXIF", "image", "x.jpg", damaged_exif, COLOURS, 12),
    # animations and their like
    Kind("GIF", "image", "x.gif", saved(IMAGE.quantize(256)), COLOURS, 24),
    Kind("animated GIF", "image", "x.gif", animated, COLOURS, 24),
    Kind("animated WebP", "image", "x.webp", lambda p: animated(p, lossless=True), COLOURS),
    Kind("animated PNG", "image", "x.png", animated, COLOURS),
    Kind("JPEG of two pictures (MPO)", "image", "x.jpg", lambda p: animated(p, format="MPO", quality=95), COLOURS, 12),
    # sizes
    Kind("64 x 1 pixels", "image", "x.png", saved(Image.fromarray(ramp(1, 64))), ramp(1, 64)),
    Kind("1 x 500 pixels", "image", "x.png", saved(Image.fromarray(ramp(500, 1))), ramp(500, 1)),
    Kind("1 x 1 pixel", "image", "x.png", saved(Image.fromarray(ramp(1, 1))), ramp(1, 1)),
    Kind("20 x 20,000 pixels", "image", "x.png", saved(Image.fromarray(LONG_GREY)), LONG_GREY),
    Kind(
        "20,000 x 20 pixels",
        "image",
        "x.png",
        saved(Image.fromarray(LONG_GREY.transpose(1, 0, 2).copy())),
        LONG_GREY.transpose(1, 0, 2),
    ),
    # what is no file
    Kind("folder named like an image", "bad", "x.jpg", Path.mkdir),
    Kind(
        "folder named like an image, with an image",
        "image",
        "x.jpg/y.png",
        inner_image,
        COLOURS,
    ),
    Kind("named pipe", "bad", "x.jpg", os.mkfifo),
    Kind("socket", "bad", "x.jpg", bound_socket),
    Kind("link to a device", "bad", "x.jpg", link_to("/dev/zero")),
    Kind("link that leads nowhere", "bad", "x.jpg", link_to("nowhere.jpg")),
    Kind("link that leads to itself", "bad", "x.jpg", link_to("x.jpg")),
    Kind("link to an image elsewhere", "image", "x.png", outside, COLOURS),
    Kind("link to an image of another class", "left out", "x.png", link_to("../b/0.png")),
    Kind("link to the folder itself", "left out", "x", link_to(".")),
    Kind("link to a parent", "left out", "x", link_to("..")),
    Kind("link to a parent of the data set", "left out", "x", link_to("../../..")),
    Kind("link to another class", "left out", "x", link_to("../b")),
    Kind("folder link that leads nowhere", "left out", "x", link_to("nowhere")),
    Kind("folder link that leads to itself", "left out", "x", link_to("x")),
    # the system
    Kind("no permission", "system", "x.png", saved(IMAGE), around=unprivileged),
    Kind("gone between listing and reading", "system", "x.png", saved(IMAGE), change=Path.unlink),
    Kind("failing disk", "system", "x.png", saved(IMAGE), change=failing),
    # names
    Kind("name in Chinese", "image", "图像.png", saved(IMAGE), COLOURS),
    Kind("name in Arabic, right to left", "image", "صورة.png", saved(IMAGE), COLOURS),
    Kind("name of signs", "image", "🦊 'a' \"b\" $c;%d.png", saved(IMAGE), COLOURS),
    Kind("name with blanks and a line break", "image", " x \n y .png", saved(IMAGE), COLOURS),
    Kind("name that is not UTF-8", "image", os.fsdecode(b"caf\xe9.png"), saved(IMAGE), COLOURS),
    Kind("name that starts with a dash", "image", "-x.png", saved(IMAGE), COLOURS),
    Kind("name of 250 letters", "image", "x" * 246 + ".png", saved(IMAGE), COLOURS),
    Kind("bad image whose name is not UTF-8", "bad", os.fsdecode(b"caf\xe9.png"), written(b"")),
    # other kinds of file
    Kind("HEIC", "passed over", "x.heic", written(b"\0\0\0\x18ftypheic")),
    Kind("SVG", "passed over", "x.svg", written(b"<svg/>")),
    Kind("file without ending", "passed over", "README", written(b"notes")),
)


# How it is read


@dataclass(frozen=True)
class Outcome:
    """What one mode did: in a word, what was printed and said, and whether that is right."""

    word: str
    text: str
    right: bool


def tried(kind: Kind, mode: Literal["error", "skip"]) -> Outcome:
    """Read a folder of two classes that holds an entry of this kind: all images, as training and evaluation do."""
    with tempfile.TemporaryDirectory(prefix="sslinfo_") as place:
        root = Path(place).resolve() / "data"
        for number in range(GOOD):
            folder = root / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + number, 22), (20 * number, 90, 9)).save(folder / f"{number // 2}.png")
        path = root / "a" / kind.file
        kind.make(path)
        around = kind.around or (lambda path: contextlib.nullcontext())
        heard, said = io.StringIO(), []
        with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stdout(heard), around(path):
            warnings.simplefilter("always")
            try:
                found = _read(root, path, kind, mode)
            except Exception as error:
                found, said = error, [str(error)]
        text = "\n".join([heard.getvalue(), *said, *(str(warning.message) for warning in warned)])
        return _judged(kind, mode, path, found, text)


def _read(root: Path, path: Path, kind: Kind, mode: Literal["error", "skip"]) -> tuple[int, int, Pixels | None]:
    """How many images were read and skipped, and the pixels of the one at the path."""
    views = [View(crop_scale=(0.2, 1.0), flip=0.5)] * 2
    data = TwoViewDataModule(
        "imagefolder", str(root), 3, views, image_size=8, on_bad_image=mode, in_memory=False, val_fraction=0.25, seed=0
    )
    data.setup()
    if kind.change is not None:
        kind.change(path)
    read: set[tuple[str, int]] = set()
    for loader in (data.train_dataloader(), *(data.clean_dataloader(split) for split in ("train", "val"))):
        for raw in loader:
            batch = data.to_batch(raw)
            made = [*batch.get("views", []), *([] if batch["clean"] is None else [batch["clean"]])]
            assert all(view.shape[1:] == (3, 8, 8) and bool(view.isfinite().all()) for view in made)
            read |= set(raw["index"].tolist())
    store = data.stores["train"]
    assert isinstance(store, FileStore)
    mine = [i for i in range(store.total) if store.file_of(i) == str(path)]
    both = [data.stores[split] for split in ("train", "val")]
    skipped = len(set[int]().union(*(part._bad for part in both)))
    pixels = None
    for part in both:
        for position in (part.index == mine[0]).nonzero()[:, 0].tolist() if mine else []:
            fetched = part.read([position])
            if len(fetched.index):
                image = fetched.images[0]
                assert image.dtype == torch.uint8
                pixels = image.permute(1, 2, 0).numpy()
    return len(read), skipped, pixels


def _judged(kind: Kind, mode: str, path: Path, found: Any, text: str) -> Outcome:
    name = os.fsencode(path.name).decode("utf-8", "backslashreplace")
    names = name in text
    if isinstance(found, OSError) and not isinstance(found, UserError):
        right = kind.right == "system" and found.filename == str(path) and found.errno is not None
        return Outcome(f"system: {found.strerror}", text, right)
    if isinstance(found, UserError):
        right = kind.right == "bad" and mode == "error" and names and kind.says in text
        return Outcome("message" if names else "message without its name", text, right)
    if isinstance(found, Exception):
        return Outcome(f"{type(found).__name__}", text, False)
    count, skipped, pixels = found
    if skipped:
        right = kind.right == "bad" and mode == "skip" and (count, skipped) == (GOOD, 1) and names and kind.says in text
        return Outcome("skipped, counted" + (", named" if names else ""), text, right)
    if pixels is None:
        noted = kind.right == "left out" and names
        counted = kind.right == "passed over" and f"left out: 1 {path.suffix or 'without ending'}" in text
        word = "left out, named" if noted else "left out, counted" if counted else "left out"
        return Outcome(word, text, count == GOOD and (noted or counted))
    if kind.shown is None or pixels.shape != kind.shown.shape:
        return Outcome(f"read as {pixels.shape}", text, False)
    off = int(np.abs(pixels.astype(int) - kind.shown.astype(int)).max())
    right = kind.right == "image" and count == GOOD + 1 and off <= kind.tolerance
    return Outcome("read" if right else f"read, {off} levels off, {count} images", text, right)
