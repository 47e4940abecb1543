"""Handwriting-like glyphs of many scripts, which need no download. Every glyph of the fonts that matplotlib ships is
thinned to the path of a pen, bent, and drawn again with a round pen."""

import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mcdi.errors import explained
from mcdi.tasks.images.class_images import ClassImages, alphabet, split_alphabets

Pixels = NDArray[np.uint8]

# Upright faces and one slanted: the true italics hold other letter shapes (Cyrillic te is drawn as an m).
FACES = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold"),
    *("STIXGeneral", "STIXGeneralBol"),
)
SCRIPTS = (
    *("LATIN", "CANADIAN SYLLABICS", "CYRILLIC", "GEORGIAN", "ARABIC", "GREEK", "ARMENIAN"),
    *("TIFINAGH", "LAO", "NKO", "OLD ITALIC", "HEBREW", "OGHAM"),
)
ALPHABETS = {"train": 6, "val": 2, "test": 6}  # alphabets, largest first
DUPLICATE = 0.89  # correlation of two drawings above which a reader would call them one character
SIDE, BOX = 64, 46  # pixels of the canvas on which glyphs are thinned, and of the longer side of a glyph on it
REACH = 5  # pixels of the canvas: distances to the pen's path are measured up to here
CHUNK = 64  # classes drawn at once, for memory


