"""Reading photographs and label maps of any file format, and the papers' resize rules.

Source: SPEC san 7, SPEC ovseg 9 (resize rules and where they differ).
"""

from __future__ import annotations

import fnmatch
import glob
import io
import os
import stat
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from openvocab.errors import InputError, import_extra

if TYPE_CHECKING:
    from torch import Tensor

ImageArray: TypeAlias = npt.NDArray[np.uint8]
ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | IO[bytes] | npt.NDArray[Any]"
    " | Tensor | Image.Image"
)
Resample: TypeAlias = Literal["nearest", "bilinear", "bicubic"]

DEFAULT_MAX_PIXELS = 200_000_000
MAX_FILE_BYTES = 2 << 30  # larger files are no photographs, and are not read
TAKEN = (
    "a path, bytes, a file that is open in binary mode, a Pillow image, a NumPy array (H, W, 3), "
    "or a tensor (3, H, W)"
)
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pnm .jp2 .avif .heic .heif .hif "
    ".tga".split()
)
# EPS is left out on purpose: Pillow would start Ghostscript on it.
_FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM"),
    *("JPEG2000", "AVIF", "TGA", "HEIF", "ICO", "PCX", "SGI", "QOI"),
)
# What Pillow's decoders raise on damaged data.
_DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError),
    *(struct.error, zlib.error, OverflowError, RuntimeError, Image.DecompressionBombError),
)
_ORIENTATION_TAG = 0x0112
_ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"))
_LOSSY = frozenset("JPEG MPO JPEG2000 AVIF WEBP HEIF".split())  # of label maps
_TOP_OF_12_BITS = 4095
_ARRAY = "the image array"
_DARK = 1 << 14  # a 16-bit image below it has 14 bits or fewer, or is nearly black
_MANY_COLORS = 1024  # more than the classes of any set
_open_lock = threading.Lock()


def read_image(
    source: ImageSource, *, max_pixels: int = DEFAULT_MAX_PIXELS, bgr: bool = False
) -> ImageArray:
    """Read an image as 8-bit RGB, as an image viewer shows it.

    EXIF orientation is applied, transparent pixels are blended with white, 16-bit values are scaled
    down, and of an animation the first frame is taken.

    Args:
        source: a path, the bytes of a file, a file that is open in binary mode, a Pillow image, an
            array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), or a tensor with channels first,
            (1, H, W), (3, H, W) or (4, H, W). Arrays and tensors hold uint8, uint16, bool, or
            float in 0..1, in the order red, green, blue; OpenCV's order needs `bgr`.
        max_pixels: larger images are refused before they are decoded.
        bgr: arrays and tensors have blue first, as those of `cv2.imread`; files and Pillow images
            say their order themselves.

    Returns:
        (H, W, 3) uint8, RGB, contiguous, owned by the caller.

    Raises:
        InputError: the source is missing, empty, damaged, no image, or too large.
    """
    if _is_tensor(source):
        source = _tensor_to_array(source)
    if isinstance(source, np.ndarray):
        return _array_to_rgb(_blue_last(source) if bgr else source, max_pixels)
    image, label = _open(source, max_pixels)
    try:
        image.load()
        return np.array(_to_rgb(_upright(image), label), order="C")
    except _DAMAGE as error:
        raise InputError(_damaged(label, error)) from error


def read_label_map(
    path: str | os.PathLike[str], *, max_pixels: int = DEFAULT_MAX_PIXELS
) -> npt.NDArray[np.int32]:
    """Read a label map: the stored number of each pixel, without applying a palette.

    Returns:
        (H, W) int32, from 1-, 8-, 16- or 32-bit single-channel files.

    Raises:
        InputError: the file cannot be read, was compressed with loss, or has more than one channel.
    """
    image, label = _open(path, max_pixels)
    compression = str(image.info.get("compression", image.format)).upper()
    if compression in _LOSSY:
        raise InputError(
            f"{label} is {compression.replace('2000', ' 2000')}, which changes the values of "
            "pixels, so that it cannot hold labels; make the label maps again as PNG or TIFF (a "
            "converted copy would keep the wrong values)"
        )
    try:
        image.load()
    except _DAMAGE as error:
        raise InputError(_damaged(label, error)) from error
    if len(image.getbands()) != 1 or image.mode == "F":
        raise InputError(
            f"{label} is no label map: its pixels are {image.mode!r}, expected one integer each "
            f"(a grey or palette PNG or TIFF){_about_colors(image)}"
        )
    return np.asarray(image).astype(np.int32)


