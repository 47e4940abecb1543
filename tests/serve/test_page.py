"""The page of `mcdi serve` in a browser: draw, see the weights made and the prediction, by mouse, finger and keyboard."""

import base64
import importlib.resources
import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file

from mcdi.tasks.images.class_images import DRAWING, read_image
from mcdi.tasks.images.glyphs import glyph_images

PAGE = importlib.resources.files("mcdi.serve") / "page"
WAIT = 30_000  # milliseconds, on a machine that has much else to do


class TestFiles:
    def test_are_in_the_package_and_refer_to_no_other_place(self):
        names = {f.name for f in PAGE.iterdir()}
        for text in (f.read_text() for f in PAGE.iterdir()):
            assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[a-z]+\.[a-z]", text)
            assert set(re.findall(r'"/page/([^"]+)"', text)) | set(re.findall(r'from "\./([^"]+)"', text)) <= names
            assert text.count("\n") < 300

    def test_hold_no_script_or_style_that_the_policy_refuses(self):
        html = (PAGE / "index.html").read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", html)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    pytest.importorskip("fastapi", reason="needs mcdi[serve]")
    from drawing import process, trained

    with process(trained(tmp_path_factory.mktemp("drawn"))) as found:
        yield found


@pytest.fixture(scope="module")
def browser():
    play = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Debian's browser: apt-get install chromium")
    with play.sync_playwright() as started:
        yield started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture
def visit(address, browser):
    """visit(**how) -> the page in a window of its own. Afterwards nothing may have gone wrong in it, or to another host."""
    opened = []

    def open_page(**how):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, "reduced_motion": "reduce", **how})
        context.set_default_timeout(WAIT)
        page = context.new_page()
        page.wrong = []
        page.on("console", lambda m: page.wrong.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: page.wrong.append(str(e)))
        page.on("request", lambda r: page.wrong.append(r.url) if not r.url.startswith((address, "blob:")) else None)
        opened.append(page)
        page.goto(address)
        page.locator("#model").wait_for()
        return page

    yield open_page
    for page in opened:
        page.context.close()
        assert page.wrong == []


def shows(page, selector, text):
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(text, timeout=WAIT)


def fill(page):
    page.click("#fill")
    shows(page, "#prediction", "Taken for")


def test_ink_is_as_in_training(visit):
    page = visit()
    with page.expect_request("**/v1/generate") as asked:
        page.click("#fill")
    files = [memoryview(base64.b64decode(i)) for i in asked.value.post_data_json["support"]["images"]]
    drawn = torch.stack([read_image(f, DRAWING, "") for f in files]).float() / 255
    letters = glyph_images(0, limit=10)["test"].images.float() / 255
    for measure in (lambda x: x.mean(), lambda x: x[x > 0.3].mean(), sides):
        assert float(measure(drawn)) == pytest.approx(float(measure(letters)), rel=0.3)


def sides(images):
    """The longer side of the ink, in pixels, on average."""
    ink = images.reshape(-1, 28, 28) > 0.3
    return torch.stack([ink.any(d).sum(1) for d in (1, 2)]).amax(0).float().mean()


class TestByMouse:
    def test_five_symbols_and_the_right_prediction(self, visit):
        from drawing import STROKES, draw

        page = visit()
        for i, name in enumerate(STROKES):
            card = page.locator(".card").nth(i)
            card.locator("input").first.fill(name)
            draw(page, card.locator("canvas.pad"), name)
            if name == "ring":
                shows(page, "#made", "2 classes or more: 1 has some so far")
        shows(page, "#made", "for 5 classes")
        assert re.search(r"325 weights for 5 classes in [\d.]+ ms \([\d.]+ ms round trip\)", page.inner_text("#made"))
        for name in ("plus", "shell"):
            page.click("#test-clear")
            shows(page, "#prediction", "Draw here")
            draw(page, page.locator("#test"), name, turn=0.15, size=0.5)
            shows(page, "#prediction", f"Taken for: {name}")
            assert f"Prediction: {name}" in page.get_attribute("#test", "aria-label")
        shares = [float(t.removesuffix(" %")) for t in page.locator(".bars .share").all_inner_texts()]
        assert len(shares) == 5 and sum(shares) == pytest.approx(100, abs=1)
        page.locator(".card").nth(4).locator("input").first.fill("snail")
        shows(page, "#prediction", "Taken for: snail")

    def test_examples_come_and_go(self, visit, tmp_path):
        from serving import png

        page = visit()
        fill(page)
        card = page.locator(".card").first
        card.get_by_text("Next example").click()
        assert card.locator(".thumbs li").count() == 2
        (tmp_path / "ring.png").write_bytes(png("ring"))
        card.locator("input[type=file]").set_input_files(tmp_path / "ring.png")
        card.locator(".thumbs li").nth(2).wait_for()
        card.get_by_label("Delete example 1 of circle").click()
        assert card.locator(".thumbs li").count() == 2
        page.get_by_label("Remove wave").click()
        shows(page, "#made", "for 4 classes")
        for _ in range(6):
            page.click("#add")
        assert page.locator(".card").count() == 10 and page.is_disabled("#add")


