"""Bytes, milliseconds an image and accuracy of generated networks as files.

    python benchmarks/network_files.py symbols

The network of a task is written as each kind of file; the C header is compiled (cc -O2) and timed. Accuracy is that of 32-bit
and of 8-bit weights on the same queries: tasks of the embedded letters of unseen scripts, those of the recipe glyphs-conv4.
"""

import argparse
import subprocess
import tempfile
import time
from pathlib import Path

import torch

import mcdi
from mcdi.experiments.statistics import interval
from mcdi.generator.c_header import rounded
from mcdi.generator.network_files import write_network
from mcdi.tasks.episodes import FewShot
from mcdi.tasks.images.glyphs import glyph_images

REPEATS = 2000  # images a timing
PROGRAM = f"""#include <stdio.h>
#include <time.h>
#include "network.h"
int main(void) {{
    static unsigned char x[MCDI_PIXELS];
    clock_t start = clock();
    long sum = 0;
    for (int i = 0; i < {REPEATS}; i++) {{ x[i % MCDI_PIXELS] = (unsigned char)i; sum += mcdi_classify(x); }}
    printf("%f\\n", 1000.0 * (double)(clock() - start) / CLOCKS_PER_SEC / {REPEATS});
    return sum < 0;
}}
"""


def c_milliseconds(folder: Path) -> tuple[float, int]:
    """Milliseconds an image of the header in `folder`, and bytes of the compiled code and data."""
    (folder / "main.c").write_text(PROGRAM)
    subprocess.run(["cc", "-std=c99", "-O2", "main.c", "-o", "main", "-lm"], cwd=folder, check=True)
    subprocess.run(["cc", "-std=c99", "-O2", "-c", "main.c", "-o", "main.o"], cwd=folder, check=True)
    sizes = subprocess.run(["size", "main.o"], cwd=folder, check=True, capture_output=True, text=True).stdout.split()
    took = float(subprocess.run([folder / "main"], check=True, capture_output=True, text=True).stdout)
    return took, sum(map(int, sizes[6:8]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder, or the name of a ready-made generator")
    parser.add_argument("--tasks", type=int, default=600)
    args = parser.parse_args()
    torch.set_num_threads(1)
    generator = mcdi.load(args.model)
    net, drawings = generator.network, glyph_images(0)["test"].pixels
    family = FewShot("glyphs", net, {"test": net.embed(drawings)}, way=net.way, shots=(1, 5))
    for shots in family.shots:
        batch = family.sample("test", range(args.tasks), shots=shots)
        weights = generator.method.generate(net, batch.support, batch.mask, seed=0)
        state = net.space.unpack(weights)
        coarse = dict(state)
        for n, w in state.items():
            if w.ndim > 2:
                integers, scale = rounded(w.flatten(0, 1))
                coarse[n] = (integers.float() * scale.reshape(-1, *[1] * (w.ndim - 2))).reshape(w.shape)
        scores = [net.score(net.space.pack(s), batch.query, batch.mask) for s in (state, coarse)]
        full, small = (interval(100 * s) for s in scores)
        lost = interval(100 * (scores[0] - scores[1]))
        print(
            f"{shots} shots, {args.tasks} unseen tasks: 32 bits {full['mean']:.2f} ± {full['ci95']:.2f}, "
            f"8 bits {small['mean']:.2f}; lost {lost['mean']:.2f} ± {lost['ci95']:.2f}"
        )
    one = {n: w[0] for n, w in state.items()}
    names = [str(n) for n in range(net.way)]
    with tempfile.TemporaryDirectory() as scratch:
        for name, int8 in (("network.h", False), ("network.h", True), ("network.onnx", False), ("network.safetensors", False)):
            path = Path(scratch) / name
            module = write_network(generator, one, names, path, int8=int8)
            what = f"{name}{' --int8' if int8 else ''}: {path.stat().st_size:,} bytes"
            if path.suffix == ".h":
                took, size = c_milliseconds(path.parent)
                what += f"; compiled {size:,} bytes of code and constants; {took:.3f} ms an image"
            print(what)
        x = torch.rand(1, *generator.image_shape)
        start = time.perf_counter()
        with torch.no_grad():
            for _ in range(200):
                module(x)
        print(f"PyTorch, one image: {5 * (time.perf_counter() - start):.3f} ms")


if __name__ == "__main__":
    main()