def stored_size_and_turn(path: Path) -> tuple[tuple[int, int], int] | None:
    """Return (height, width) of an image as it is stored, and EXIF's orientation, 1 for upright.

    Only the head of the file is read; None where it tells nothing.
    """
    Image.init()
    try:
        with Image.open(path, formats=[name for name in _FORMATS if name in Image.OPEN]) as image:
            turn = image.getexif().get(_ORIENTATION_TAG)
            return (image.height, image.width), turn if turn in _ORIENTATIONS else 1
    except _DAMAGE:
        return None


def output_size_shortest_edge(
    height: int, width: int, short: int, max_size: int
) -> tuple[int, int]:
    """Return the (height, width) to which the evaluation rule resizes an image.

    The shorter side becomes `short`; if the longer would pass `max_size`, both shrink until it
    fits; halves round up. No side falls below one pixel (where the originals crash).

    Examples:
        >>> output_size_shortest_edge(375, 500, 640, 2560)
        (640, 853)

    Source: SPEC san 7, SPEC ovseg 9.
    """
    scale = short / min(height, width)
    if height < width:
        new_height, new_width = float(short), scale * width
    else:
        new_height, new_width = scale * height, float(short)
    longest = max(new_height, new_width)
    if longest > max_size:
        shrink = max_size / longest
        new_height, new_width = new_height * shrink, new_width * shrink
    return max(1, int(new_height + 0.5)), max(1, int(new_width + 0.5))


def resample_image(
    image: Image.Image, size: tuple[int, int], filter: Image.Resampling
) -> Image.Image:
    """Resize an image as Pillow 13 does, whichever version of Pillow is installed.

    Pillow resizes one axis after the other and rounds to 8 bits between the two. Up to version 12
    the width always came first. Since version 13 the height comes first where it shrinks by more
    than twice as many pixels as the width, which changes values by one. Resizing one axis at a time
    gives the same pixels in all versions.

    Args:
        image: any image of 8 bits.
        size: (width, height) of the result.
        filter: such as `Image.Resampling.BICUBIC`.
    """
    lost = image.height - size[1]
    if lost > 0 and lost > 2 * (image.width - size[0]):
        image = image.resize((image.width, size[1]), filter)
    return image.resize(size, filter)


def resize_shortest_edge(
    image: ImageArray, short: int, max_size: int, *, resample: Resample = "bilinear"
) -> ImageArray:
    """Resize for evaluation, to exactly the pixels that the originals use.

    Args:
        image: (H, W, 3) or (H, W) uint8.
        short: the length that the shorter side gets.
        max_size: the longest that the longer side may get.
        resample: Pillow's filter, antialiased when it shrinks.

    Returns:
        (h, w, 3) or (h, w) uint8 with the size of `output_size_shortest_edge`.
    """
    height, width = image.shape[:2]
    size = output_size_shortest_edge(height, width, short, max_size)
    return _resize(image, size, resample)