class TestChain:
    def test_is_drawn_as_the_slider_moves(self, visit):
        page = visit()
        fill(page)
        shows(page, "#at-out", "step 20 of 20, loss")
        pictures = set()
        for at in ("0", "3", "20"):
            page.locator("#at").fill(at)
            shows(page, "#at-out", f"step {at} of 20")
            pictures.add(tuple(page.evaluate("[landscape, matrix].map((c) => c.toDataURL())")))
        assert len({p[0] for p in pictures}) == len({p[1] for p in pictures}) == 3
        assert "at step 20 of 20, loss" in page.get_attribute("#landscape", "aria-label")
        page.click("#play")
        shows(page, "#play", "Stop")
        shows(page, "#play", "Play")
        assert page.input_value("#at") == "20"

    def test_steps_and_noise_can_be_chosen(self, visit):
        page = visit()
        fill(page)
        with page.expect_request("**/v1/generate") as asked:
            page.locator("#steps").fill("3")
        assert asked.value.post_data_json["steps"] == 3
        shows(page, "#steps-out", "3 of 20")
        page.locator("#at[max='3']").wait_for()
        with page.expect_request("**/v1/generate") as asked:
            page.click("#again")
        assert asked.value.post_data_json["seed"] == 1
        with page.expect_request("**/v1/generate") as asked:
            page.click("#trained")
        assert "steps" not in asked.value.post_data_json


def test_weights_are_downloaded(visit, tmp_path):
    page = visit()
    fill(page)
    with page.expect_download() as found:
        page.click("#download")
    assert found.value.suggested_filename == "letters.safetensors"
    found.value.save_as(tmp_path / "w.safetensors")
    assert {n: tuple(w.shape) for n, w in load_file(tmp_path / "w.safetensors").items()} == {"weight": (5, 64), "bias": (5,)}


def test_by_keyboard_alone(visit):
    page = visit()

    def go(label):
        """Tab to what has this name."""
        for _ in range(60):
            page.keyboard.press("Tab")
            name = page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent")
            if name and name.startswith(label):
                assert page.evaluate("document.activeElement.matches(':focus-visible')")
                return
        raise AssertionError(f"no way to {label!r} by keyboard")

    def line(key, back):
        for _ in range(8):
            page.keyboard.press(back)
        page.keyboard.press(" ")
        shows(page, "#said", "pen down")
        for _ in range(16):
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        shows(page, "#said", "pen up")

    go("Name of class 1")
    page.keyboard.type("bar")
    go("Drawing pad of bar")
    line("ArrowRight", "ArrowLeft")
    go("Next example of bar")
    page.keyboard.press("Enter")
    go("Drawing pad of class 2")
    line("ArrowDown", "ArrowUp")
    shows(page, "#made", "for 2 classes")
    go("Test pad")
    line("ArrowDown", "ArrowUp")
    shows(page, "#prediction", "Taken for: class 2")
    page.keyboard.press("Backspace")
    shows(page, "#prediction", "Draw here")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fits_a_phone(visit, scheme):
    page = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, color_scheme=scheme)
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 360
    pad = page.locator(".card canvas.pad").first
    pad.tap()
    assert "1 example" in pad.get_attribute("aria-label")
    page.on("dialog", lambda dialog: dialog.accept())
    fill(page)
    page.locator("#matrix").wait_for()
    assert page.evaluate(width) == 360


class TestSentences:
    def test_an_error_of_the_server_is_told_until_all_is_well(self, visit):
        page = visit()

        def other(route):
            route.continue_(post_data=json.dumps({**route.request.post_data_json, "model": "gone"}))

        page.route("**/v1/generate", other)
        page.click("#fill")
        shows(page, "[role=alert]", "there is no model of this name: choose letters, means, vectors")
        page.unroute("**/v1/generate")
        page.click("#again")
        shows(page, "#prediction", "Taken for")
        assert page.inner_text("[role=alert]") == ""
        assert all("404" in text for text in page.wrong)
        page.wrong.clear()

    def test_a_key_is_asked_for_and_sent(self, visit, address):
        page = visit()

        def locked(route):
            if route.request.headers.get("authorization") == "Bearer open sesame":
                return route.continue_()
            return route.fulfill(status=401, json={"error": "this server asks for a key"})

        page.route("**/v1/**", locked)
        page.reload()
        shows(page, "[role=alert]", "asks for a key")
        page.fill("#key", "open sesame")
        page.keyboard.press("Enter")
        fill(page)
        assert not page.is_visible("#key")
        page.wrong.clear()

    def test_what_a_model_cannot_do_is_said(self, visit):
        page = visit()
        page.select_option("#model", "vectors")
        shows(page, "#unfit", "vectors reads feature vectors of 6 numbers, not images")
        assert not page.is_visible("main")
        page.select_option("#model", "means")
        shows(page, "#seed", "there are no denoising steps")
        fill(page)
        assert not page.is_visible("#chain") and page.inner_text("#unfit") == ""
