"""The page of `mcdi serve` in a browser: drawing, weights, prediction and chain, by mouse, touch and keyboard."""

import base64
import importlib.resources
import json
import re
import shutil
import subprocess

import numpy as np
import onnxruntime
import pytest
import torch
from browsing import shows, violations
from hypothesis import HealthCheck, given, settings
from random_networks import plain_networks
from safetensors.torch import load_file

from mcdi.generator.plain import operations
from mcdi.tasks.images.class_images import DRAWING
from mcdi.tasks.images.files import read_image
from mcdi.tasks.images.glyphs import glyph_images

PAGE = importlib.resources.files("mcdi.serve") / "page"


class TestFiles:
    def test_are_in_the_package_and_refer_to_no_other_host(self):
        names = {f.name for f in PAGE.iterdir()}
        for text in (f.read_text() for f in PAGE.iterdir()):
            assert not re.findall(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[a-z]+\.[a-z]", text)
            assert set(re.findall(r'"page/([^"]+)"', text)) | set(re.findall(r'from "\./([^"]+)"', text)) <= names
            assert text.count("\n") < 300
            assert not re.findall(r'(?:href|src)="/|fetch\("/|url\(/', text)  # a proxy may serve the page under a path

    def test_hold_no_script_or_style_that_the_security_policy_forbids(self):
        html = (PAGE / "index.html").read_text()
        assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", html)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js: apt-get install nodejs")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=plain_networks())