def list_images(
    patterns: Sequence[str | os.PathLike[str]],
    *,
    recursive: bool = True,
    only: str | None = None,
    suffixes: Collection[str] = IMAGE_SUFFIXES,
) -> list[Path]:
    """Find the images that files, folders (searched recursively) and globs name.

    Files are taken whatever their suffix; in folders and globs, only visible image files count.
    What cannot be read, such as a link to nothing, is listed too, so that its reader reports it.

    Args:
        patterns: files, folders and globs.
        recursive: also look into the folders of a folder.
        only: glob for folders: only visible files whose name or path in the folder matches it are
            taken, whatever their suffix.
        suffixes: of the files that folders and globs name, in lower case.

    Returns:
        Paths in the order of the patterns, sorted within each, every file once.

    Raises:
        InputError: a pattern names nothing, or a folder holds no image.
    """
    found: dict[str, Path] = {}
    for pattern in patterns:
        for path in _images_of(pattern, recursive, only, suffixes):
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def walk_images(
    folder: Path,
    *,
    recursive: bool = True,
    only: str | None = None,
    suffixes: Collection[str] = IMAGE_SUFFIXES,
) -> Iterator[Path]:
    """Yield the visible image files below a folder, sorted, without following folder links.

    A folder that cannot be read causes a warning. See `list_images` for the arguments.
    """
    for root, folders, names in os.walk(folder, onerror=_warn_of_folder):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if not name.startswith(".") and _is_wanted(path, folder, only, suffixes):
                yield path


def _warn_of_folder(error: OSError) -> None:
    warnings.warn(f"the folder '{error.filename}' is left out: {error.strerror}", stacklevel=2)


def _is_wanted(path: Path, folder: Path, only: str | None, suffixes: Collection[str]) -> bool:
    if only is None:
        return path.suffix.lower() in suffixes
    relative = path.relative_to(folder).as_posix()
    return fnmatch.fnmatch(path.name, only) or fnmatch.fnmatch(relative, only)


def images_in(source: object) -> list[Path] | None:
    """Return the image files of a folder or a glob; None if the source is anything else.

    Raises:
        InputError: the folder or the glob holds no image.
    """
    if not isinstance(source, str | os.PathLike):
        return None
    path = os.fspath(source)
    try:
        several = isinstance(path, str) and (
            os.path.isdir(path) or (glob.has_magic(path) and not os.path.exists(path))
        )
    except ValueError:  # a zero byte, which `read_image` reports
        several = False
    return _images_of(path) if several else None


def _images_of(
    pattern: str | os.PathLike[str],
    recursive: bool = True,
    only: str | None = None,
    suffixes: Collection[str] = IMAGE_SUFFIXES,
) -> list[Path]:
    path = Path(pattern)
    if os.path.isdir(path):
        images = list(walk_images(path, recursive=recursive, only=only, suffixes=suffixes))
        if not images:
            what = _suffixes() if only is None else f"that matches '{only}'"
            raise InputError(
                f"the folder '{path}' holds no image ({what}); give a folder with images"
            )
        return images
    if os.path.lexists(path):
        return [path]
    matches = [Path(match) for match in _matches(os.fspath(pattern)) if not os.path.isdir(match)]
    images = [match for match in matches if match.suffix.lower() in suffixes]
    if not images:
        raise InputError(
            f"no image at '{pattern}': give an existing file, a folder, or a quoted glob like "
            "'photos/**/*.jpg'"
        )
    return images


def _matches(pattern: str) -> list[str]:
    try:
        return sorted(glob.glob(pattern, recursive=True))
    except (OSError, ValueError):  # too long, or with a zero byte
        return []


def _suffixes() -> str:
    return " ".join(sorted(IMAGE_SUFFIXES))


def _open(source: Any, max_pixels: int) -> tuple[Image.Image, str]:
    """Open an image without decoding it; also return the words that name it in messages."""
    if isinstance(source, Image.Image):
        image, label = source, "the image"
    else:
        data, label = _content(source)
        if not data:
            raise InputError(f"{label} is empty (0 bytes), expected an image; get the file again")
        image = _identify(data, label)
    _check_size(image.width, image.height, label, max_pixels)
    return image, label


