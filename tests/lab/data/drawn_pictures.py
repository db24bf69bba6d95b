"""One small picture in every mode of Pillow, and what a person sees of it."""

from __future__ import annotations

import numpy as np
from PIL import Image

RAMP = np.tile(np.linspace(0, 255, 24).round(), (16, 1))
"""Gray values, black on the left and white on the right."""
COLORED = np.stack([RAMP, RAMP[:, ::-1], np.full_like(RAMP, 90)], -1)
SIXTEEN = RAMP.astype(np.uint16) * 257

MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
DEEP = ("I;16", "I;16L", "I;16B", "I", "F")
"""Modes of more than 8 bits."""
COLOR_LOSS = {"La": 2, "RGBa": 2, "P": 50, "PA": 50, "YCbCr": 3, "LAB": 33, "HSV": 6}
"""What a mode itself loses of a color: rounding; the nearest of 216 colors; colors that LAB's 8 bits cannot hold."""


def drawn(mode: str) -> Image.Image:
    """Return the picture in a mode."""
    gray, colored = (Image.fromarray(values.astype(np.uint8)) for values in (RAMP, COLORED))
    if mode in ("I;16", "I;16L", "I;16B"):
        return Image.frombytes(mode, (24, 16), SIXTEEN.astype(">u2" if mode == "I;16B" else "<u2").tobytes())
    if mode == "I":
        return Image.fromarray(SIXTEEN.astype(np.int32))
    if mode == "F":
        return Image.fromarray((RAMP / 255).astype(np.float32))
    if mode in ("LA", "La"):
        return Image.merge("LA", (gray, gray)).convert(mode)
    if mode in ("RGBA", "RGBa"):
        return Image.merge("RGBA", (*colored.split(), gray)).convert(mode)
    if mode == "PA":
        return colored.convert("P").convert("PA")
    return (gray if mode in ("1", "L") else colored).convert(mode)


def seen(mode: str) -> np.ndarray:
    """Return what a person sees of it, (16, 24, 3) in float64: what is transparent, on white."""
    gray = np.repeat(RAMP[..., None], 3, -1)
    if mode == "1":
        return np.asarray(drawn("1").convert("RGB")).astype(float)
    if mode in ("LA", "La", "RGBA", "RGBa"):
        color, opacity = gray if mode[0] == "L" else COLORED, gray / 255
        return color * opacity + 255 * (1 - opacity)
    return gray if mode in ("L", *DEEP) else COLORED
