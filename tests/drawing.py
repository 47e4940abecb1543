"""A small generator for drawn letters, a server process, and strokes that a mouse draws on the page."""

import math
import resource
import subprocess
import sys
from contextlib import contextmanager

import torch

from mcdi.generator.api import Generator
from mcdi.methods import make_method
from mcdi.networks.backbones.embedder import Embedder, compute_features
from mcdi.networks.backbones.vision import Conv4, train_backbone
from mcdi.networks.linear_head import LinearHead
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.images.glyphs import glyph_images
from mcdi.trajectories.prepare import Preparation, trajectories

SETTINGS = {"T": 20, "options": {"width": 32, "depth": 1}, "training": {"iterations": 30, "learners": 2, "tasks": 16}}


def trained(root):
    """Folders of generators for letters, and of one that reads vectors; and the name of a ready-made one of whole networks."""
    pixels = {n: b.pixels for n, b in glyph_images(0, limit=60, examples=10).items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        embedder = Embedder(Conv4())
    for _ in train_backbone(embedder.backbone, pixels["train"], steps=30, seed=0, way=20):
        pass
    embedder.fit(compute_features(embedder.backbone, pixels["train"]))
    network = LinearHead(64, 5, embedder)
    family = FewShot("glyphs", network, {n: network.embed(x) for n, x in pixels.items()}, way=5, shots=(1, 2), queries=5)
    data = trajectories(family, "train", range(200), Preparation(tasks=200, epochs=30, k=3))
    generators = {
        "letters": Generator("mc-di", make_method("mc-di", SETTINGS).fit(family, data, seed=0), network),
        "means": Generator("prototypes", make_method("prototypes", {}), network),
        "vectors": Generator("prototypes", make_method("prototypes", {}), LinearHead(6, 3)),
    }
    for name, generator in generators.items():
        generator.save_pretrained(root / name)
    return [*(root / name for name in generators), "symbols"]


@contextmanager
def process(folders, *options, limits=None):
    """The URL of a process of `mcdi serve` for these folders, with limits of the operating system."""
    with started(folders, *options, limits=limits) as (url, _):
        yield url


@contextmanager
def started(folders, *options, limits=None):
    """The URL of a process of `mcdi serve`, and the process."""
    command = [sys.executable, "-m", "mcdi", "serve", *map(str, folders), "--port", "0", *map(str, options)]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: _limit(limits or {}))
    try:
        first = running.stderr.readline()
        assert " serves" in first, first + running.stderr.read()
        yield first.split()[0], running
    finally:
        running.kill()
        running.communicate()


def _limit(limits):
    for kind, value in limits.items():
        resource.setrlimit(kind, (value, value))


def _arc(count, turns, inner=1.0):
    angles = [(i / count, turns * 2 * math.pi * i / count) for i in range(count + 1)]
    return [((inner + (1 - inner) * s) * math.cos(a), (inner + (1 - inner) * s) * math.sin(a)) for s, a in angles]


STROKES = {
    "ring": [_arc(14, 1.05)],
    "plus": [[(-1, 0), (1, 0)], [(0, -1), (0, 1)]],
    "tent": [[(0, -1), (1, 0.8), (-1, 0.8), (0, -1)]],
    "snake": [[(i / 6 - 1, -0.45 * math.sin(12.6 * i / 12)) for i in range(13)]],
    "shell": [_arc(26, 2.2, inner=0.08)],
}


def draw(page, canvas, name, turn=0.0, size=0.6):
    """Draw a symbol by mouse."""
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    half, cos, sin = box["width"] / 2, math.cos(turn), math.sin(turn)
    for stroke in STROKES[name]:
        points = [(half + size * half * (cos * x - sin * y), half + size * half * (sin * x + cos * y)) for x, y in stroke]
        page.mouse.move(box["x"] + points[0][0], box["y"] + points[0][1])
        page.mouse.down()
        for x, y in points[1:]:
            page.mouse.move(box["x"] + x, box["y"] + y)
        page.mouse.up()