def test_javascript_answers_as_the_network(drawn, tmp_path):
    module, shape, x = drawn
    wire = pytest.importorskip("mcdi.serve.wire", reason="needs mcdi[serve]")
    steps = [wire.Operation.of(step).model_dump() for step in operations(module, shape)]
    (tmp_path / "network.mjs").write_text((PAGE / "network.js").read_text())
    (tmp_path / "main.mjs").write_text(
        'import { activations } from "./network.mjs"; import { readFileSync } from "node:fs";\n'
        'const [steps, images] = JSON.parse(readFileSync("task.json"));\n'
        "console.log(JSON.stringify(images.map((x) => Array.from(activations(steps, x).at(-1)))));\n"
    )
    inputs = x.float() / 255
    (tmp_path / "task.json").write_text(json.dumps([steps, inputs.flatten(1).tolist()]))
    made = subprocess.run(["node", "main.mjs"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    torch.testing.assert_close(torch.tensor(json.loads(made), dtype=torch.float32), module(inputs), rtol=1e-3, atol=1e-4)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    pytest.importorskip("fastapi", reason="needs mcdi[serve]")
    from drawing import process, trained

    with process(trained(tmp_path_factory.mktemp("drawn"))) as url:
        yield url


def fill(page):
    page.click("#fill")
    shows(page, "#prediction", "Prediction:")


def test_drawings_are_like_those_of_training(visit):
    page = visit()
    with page.expect_request("**/v1/generate") as request:
        page.click("#fill")
    files = [memoryview(base64.b64decode(i)) for i in request.value.post_data_json["support"]["images"]]
    drawings = torch.stack([read_image(f, DRAWING, "") for f in files]).float() / 255
    letters = glyph_images(0, limit=10)["test"].images.float() / 255
    for measure in (lambda x: x.mean(), lambda x: x[x > 0.3].mean(), sides):
        assert float(measure(drawings)) == pytest.approx(float(measure(letters)), rel=0.3)


def sides(images):
    """The mean of the longer side of the ink, in pixels."""
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
                shows(page, "#weights-status", "at least 2 classes; 1 so far")
        shows(page, "#weights-status", "for 5 classes")
        assert re.search(r"325 weights for 5 classes in [\d.]+ ms \([\d.]+ ms round trip\)", page.inner_text("#weights-status"))
        for name in ("plus", "shell"):
            page.click("#test-clear")
            shows(page, "#prediction", "Draw here")
            draw(page, page.locator("#test"), name, turn=0.15, size=0.5)
            shows(page, "#prediction", f"Prediction: {name}")
            assert f"Prediction: {name}" in page.get_attribute("#test", "aria-label")
        probabilities = [float(t.removesuffix(" %")) for t in page.locator(".bars .probability").all_inner_texts()]
        assert len(probabilities) == 5 and sum(probabilities) == pytest.approx(100, abs=1)
        page.locator(".card").nth(4).locator("input").first.fill("snail")
        shows(page, "#prediction", "Prediction: snail")

    def test_examples_are_added_and_removed(self, visit, tmp_path):
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
        shows(page, "#weights-status", "for 4 classes")
        for _ in range(6):
            page.click("#add")
        assert page.locator(".card").count() == 10 and page.is_disabled("#add")


class TestChain:
    def test_follows_the_slider(self, visit):
        page = visit()
        fill(page)
        shows(page, "#position-out", "step 20 of 20, loss")
        pictures = set()
        for position in ("0", "3", "20"):
            page.locator("#position").fill(position)
            shows(page, "#position-out", f"step {position} of 20")
            pictures.add(tuple(page.evaluate("[landscape, matrix].map((c) => c.toDataURL())")))
        assert len({p[0] for p in pictures}) == len({p[1] for p in pictures}) == 3
        assert "at step 20 of 20, loss" in page.get_attribute("#landscape", "aria-label")
        page.click("#play")
        shows(page, "#play", "Stop")
        shows(page, "#play", "Play")
        assert page.input_value("#position") == "20"

    def test_steps_and_noise_can_be_chosen(self, visit):
        page = visit()
        fill(page)
        with page.expect_request("**/v1/generate") as request:
            page.locator("#steps").fill("3")
        assert request.value.post_data_json["steps"] == 3
        shows(page, "#steps-out", "3 of 20")
        page.locator("#position[max='3']").wait_for()
        with page.expect_request("**/v1/generate") as request:
            page.click("#resample")
        assert request.value.post_data_json["seed"] == 1
        with page.expect_request("**/v1/generate") as request:
            page.click("#default-steps")
        assert "steps" not in request.value.post_data_json


def test_weights_are_downloaded(visit, tmp_path):
    page = visit()
    fill(page)
    with page.expect_download() as download:
        page.click("#download-safetensors")
    assert download.value.suggested_filename == "letters.safetensors"
    download.value.save_as(tmp_path / "w.safetensors")
    assert {n: tuple(w.shape) for n, w in load_file(tmp_path / "w.safetensors").items()} == {"weight": (5, 64), "bias": (5,)}
    with page.expect_download() as download:
        page.click("#download-onnx")
    assert download.value.suggested_filename == "letters.onnx"
    download.value.save_as(tmp_path / "letters.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "letters.onnx")
    assert session.run(None, {"images": np.zeros((2, *session.get_inputs()[0].shape[1:]), np.float32)})[0].shape == (2, 5)
    assert page.is_enabled("#download-onnx") and page.inner_text("#download-onnx") == "Download classifier (ONNX)"


def test_by_keyboard_only(visit):
    page = visit()

    def go(label):
        """Tab to the element of this name."""
        for _ in range(60):
            page.keyboard.press("Tab")
            name = page.evaluate("document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent")
            if name and name.startswith(label):
                assert page.evaluate("document.activeElement.matches(':focus-visible')")
                return
        raise AssertionError(f"{label!r} cannot be reached by keyboard")

    def line(key, back):
        for _ in range(8):
            page.keyboard.press(back)
        page.keyboard.press(" ")
        shows(page, "#announcement", "pen down")
        for _ in range(16):
            page.keyboard.press(key)
        page.keyboard.press("Enter")
        shows(page, "#announcement", "pen up")

    go("Name of class 1")
    page.keyboard.type("bar")
    go("Drawing pad of bar")
    line("ArrowRight", "ArrowLeft")
    go("Next example of bar")
    page.keyboard.press("Enter")
    go("Drawing pad of class 2")
    line("ArrowDown", "ArrowUp")
    shows(page, "#weights-status", "for 2 classes")
    go("Test pad")
    line("ArrowDown", "ArrowUp")
    shows(page, "#prediction", "Prediction: class 2")
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
    page.select_option("#model", "symbols")
    page.locator("#filters").wait_for()
    assert page.evaluate(width) == 360


class TestNetworkInTheBrowser:
    def test_it_predicts_what_the_server_predicts(self, visit, address):
        page = visit()
        page.select_option("#model", "symbols")
        with page.expect_response("**/v1/generate") as response:
            fill(page)
        task = response.value.request.post_data_json
        assert task["format"] == "network"
        query = page.evaluate("""async () => {
          const [{ encoded }, { drawSymbol }] = await Promise.all([import("/page/ink.js"), import("/page/symbols.js")]);
          return encoded(drawSymbol("spiral", 2), 28);
        }""")
        handle = response.value.json()["handle"]
        answer = page.request.post(f"{address}/v1/predict", data={"handle": handle, "queries": {"images": [query]}}).json()
        shown = [float(t.removesuffix(" %")) for t in page.locator(".bars .probability").all_inner_texts()]
        expected = dict(zip(answer["classes"], answer["probabilities"][0], strict=True))
        labels = page.locator(".bars .name").all_inner_texts()
        assert shown == pytest.approx([100 * expected[label] for label in labels], abs=0.6)
        shows(page, "#prediction", "Prediction: spiral")
        assert not page.is_visible("#chain")
        shows(page, "#sampling-note", "in one step: longer chains were worse on validation tasks")

    @pytest.mark.parametrize("picture", [None, 112, 75, 20, 61, 28, 200])
    def test_it_reads_drawings_as_the_server_does(self, visit, picture):
        """Also pictures of other sides, dark on light or light on dark."""
        page = visit()
        sent, ink = page.evaluate(
            """async (side) => {
          const [{ ink, encoded }, { drawSymbol }] = await Promise.all([import("/page/ink.js"), import("/page/symbols.js")]);
          let drawing = drawSymbol("wave", 1);
          if (side) {
            const canvas = document.createElement("canvas");
            canvas.width = canvas.height = side;
            const context = canvas.getContext("2d");
            for (let i = 0; i < side * side; i += 1) {
              const grey = (side > 100 ? 160 : 0) + ((i * 37) % 89);
              context.fillStyle = `rgb(${grey}, ${grey / 2}, ${grey})`;
              context.fillRect(i % side, Math.floor(i / side), 1, 1);
            }
            drawing = { strokes: [], picture: canvas };
          }
          return [encoded(drawing, 28), Array.from(ink(drawing, 28))];
        }""",
            picture,
        )
        expected = read_image(memoryview(base64.b64decode(sent)), DRAWING, "").flatten() / 255
        torch.testing.assert_close(torch.tensor(ink), expected, rtol=0, atol=2 / 255)
        assert 0.01 < float(expected.mean()) < 0.5

    def test_predictions_go_on_when_the_server_is_gone(self, visit):
        from drawing import draw

        page = visit()
        page.select_option("#model", "symbols")
        fill(page)
        shows(page, "#weights-status", "predictions need no server")
        page.route("**/*", lambda route: route.abort())
        page.click("#test-clear")
        shows(page, "#prediction", "Draw here")
        draw(page, page.locator("#test"), "plus")
        shows(page, "#prediction", "Prediction:")
        assert page.inner_text("[role=alert]") == ""

    def test_filters_and_what_they_make_of_the_drawing_are_shown(self, visit):
        from drawing import draw

        page = visit()
        page.select_option("#model", "symbols")
        with page.expect_response("**/v1/generate") as response:
            fill(page)
        assert page.locator("#layers li").count() == 4
        second = [o for o in response.value.json()["operations"] if o["kind"] == "convolve"][1]
        weight = torch.tensor(second["weight"]).reshape(8, 8, 3, 3).transpose(0, 1)  # inputs downwards, filters to the right
        drawn = (
            page.locator("#layers canvas.filters")
            .nth(1)
            .evaluate(
                """(canvas) => {
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          const [cell, at] = [canvas.width / 31, Array.from({ length: 8 * 3 }, (_, i) => i + Math.floor(i / 3))];
          const place = (i) => Math.floor((at[i] + 0.5) * cell);
          return at.flatMap((_, y) => at.map((_, x) => data[4 * (place(y) * canvas.width + place(x))] -
            data[4 * (place(y) * canvas.width + place(x)) + 2]));
        }"""
            )
        )
        redness = torch.tensor(drawn).reshape(8, 3, 8, 3).transpose(1, 2)
        strong = weight.abs() > 0.1 * weight.abs().max()
        assert torch.equal(redness.sign()[strong], weight.sign()[strong])
        before = page.locator("#layers canvas.maps").nth(0).evaluate("c => c.toDataURL()")
        page.click("#test-clear")
        page.locator("#layers canvas.maps").nth(0).wait_for(state="hidden")
        draw(page, page.locator("#test"), "plus")
        shows(page, "#prediction", "Prediction:")
        assert page.locator("#layers canvas.maps").nth(0).evaluate("c => c.toDataURL()") != before
        assert "8 filters of 1 x 3 x 3" in page.locator("#layers canvas").nth(0).get_attribute("aria-label")
        page.select_option("#model", "letters")
        assert not page.is_visible("#filters")


class TestMessages:
    def test_an_error_of_the_server_is_shown_until_the_next_success(self, visit):
        page = visit()

        def other(route):
            route.continue_(post_data=json.dumps({**route.request.post_data_json, "model": "gone"}))

        page.route("**/v1/generate", other)
        page.click("#fill")
        shows(page, "[role=alert]", "there is no model of this name: choose letters, means, vectors, symbols")
        page.unroute("**/v1/generate")
        page.click("#resample")
        shows(page, "#prediction", "Prediction:")
        assert page.inner_text("[role=alert]") == ""
        assert all("404" in text for text in page.problems)
        page.problems.clear()

    def test_the_api_key_is_requested_and_sent(self, visit, address):
        page = visit()

        def locked(route):
            if route.request.headers.get("authorization") == "Bearer open sesame":
                return route.continue_()
            return route.fulfill(status=401, json={"error": "this server needs an API key"})

        page.route("**/v1/**", locked)
        page.reload()
        shows(page, "[role=alert]", "needs an API key")
        page.fill("#key", "open sesame")
        page.keyboard.press("Enter")
        fill(page)
        assert not page.is_visible("#key")
        page.problems.clear()

    def test_models_that_do_not_fit_the_page(self, visit):
        page = visit()
        page.select_option("#model", "vectors")
        shows(page, "#model-note", "vectors reads feature vectors of 6 numbers, not images")
        assert not page.is_visible("main")
        page.select_option("#model", "means")
        shows(page, "#sampling-note", "it has no denoising chain")
        fill(page)
        assert not page.is_visible("#chain") and page.inner_text("#model-note") == ""


def test_axe_sees_what_is_wrong(visit):
    page = visit()
    page.evaluate("document.body.append(document.createElement('button'))")
    assert set(violations(page)) >= {"button-name"}


@pytest.mark.parametrize("options", [{}, {"viewport": {"width": 390, "height": 844}}, {"color_scheme": "dark"}])
def test_axe_finds_nothing_to_mend(visit, options):
    page = visit(**options)
    assert violations(page) == {}
    fill(page)
    shows(page, "#position-out", "step 20 of 20, loss")
    assert violations(page) == {}
