"""Reading pictures with Pillow, as 8-bit RGB and turned as they are meant to be seen."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from lime.data.files import BOUNDS, Bounds, MediaError, regular_file
from lime.data.signatures import describe_file

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `data.max_pixels` is the bound

_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_LYING = (5, 6, 7, 8)
_SURE_OF_SIZE = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "PPM", "TGA")
_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of TIFF


def load_image(path: str | Path, row_id: str | None = None, bounds: Bounds = BOUNDS) -> Image.Image:
    """An RGB picture of 8 bits, turned as its EXIF orientation says.

    Deeper pictures are scaled by their type's range: 16 bits by 256; 32-bit integers that all fit in 8 or 16 bits as
    those, else by 2^24 (signed: 2^23); floats from 0 to 1 by 255. Raises MediaError, also for values that are negative
    or floats outside 0 to 1, and for a picture of more than `bounds.pixels`.
    """
    with _opened(path, row_id, bounds) as image:
        image.load()
        bounds.check_pixels(path, *image.size, row_id)
        turn = _TURNS.get(_orientation(image))
        shallow = _eight_bits(image, path, row_id)
        return (shallow.transpose(turn) if turn is not None else shallow).convert("RGB")


def image_size(path: str | Path, row_id: str | None = None, bounds: Bounds = BOUNDS) -> tuple[int, int]:
    """(height, width) of what `load_image` gives, from the header where that can be trusted. Raises MediaError."""
    with _opened(path, row_id, bounds) as image:
        if image.format not in _SURE_OF_SIZE:
            image.load()
        width, height = image.size
        # Pillow's TIFF reader turns the picture itself, and its header says the turned size.
        turned = image.format != "TIFF" and _orientation(image) in _LYING
        return (width, height) if turned else (height, width)


@contextmanager
def _opened(path: str | Path, row_id: str | None, bounds: Bounds) -> Iterator[Image.Image]:
    """A picture whose header was read and is within bounds; all that Pillow says of a bad file becomes a MediaError."""
    regular_file(path, row_id)
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = (bounds.pixels + 1) // 2  # Pillow refuses twice as many, in pictures within icons too
    try:
        # Given a name, Pillow maps a TIFF of one channel as if its lines were those of the turned picture.
        with Path(path).open("rb") as stream, Image.open(stream) as image:
            if image.format == "EPS":  # Pillow would have Ghostscript run it
                raise MediaError(path, "not a readable picture (EPS is a program; convert it)", row_id, "wrong_type")
            bounds.check_pixels(path, *image.size, row_id)
            yield image
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        count = next((word.lstrip("(") for word in str(error).split() if word.lstrip("(").isdigit()), "too many")
        problem = f"{count} pixels, over data.max_pixels={bounds.pixels}; make it smaller or raise the bound"
        raise MediaError(path, problem, row_id, "too_large") from error
    except PermissionError as error:
        raise MediaError(path, "no permission to read it", row_id, "unreadable") from error
    except Exception as error:  # the readers of rarer formats raise anything for damage: struct.error, IndexError, …
        found = describe_file(path)
        if found is not None and not found.endswith("picture"):
            raise MediaError(path, f"not a readable picture (it holds {found})", row_id, "wrong_type") from error
        kind = "too_large" if isinstance(error, MemoryError) else "damaged"
        raise MediaError(path, f"not a readable picture ({_said(error, path)})", row_id, kind) from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _said(error: Exception, path: str | Path) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "no format that is known here"
    return str(error).replace(str(path), "it").strip() or type(error).__name__


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none or it is broken: the picture is whole all the same."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # noqa: BLE001  # whatever the bytes of a broken EXIF make its parser raise
        return 1
    return value if isinstance(value, int) else 1


def _eight_bits(image: Image.Image, path: str | Path, row_id: str | None) -> Image.Image:
    """The picture, scaled to 8 bits where it has more."""
    if image.mode == "F":
        return _from_floats(np.asarray(image), path, row_id)
    if image.mode != "I" and not image.mode.startswith("I;"):
        return image
    tags = getattr(image, "tag_v2", {})
    bits, signed = _depth(image, tags)
    values_HW = np.asarray(image).astype(np.int64)
    if bits == 32 and not signed:
        values_HW &= 0xFFFFFFFF  # Pillow keeps them as signed ones
    if values_HW.min(initial=0) < 0:
        raise MediaError(path, "a picture of signed integers with values below 0; convert it to 8 or 16 bits", row_id)
    if bits == 32 and (high := values_HW.max(initial=0)) < 2**16:
        bits, signed = 16 if high >= 2**8 else 8, False
    scaled_HW = values_HW >> (bits - 8 - int(signed))
    if image.mode.startswith("I;") and tags.get(_PHOTOMETRIC) == 0:  # white is zero; Pillow turns only 8 bits
        scaled_HW = 255 - scaled_HW
    return Image.fromarray(scaled_HW.clip(0, 255).astype(np.uint8))


def _depth(image: Image.Image, tags: object) -> tuple[int, bool]:
    """(bits of a value, whether one is its sign)."""
    if image.format != "TIFF":  # PNG, PGM and JPEG 2000 come scaled to 16 bits
        return (16, False) if image.mode != "I" or image.format in ("PNG", "PPM", "JPEG2000") else (32, True)
    assert hasattr(tags, "get")
    bits = tags.get(_BITS, (16,))
    sample = tags.get(_SAMPLE_FORMAT, (1,))
    return max(int(bits[0]) if isinstance(bits, tuple) else int(bits), 9), (sample or (1,))[0] == 2


def _from_floats(values_HW: np.ndarray, path: str | Path, row_id: str | None) -> Image.Image:
    low, high = float(values_HW.min(initial=0)), float(values_HW.max(initial=0))
    if not (math.isfinite(low) and math.isfinite(high) and low >= 0 and high <= 1):
        said = f"from {low:g} to {high:g}" if math.isfinite(low) and math.isfinite(high) else "that are not finite"
        raise MediaError(
            path, f"a picture of floats with values {said}; expected 0 to 1: scale it, or save it with 8 bits", row_id
        )
    return Image.fromarray((values_HW * 255).round().astype(np.uint8))
