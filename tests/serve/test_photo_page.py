"""The page of `mcdi serve` for a model of colour images: files, folders and the camera in place of drawings."""

import base64
import io
import shutil

import pytest
import torch
from browsing import shows, violations
from PIL import Image

from mcdi.generator.api import Generator
from mcdi.methods import make_method
from mcdi.networks.backbones.embedder import Embedder
from mcdi.networks.backbones.vision import Conv4
from mcdi.networks.linear_head import LinearHead
from mcdi.tasks.images.files import read_image


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    pytest.importorskip("fastapi", reason="needs mcdi[serve]")
    from drawing import process

    folder = tmp_path_factory.mktemp("served") / "colours"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = LinearHead(64, 5, Embedder(Conv4(3), 32))
    Generator("prototypes", make_method("prototypes", {}), network).save_pretrained(folder)
    with process([folder, "symbols"]) as url:
        yield url


@pytest.fixture
def photos(tmp_path):
    """Two photos of three colours, in a folder a class: larger than the model's, wide and high."""
    g = torch.Generator().manual_seed(0)
    for number, colour in enumerate(("red", "green", "blue")):
        (tmp_path / "photos" / colour).mkdir(parents=True)
        for n, shape in enumerate(((90, 140, 3), (120, 60, 3))):
            pixels = torch.randint(0, 90, shape, generator=g, dtype=torch.uint8)
            pixels[..., number] += 160
            Image.fromarray(pixels.numpy()).save(tmp_path / "photos" / colour / f"{n}.png")
    return tmp_path / "photos"


@pytest.fixture
def page(visit):
    page = visit()
    page.select_option("#model", "colours")
    shows(page, "h1", "Show a few photos, get a classifier")
    return page


def test_files_of_every_class(page, photos):
    assert not any(
        page.is_visible(hidden) for hidden in (".card .pad", ".card .next", ".card .undo", "#fill", "#test-undo", ".take")
    )
    shows(page, "#weights-status", "Give photos of at least 2 classes; 0 so far.")
    for i, colour in enumerate(("red", "blue")):
        card = page.locator(".card").nth(i)
        card.locator(".top input").fill(colour)
        card.locator("[type=file]").set_input_files([photos / colour / "0.png"])
    shows(page, "#weights-status", "weights for 2 classes")
    page.locator("#test-file").set_input_files(photos / "blue" / "1.png")
    shows(page, "#prediction", "Prediction: blue")
    page.locator("#test").click()
    page.keyboard.press("Backspace")
    shows(page, "#prediction", "Prediction: blue")  # a photo is no drawing
    pad = page.locator("#test")
    before = pad.evaluate("canvas => canvas.toDataURL()")
    pad.drag_to(pad, source_position={"x": 30, "y": 30}, target_position={"x": 150, "y": 120})
    assert pad.evaluate("canvas => canvas.toDataURL()") == before
    page.select_option("#model", "symbols")
    shows(page, "h1", "Draw a few examples")
    assert page.is_visible(".card .pad") and not page.is_visible("#camera")


def test_a_folder_of_classes(page, photos):
    with page.expect_request("**/v1/generate") as request:
        page.locator("#folder-file").set_input_files(photos)
    body = request.value.post_data_json
    assert sorted(body["labels"]) == sorted(["red", "green", "blue"] * 2)
    files = [memoryview(base64.b64decode(image)) for image in body["support"]["images"]]
    for label, file in zip(body["labels"], files, strict=True):
        means = read_image(file, (3, 32, 32), "").float().mean((1, 2))
        assert ("red", "green", "blue")[int(means.argmax())] == label
        assert Image.open(io.BytesIO(file)).size in {(90, 90), (60, 60)}  # the middle: nothing is padded
    assert [card.input_value() for card in page.locator(".card .top input").all()] == ["blue", "green", "red"]


def test_a_folder_of_too_many_classes(page, photos, tmp_path):
    for n in range(11):
        shutil.copytree(photos / "red", tmp_path / "many" / f"class{n}")
    (tmp_path / "many" / "papers").mkdir()
    (tmp_path / "many" / "papers" / "notes.txt").write_text("no image, and so no class")
    page.locator("#folder-file").set_input_files(tmp_path / "many")
    shows(page, "[role=alert]", "The page holds 10 classes, and there are 11: use mcdi generate.")
    shutil.rmtree(tmp_path / "many" / "class10")
    page.locator("#folder-file").set_input_files(tmp_path / "many")
    shows(page, "#weights-status", "weights for 10 classes")


def test_dropped_files(page, photos):
    page.locator("#folder-file").set_input_files(photos)
    drop = """([selector, bytes]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "x.png", { type: "image/png" }));
        document.querySelector(selector).dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
    }"""
    page.evaluate(drop, ["#test", list((photos / "green" / "0.png").read_bytes())])
    shows(page, "#prediction", "Prediction: green")
    before = page.locator(".card").nth(0).locator(".thumbs li").count()
    page.evaluate(drop, [".card", list((photos / "green" / "0.png").read_bytes())])
    page.locator(".card").nth(0).locator(".thumbs li").nth(before).wait_for()
    assert page.locator("[role=alert]").inner_text() == ""  # it was dropped on the card, not on the page too
    page.evaluate(drop, ["body", list((photos / "green" / "0.png").read_bytes())])
    shows(page, "[role=alert]", "There is no folder of images in it")


def test_the_camera(page, photos):
    page.locator("#folder-file").set_input_files(photos)
    shows(page, "#weights-status", "weights for 3 classes")
    page.click("#camera")
    shows(page, "#prediction", "Prediction:")
    for _ in range(2):  # live: one picture after the other
        with page.expect_request("**/v1/predict"):
            pass
    take = page.locator(".card .take").nth(1)
    take.click()
    page.locator(".card").nth(1).locator(".thumbs li").nth(2).wait_for()
    page.click("#camera")
    assert not take.is_visible() and page.get_attribute("#camera", "aria-pressed") == "false"
    page.click("#camera")
    take.wait_for()
    page.select_option("#model", "symbols")
    shows(page, "h1", "Draw a few examples")
    assert page.get_attribute("#camera", "aria-pressed") == "false"  # a model of drawings does not film


def test_axe_finds_nothing_to_mend(page, photos):
    assert violations(page) == {}
    page.locator(".card").first.locator("input[type=file]").set_input_files(photos / "red" / "0.png")
    page.locator(".thumbs li").first.wait_for()
    assert violations(page) == {}