def _content(source: Any) -> tuple[bytes, str]:
    """Return the bytes of an encoded image, and the words that name it in messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), "the image data"
    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        if isinstance(path, str):
            return _read_bytes(Path(path)), f"'{path}'"
    if hasattr(source, "read"):
        return _read_open_file(source), "the image file"
    raise InputError(f"an image cannot be {_what_it_is(source)}; give {TAKEN}")


def _what_it_is(value: object) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"


def _read_bytes(path: Path) -> bytes:
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"'{path}' is a device or a pipe, expected an image file")
        if found.st_size > MAX_FILE_BYTES:
            raise InputError(
                f"'{path}' has {found.st_size} bytes, more than the {MAX_FILE_BYTES} that are read "
                "as an image; shrink it or cut it into pieces"
            )
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"there is no file '{path}'; check the path") from error
    except IsADirectoryError as error:
        raise InputError(f"'{path}' is a folder, expected an image file") from error
    except OSError as error:
        raise InputError(
            f"'{path}' cannot be read: {error.strerror}; check the file and its permissions"
        ) from error
    except InputError:
        raise
    except ValueError as error:  # a zero byte in the path
        raise InputError(
            f"{str(path)!r} is no path of a file: {error}; give another path"
        ) from error


def _read_open_file(file: Any) -> bytes:
    """Read an open file from its start, as Pillow does, up to the size limit."""
    try:
        if file.seekable():
            file.seek(0)
        data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError, AttributeError, TypeError) as error:  # closed, or not for reading
        raise InputError(f"the image file cannot be read: {error}") from error
    if not isinstance(data, bytes):
        raise InputError(
            f"the image file gives {type(data).__name__}, expected bytes; open it in binary mode "
            "('rb')"
        )
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"the image file has more than {MAX_FILE_BYTES} bytes; shrink the image")
    return data


def _identify(data: bytes, label: str) -> Image.Image:
    Image.init()
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and "HEIF" not in Image.OPEN:
        _teach_pillow_heif(label)
    formats = [name for name in _FORMATS if name in Image.OPEN]
    with _open_lock:  # Pillow's own limit is a global; ours is checked right after.
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(data), formats=formats)
        except _DAMAGE as error:
            raise InputError(
                f"{label} is not an image that can be read; expected PNG, JPEG, WebP, TIFF, BMP, "
                "GIF or similar, so convert it first"
            ) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _teach_pillow_heif(label: str) -> None:
    """Let Pillow read HEIC photographs, which telephones write.

    Raises:
        InputError: the library is not installed.
    """
    try:
        import_extra("pillow_heif", "heif", "reading HEIC photographs").register_heif_opener()
    except InputError as error:
        raise InputError(f"{label} cannot be read: {error}") from None


def _check_size(width: int, height: int, label: str, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise InputError(f"{label} has no pixels ({width}x{height}), expected at least 1x1")
    if width * height > max_pixels:
        raise InputError(
            f"{label} has {width}x{height} = {width * height} pixels, more than the limit of "
            f"{max_pixels}; shrink it or raise the limit (max_pixels, --max-pixels)"
        )


def _damaged(label: str, error: BaseException) -> str:
    reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return f"{label} is damaged or cut short ({reason}); get the file again"


def _about_colors(image: Image.Image) -> str:
    """Say what to do with a label map that has colors."""
    if image.mode not in ("RGB", "RGBA", "LA"):
        return ""
    colors: Any = image.convert("RGB").getcolors(_MANY_COLORS)
    if colors is None:
        return "; with this many colors it is a photograph, or was compressed with loss"
    if all(red == green == blue for _, (red, green, blue) in colors):
        return "; its channels are equal, so keep one of them: image.convert('L')"
    shown = ", ".join(str(color) for _, color in sorted(colors, reverse=True)[:3])
    return (
        f"; it holds {len(colors)} colors, such as {shown}, so replace each color by the number of "
        "its class"
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except _DAMAGE:  # a broken EXIF block says nothing about the pixels
        return image
    turn = _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image, label: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        deep = image.mode.startswith("I;16") or image.format == "PNG"
        values = np.asarray(image)
        return Image.fromarray(
            _grey_to_8bit(values, deep, label, may_be_12_bits=image.format == "TIFF")
        ).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _grey_to_8bit(
    values: npt.NDArray[Any], deep: bool, label: str, *, may_be_12_bits: bool = False
) -> ImageArray:
    """Scale grey values: 16-bit by 257, floats from 0..1, integers up to 255 as they are.

    Microscopes and cameras write 12 bits into TIFFs of 16, which are then scaled to 12 bits.
    """
    top = float(values.max())
    if not np.isfinite(top) or values.min() < 0 or top > 65535:
        raise ValueError(f"grey values {values.min()}..{top} fit no known range")
    if deep or top > 255:
        divisor = 257.0
        if may_be_12_bits and 255 < top <= _TOP_OF_12_BITS:
            divisor = _TOP_OF_12_BITS / 255
            warnings.warn(
                f"{label}: a TIFF of 16 bits holds values up to {top:g} only and is read as 12 "
                f"bits: {_TOP_OF_12_BITS} is white",
                stacklevel=2,
            )
        elif 0 < top < _DARK:
            warnings.warn(
                f"{label}: an image of 16 bits holds values up to {top:g} of 65535 only, nearly "
                "black; if it has fewer bits, scale its values to 0..65535",
                stacklevel=2,
            )
        return np.asarray(values / divisor + 0.5).astype(np.uint8)
    if values.dtype.kind == "f" and top <= 1:
        return np.asarray(values * 255 + 0.5).astype(np.uint8)
    return values.astype(np.uint8)


def _is_tensor(source: object) -> bool:
    """Return whether this is a tensor of torch, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(source, torch.Tensor)


