"""Colours as models were taught them, in sRGB, whatever colour profile a picture was stored with.

A picture keeps its colours until a model's pixels are made: those are few.
"""

import hashlib
import io
import logging
import threading
from collections import OrderedDict

import numpy as np
from PIL import Image, ImageCms
from PIL.ImageCms import ImageCmsTransform

from vision.core.schemas import Pixels

MAX_PROFILE_BYTES, KEPT = 4_000_000, 32
"""Printers' profiles have up to some 3 MB; how many transforms are kept, each of up to 2 MB."""

SAME = 3
"""Levels of 255 by which a profile may differ from sRGB and is taken for it: its writers round differently."""

# Pillow's mode of each ICC colour space; classes of profiles that describe colours, and not links between two.
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_CLASSES = ("mntr", "scnr", "prtr", "spac")

log = logging.getLogger(__name__)
_srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_found: OrderedDict[bytes, ImageCmsTransform | None] = OrderedDict()
_lock = threading.Lock()


def find(profile: bytes | None, mode: str) -> ImageCmsTransform | None:
    """Return what converts pixels to sRGB, its `input_mode` is theirs; None where nothing is to be converted.

    mode: Pillow's, of the picture that the profile came with. None is for no profile, sRGB's own, and one that is
    broken, too large, or of another kind of picture.
    """
    if not profile or len(profile) > MAX_PROFILE_BYTES:
        return None
    digest = hashlib.sha256(profile).digest()
    with _lock:
        known = digest in _found
        transform = _found.get(digest)
        if known:
            _found.move_to_end(digest)
    if not known:
        transform = _build(profile)
        with _lock:
            _found[digest] = transform
            while len(_found) > KEPT:
                _found.popitem(last=False)
    return transform if transform and _fits(transform.input_mode, mode) else None


def mark(picture: Image.Image, profile: bytes | None, transform: ImageCmsTransform | None) -> None:
    """Note on a picture in `transform.input_mode` in which colours it is; forget all else that its file said."""
    picture.info = {"icc_profile": profile, "to_srgb": transform} if transform else {}


def to_srgb(pixels: Pixels, picture: Image.Image) -> Pixels:
    """Return pixels (H, W), (H, W, 3) or (H, W, 4), made of a marked picture, as sRGB (H, W, 3)."""
    transform = picture.info.get("to_srgb")
    if not transform:
        return pixels
    height, width = pixels.shape[:2]
    image = Image.frombytes(transform.input_mode, (width, height), np.ascontiguousarray(pixels).tobytes())
    return np.asarray(transform.apply(image))


def _build(profile: bytes) -> ImageCmsTransform | None:
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _MODES.get(opened.profile.xcolor_space)
        if not mode or opened.profile.device_class not in _CLASSES:
            return None
        transform = ImageCmsTransform(
            opened,
            _srgb,
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
        return None if _is_srgb(transform) else transform
    except (OSError, ValueError, TypeError) as error:  # what Pillow raises for a broken one
        log.info("unusable colour profile: %s", type(error).__name__)
        return None


def _is_srgb(transform: ImageCmsTransform) -> bool:
    if transform.input_mode == "CMYK":
        return False
    levels = np.arange(256, dtype=np.uint8)
    if transform.input_mode == "L":
        given = levels[None]
        expected = np.repeat(given[..., None], 3, axis=2)
    else:
        expected = given = np.stack(np.meshgrid(*[levels[::17]] * 3), axis=-1).reshape(16, 256, 3)
    found = np.asarray(transform.apply(Image.fromarray(given)))
    return int(np.abs(found.astype(int) - expected).max()) <= SAME


def _fits(profile_mode: str, mode: str) -> bool:
    match profile_mode:
        case "L":
            return mode[0] in "1LI"
        case "CMYK":
            return mode == "CMYK"
        case _:
            return mode != "CMYK"
