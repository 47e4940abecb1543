"""Screenshots of the page of `mcdi serve`, on a desktop and on a phone, from a running server.

Example: mcdi serve runs/glyphs/methods/mc-di-0 & python scripts/screenshots.py http://127.0.0.1:8000 docs/images
"""

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

SCREENS = {"desktop": (1280, 800, 1.0, "light"), "phone": (390, 844, 1.5, "dark")}  # width, height, device scale, colours


def take_screenshot(page: Page, address: str, path: Path) -> None:
    """The whole page with its example, the chain at its last state."""
    page.goto(address)
    page.click("#fill")
    page.wait_for_selector("#bars .best")
    page.wait_for_selector("#chain-views:visible")
    page.evaluate("document.activeElement.blur()")
    page.screenshot(path=path, full_page=True, animations="disabled")


def main(address: str, folder: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("chromium is not installed: apt-get install chromium")
    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, (width, height, scale, scheme) in SCREENS.items():
            page = browser.new_page(
                viewport={"width": width, "height": height},
                device_scale_factor=scale,
                color_scheme=scheme,
                reduced_motion="reduce",  # no animation of the chain
            )
            take_screenshot(page, address, folder / f"page-{name}.png")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
