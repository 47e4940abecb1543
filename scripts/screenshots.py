"""Screenshots of the page of `mcdi serve`, from a running server: on a desktop and on a phone, with the chain; or of a
whole network, whose predictions the browser computes without the server; or of photos.

Examples:
    mcdi serve runs/glyphs/methods/mc-di-0 & python scripts/screenshots.py http://127.0.0.1:8000 docs/images
    mcdi serve symbols & python scripts/screenshots.py http://127.0.0.1:8000 docs/images --network
    mcdi serve photos & python scripts/screenshots.py http://127.0.0.1:8000 docs/images --photos
"""

import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from sklearn.datasets import load_sample_images

SCREENS = {"desktop": (1280, 800, 1.0, "light"), "phone": (390, 844, 1.5, "dark")}  # width, height, device scale, colours


def fill_in(page: Page, address: str) -> None:
    """The whole page with its example, the chain at its last state."""
    page.goto(address)
    page.click("#fill")
    page.wait_for_selector("#bars .best")
    page.wait_for_selector("#chain-views:visible")


def draw_without_server(page: Page, address: str) -> None:
    """The page with its example; then a drawing that the browser classifies while every request fails."""
    page.goto(address)
    page.click("#fill")
    page.wait_for_selector("#filters:visible")
    page.wait_for_selector("#bars .best")
    page.route("**/*", lambda route: route.abort())
    page.click("#test-clear")
    box = page.locator("#test").bounding_box()
    assert box is not None
    points = [(0.5 + 0.3 * x, 0.5 + 0.3 * y) for x, y in ((0, -1), (0.95, 0.8), (-0.9, 0.85), (0.02, -0.95))]
    page.mouse.move(box["x"] + points[0][0] * box["width"], box["y"] + points[0][1] * box["height"])
    page.mouse.down()
    for x, y in points[1:]:
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=12)
    page.mouse.up()
    page.wait_for_selector("#bars .best")


def photograph(page: Page, address: str) -> None:
    """The page with parts of the two photos that scikit-learn ships as classes, and another part as the test."""
    page.goto(address)
    with tempfile.TemporaryDirectory() as folder:
        for name, photo in zip(("temple", "flower"), load_sample_images().images, strict=True):
            for n, (top, left) in enumerate(((0, 0), (100, 200), (60, 330), (150, 100))):
                path = Path(folder) / "classes" / name / f"{n}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(photo[top : top + 260, left : left + 300]).save(path)
        path.rename(test := Path(folder) / "test.jpg")
        page.locator("#folder-file").set_input_files(Path(folder) / "classes")
        page.locator("#test-file").set_input_files(test)
        page.wait_for_selector("#bars .best")


SHOTS = {
    "": (fill_in, SCREENS),
    "--network": (draw_without_server, {"network": (1280, 1000, 1.0, "light")}),
    "--photos": (photograph, {"photos": (1280, 760, 1.0, "light")}),
}


def main(address: str, folder: Path, kind: str = "") -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    folder.mkdir(parents=True, exist_ok=True)
    prepare, screens = SHOTS[kind]
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (width, height, scale, scheme) in screens.items():
            page = browser.new_page(
                viewport={"width": width, "height": height},
                device_scale_factor=scale,
                color_scheme=scheme,
                reduced_motion="reduce",  # no animation of the chain
            )
            prepare(page, address)
            page.evaluate("document.activeElement.blur()")
            page.screenshot(path=folder / f"page-{name}.png", full_page=True, animations="disabled")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