def glyph_images(seed: int, *, size: int = 28, examples: int = 20, limit: int | None = None) -> dict[str, ClassImages]:
    """Splits "train", "val", "test" of (C, examples, size, size) drawings; no script is in two of them. A class's
    drawings depend on `seed` and its character alone; `limit` keeps that many classes of a split, spread evenly. Raises
    McdiError when a font of matplotlib cannot be read."""
    faces = [_Face(name) for name in FACES]
    candidates, splits, kept = _characters()
    out = {}
    for split, scripts in splits.items():
        names = [n for n in kept if alphabet(n) in scripts]
        if limit is not None and limit < len(names):
            names = [names[i * len(names) // limit] for i in range(limit)]
        chunks = [names[i : i + CHUNK] for i in range(0, len(names), CHUNK)]
        drawn = [_draw([candidates[n] for n in chunk], faces, seed, size, examples) for chunk in chunks]
        out[split] = ClassImages(torch.cat(drawn), tuple(names))
    return out


@cache
def _characters() -> tuple[dict[str, int], dict[str, tuple[str, ...]], list[str]]:
    """Code points by name, scripts of the splits, and the names that are kept: no seed, size or limit changes them."""
    face = _Face(FACES[0])
    candidates = _candidates(face)
    splits = split_alphabets(list(candidates), ALPHABETS)
    # Train first: of characters that look alike in two scripts the one in training stays, and none is met again in a test.
    order = {script: i for i, script in enumerate(s for scripts in splits.values() for s in scripts)}
    names = sorted(candidates, key=lambda n: (order[alphabet(n)], candidates[n]))
    return candidates, splits, _different(names, candidates, face)


class _Face:
    """One font face: which characters it holds, and their glyphs as black shapes."""

    def __init__(self, name: str) -> None:
        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
        with explained(f"the font {path} cannot be read", "reinstall matplotlib", OSError, RuntimeError):
            self.codes = frozenset(FT2Font(str(path)).get_charmap())
            self.font = ImageFont.truetype(str(path), 2 * SIDE, layout_engine=ImageFont.Layout.BASIC)
        self.missing = self._ink("\uffff")

    def _ink(self, char: str) -> Image.Image:
        """The character in white on black, cropped to its ink; an empty image where it has none."""
        left, top, right, bottom = (round(side) for side in self.font.getbbox(char))
        image = Image.new("L", (right - left, bottom - top))
        ImageDraw.Draw(image).text((-left, -top), char, fill=255, font=self.font)
        return image.crop(image.getbbox() or (0, 0, 0, 0))

    def glyph(self, code: int, power: float = 1.0) -> Pixels | None:
        """(SIDE, SIDE) of 0 and 1, the ink's box centred with its longer side BOX; None where the face has no such
        glyph. The box's sides have the glyph's proportion to the `power`: 1 keeps it, 0 makes every box a square."""
        image = self._ink(chr(code)) if code in self.codes else self.missing
        if min(image.size) == 0 or image == self.missing:
            return None
        width, height = (max(1, round(BOX * (side / max(image.size)) ** power)) for side in image.size)
        canvas = Image.new("L", (SIDE, SIDE))
        canvas.paste(image.resize((width, height), Image.Resampling.BOX), ((SIDE - width) // 2, (SIDE - height) // 2))
        return (np.asarray(canvas) > 96).astype(np.uint8)


def _candidates(face: _Face) -> dict[str, int]:
    """Class name -> code point: letters and digits of SCRIPTS that are no accented or compatibility form, and operators."""
    codes = {}
    for code in sorted(face.codes):
        char, script = chr(code), "MATHEMATICAL" if 0x2200 <= code < 0x2300 else ""
        name = unicodedata.name(char, "")
        if unicodedata.category(char) in ("Lu", "Ll", "Lo", "Nd"):
            script = next((s for s in SCRIPTS if name.startswith(s + " ")), script)
        if script and not unicodedata.decomposition(char) and face.glyph(code) is not None:
            codes[f"{script}/U+{code:04X}"] = code
    return codes


def _different(names: Sequence[str], codes: dict[str, int], face: _Face) -> list[str]:
    """The names, less those of mere dots and those whose character resembles an earlier one's in a box of nearly its shape."""

    def paths(power: float) -> Pixels:
        return _thin(np.stack([g for n in names if (g := face.glyph(codes[n], power)) is not None]))

    lines = paths(1.0).sum((1, 2), dtype=np.int64) >= BOX // 2
    square = np.square(_distances(paths(0.3))).round().reshape(len(names), -1)
    # Sums of small whole numbers are exact in float32: the choice is the same on every machine with any number of threads.
    near = REACH**2 - square
    ink, both, pixels = near.sum(1, dtype=np.float64), (near @ near.T).astype(np.float64), near.shape[1]
    spread = np.sqrt(pixels * both.diagonal() - ink**2)
    alike = (pixels * both - np.outer(ink, ink)) / np.outer(spread, spread) > DUPLICATE
    kept: list[int] = []
    for i in np.flatnonzero(lines).tolist():
        if not alike[i, kept].any():
            kept.append(i)
    return [names[i] for i in kept]


def _thinning_table() -> NDArray[np.uint8]:
    """(2, 256): whether each half-step of Guo and Hall's thinning keeps a pixel with these 8 neighbours (bit 0 = north)."""
    n, ne, e, se, s, sw, w, nw = (np.arange(256) >> np.arange(8)[:, None]) & 1
    pairs = [(nw | n) + (ne | e) + (se | s) + (sw | w), (n | ne) + (e | se) + (s | sw) + (w | nw)]
    count = np.minimum(*pairs)
    joins = (1 - n & (ne | e)) + (1 - e & (se | s)) + (1 - s & (sw | w)) + (1 - w & (nw | n))
    ends = np.stack([(s | sw | 1 - nw) & w, (n | ne | 1 - se) & e])
    keeps: Pixels = (~((joins == 1) & (count >= 2) & (count <= 3) & (ends == 0))).astype(np.uint8)
    return keeps


_KEEP = _thinning_table()


def _thin(glyphs: Pixels) -> Pixels:
    """Shapes (N, SIDE, SIDE) of 0 and 1, empty at the border -> their middle lines, one pixel wide and still connected."""
    out = glyphs.flatten()
    around = (-SIDE, 1 - SIDE, 1, SIDE + 1, SIDE, SIDE - 1, -1, -SIDE - 1)  # clockwise from north
    ink, before = np.flatnonzero(out), -1
    while len(ink) != before:
        before = len(ink)
        for keep in _KEEP:
            code = np.zeros(len(ink), np.uint8)
            for bit, step in enumerate(around):
                code |= out[ink + step] << np.uint8(bit)
            kept = keep[code]
            out[ink] = kept
            ink = ink[kept == 1]
    return out.reshape(glyphs.shape)


def _distances(lines: Pixels) -> NDArray[np.float32]:
    """(N, SIDE, SIDE) of 0 and 1 -> float32 distance of every pixel to the nearest 1, REACH where it is further."""
    away = np.pad(255 * (1 - lines), ((0, 0), (REACH, REACH), (REACH, REACH)), constant_values=255)
    square = np.full_like(lines, REACH**2)
    for y in range(-REACH, REACH + 1):
        for x in range(-REACH, REACH + 1):
            if y * y + x * x < REACH**2:
                moved = away[:, REACH + y : REACH + y + SIDE, REACH + x : REACH + x + SIDE]
                np.minimum(square, moved | np.uint8(y * y + x * x), out=square)
    return np.sqrt(square, dtype=np.float32)


def _draw(codes: Sequence[int], faces: Sequence[_Face], seed: int, size: int, examples: int) -> Tensor:
    """Drawings uint8 (classes, examples, size, size) of the characters, each example with a face and a hand of its own."""
    glyphs, which, hands = list[Pixels](), list[NDArray[np.int64]](), list[NDArray[np.float32]]()
    for code in codes:
        shapes = [g for face in faces if (g := face.glyph(code)) is not None]
        rng = np.random.default_rng((seed % 2**64, code))
        which.append(len(glyphs) + rng.integers(len(shapes), size=examples))
        hands.append(rng.uniform(-1, 1, (examples, 7 + 2 * 5 * 5)).astype(np.float32))
        glyphs += shapes
    stack = np.stack(glyphs)
    half = torch.tensor([[np.ptp(np.nonzero(g.any(axis))[0]) / SIDE for axis in (0, 1)] for g in stack], dtype=torch.float32)
    chosen = torch.from_numpy(np.concatenate(which))
    fields = torch.from_numpy(_distances(_thin(stack)))[chosen]
    images = _trace(fields, half[chosen], torch.from_numpy(np.concatenate(hands)), size)
    return images.reshape(len(codes), examples, size, size)


def _trace(fields: Tensor, half: Tensor, hands: Tensor, size: int) -> Tensor:
    """Distance fields (N, SIDE, SIDE) of pen paths, half their boxes (N, 2), numbers in [-1, 1] (N, 57) -> (N, size, size)."""
    turn, shear, aspect, size_part, right, down, pen = hands[:, :7].T
    turn, shear, stretch = 0.2 * turn, 0.25 * shear, (0.18 * aspect).exp()
    # The linear map from the glyph to the drawing: stretch, slant, then turn.
    xx, xy = turn.cos() * stretch, turn.cos() * shear * stretch - turn.sin() / stretch
    yx, yy = turn.sin() * stretch, turn.sin() * shear * stretch + turn.cos() / stretch
    extent = torch.stack([xx.abs() * half[:, 0] + xy.abs() * half[:, 1], yx.abs() * half[:, 0] + yy.abs() * half[:, 1]])
    # The drawing fills a random part of the paper and lies anywhere in the rest, less a margin for the elastic bend.
    scale = (0.66 + 0.14 * size_part) / extent.amax(0)
    move_x, move_y = (0.84 - scale * extent) * 0.5 * torch.stack([right, down])
    # Two subpixels a pixel. Output positions are bent, then taken back to the glyph, whose distance is looked up there.
    steps = (torch.arange(2 * size) + 0.5) / size - 1
    bend = F.interpolate(0.09 * hands[:, 7:].reshape(-1, 2, 5, 5), size=2 * size, mode="bicubic", align_corners=True)
    x = steps[None, None, :] + bend[:, 0] - move_x[:, None, None]
    y = steps[None, :, None] + bend[:, 1] - move_y[:, None, None]
    by = (scale * (xx * yy - xy * yx))[:, None, None]
    xx, xy, yx, yy = (part[:, None, None] for part in (xx, xy, yx, yy))
    grid = torch.stack([(yy * x - xy * y) / by, (xx * y - yx * x) / by], dim=-1)
    distance = F.grid_sample(fields[:, None], grid, padding_mode="border", align_corners=False)
    subpixels = distance * (scale * 2 * size / SIDE)[:, None, None, None]  # distance to the path in subpixels of the drawing
    radius = (size / 28) * (1.3 + 0.3 * pen)[:, None, None, None]
    ink = F.avg_pool2d((radius + 0.5 - subpixels).clamp(0, 1), 2)
    return (255 * ink).round().to(torch.uint8)[:, 0]
