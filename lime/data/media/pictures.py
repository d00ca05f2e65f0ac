"""Reading pictures with Pillow, as 8-bit RGB and turned as they are meant to be seen."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from lime.data.files import BOUNDS, Bounds, MediaError, Medium, regular_file
from lime.data.media.signatures import describe_file

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
    medium = regular_file(path, row_id, bounds)
    with _opened(medium) as image:
        image.load()
        medium.check_pixels(*image.size)
        turn = _TURNS.get(_orientation(image))
        shallow = _eight_bits(image, medium)
        return (shallow.transpose(turn) if turn is not None else shallow).convert("RGB")


def image_size(path: str | Path, row_id: str | None = None, bounds: Bounds = BOUNDS) -> tuple[int, int]:
    """(height, width) of what `load_image` gives, from the header where that can be trusted. Raises MediaError."""
    with _opened(regular_file(path, row_id, bounds)) as image:
        if image.format not in _SURE_OF_SIZE:
            image.load()
        width, height = image.size
        # Pillow's TIFF reader turns the picture itself, and its header says the turned size.
        turned = image.format != "TIFF" and _orientation(image) in _LYING
        return (width, height) if turned else (height, width)


@contextmanager
def _opened(medium: Medium) -> Iterator[Image.Image]:
    """A picture whose header was read and is within bounds; all that Pillow says of a bad file becomes a MediaError."""
    before = Image.MAX_IMAGE_PIXELS
    # Pillow refuses twice as many, in pictures within icons too
    Image.MAX_IMAGE_PIXELS = (medium.bounds.pixels + 1) // 2
    try:
        # Given a name, Pillow maps a TIFF of one channel as if its lines were those of the turned picture.
        with medium.path.open("rb") as stream, Image.open(stream) as image:
            if image.format == "EPS":  # Pillow would have Ghostscript run it
                raise medium.error("not a readable picture (EPS is a program; convert it)", "wrong_type")
            medium.check_pixels(*image.size)
            yield image
    except MediaError:
        raise
    except Image.DecompressionBombError as error:
        words = (word.lstrip("(") for word in str(error).split())
        raise medium.too_many_pixels(next((word for word in words if word.isdigit()), "too many")) from error
    except PermissionError as error:
        raise medium.error("no permission to read it", "unreadable") from error
    except Exception as error:  # the readers of rarer formats raise anything for damage: struct.error, IndexError, …
        content = describe_file(medium.path)
        if content is not None and not content.endswith("picture"):
            raise medium.error(f"not a readable picture (it holds {content})", "wrong_type") from error
        kind = "too_large" if isinstance(error, MemoryError) else "damaged"
        raise medium.error(f"not a readable picture ({_said(error, medium.path)})", kind) from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def _said(error: Exception, path: Path) -> str:
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


def _eight_bits(image: Image.Image, medium: Medium) -> Image.Image:
    """The picture, scaled to 8 bits where it has more."""
    if image.mode == "F":
        return _from_floats(np.asarray(image), medium)
    if image.mode != "I" and not image.mode.startswith("I;"):
        return image
    tags = getattr(image, "tag_v2", {})
    bits, signed = _depth(image, tags)
    values_HW = np.asarray(image).astype(np.int64)
    if bits == 32 and not signed:
        values_HW &= 0xFFFFFFFF  # Pillow keeps them as signed ones
    if values_HW.min(initial=0) < 0:
        raise medium.error("a picture of signed integers with values below 0; convert it to 8 or 16 bits")
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


def _from_floats(values_HW: np.ndarray, medium: Medium) -> Image.Image:
    low, high = float(values_HW.min(initial=0)), float(values_HW.max(initial=0))
    if not (low >= 0 and high <= 1):  # also where one is no number
        finite = math.isfinite(low) and math.isfinite(high)
        values = f"from {low:g} to {high:g}" if finite else "that are not finite"
        raise medium.error(
            f"a picture of floats with values {values}; expected 0 to 1: scale it, or save it with 8 bits"
        )
    return Image.fromarray((values_HW * 255).round().astype(np.uint8))