def _tensor_to_array(tensor: Any) -> npt.NDArray[Any]:
    """Turn a tensor (C, H, W) into an array (H, W, C); one with channels last stays."""
    if tensor.ndim == 4:
        raise InputError(
            f"the image tensor has shape {tuple(tensor.shape)}; give a batch as a list of images: "
            "list(batch)"
        )
    if tensor.ndim != 3 or not {tensor.shape[0], tensor.shape[2]} & {1, 3, 4}:
        raise InputError(
            f"the image tensor has shape {tuple(tensor.shape)}, expected (3, H, W) with RGB "
            "channels first"
        )
    if tensor.shape[0] in (1, 3, 4):
        tensor = tensor.permute(1, 2, 0)
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # NumPy has no bfloat16
    array: npt.NDArray[Any] = tensor.numpy()
    return array


def _blue_last(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Turn blue, green, red into red, green, blue; transparency and grey values stay."""
    if array.ndim != 3 or array.shape[2] not in (3, 4):
        return array
    return array[..., [2, 1, 0, 3][: array.shape[2]]]


def _array_to_rgb(array: npt.NDArray[Any], max_pixels: int) -> ImageArray:
    pixels = array[..., None] if array.ndim == 2 else array  # (H, W, C)
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4):
        raise InputError(
            f"the image array has shape {array.shape}, expected (H, W), (H, W, 1), (H, W, 3) or "
            "(H, W, 4) with RGB channels last; array.transpose(1, 2, 0) puts first ones last"
        )
    _check_size(pixels.shape[1], pixels.shape[0], "the image array", max_pixels)
    pixels = _array_to_8bit(pixels)
    if pixels.shape[2] == 4:
        return np.array(_to_rgb(Image.fromarray(pixels), _ARRAY))
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _array_to_8bit(pixels: npt.NDArray[Any]) -> ImageArray:
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype == np.uint16:
        return _grey_to_8bit(pixels, True, _ARRAY)
    if pixels.dtype.kind == "f" and pixels.min() >= 0 and pixels.max() <= 1:
        return (pixels * 255 + 0.5).astype(np.uint8)
    raise InputError(
        f"the image array holds {pixels.dtype} in {pixels.min()}..{pixels.max()}, expected uint8, "
        "uint16, bool, or float in 0..1"
    )


def _resize(image: ImageArray, size: tuple[int, int], resample: Resample) -> ImageArray:
    height, width = size
    return np.array(resample_image(Image.fromarray(image), (width, height), _RESAMPLING[resample]))
