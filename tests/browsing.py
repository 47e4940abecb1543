"""A headless browser for the tests of the page of `mcdi serve`; each file has its own fixture `address`, the server's URL."""

import shutil

import pytest

WAIT = 30_000  # milliseconds, for a busy machine
FILMING = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")  # a camera that shows a test picture


@pytest.fixture(scope="module")
def browser():
    play = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Debian's browser: apt-get install chromium")
    with play.sync_playwright() as started:
        yield started.chromium.launch(executable_path=chromium, args=["--no-sandbox", *FILMING])


@pytest.fixture
def visit(address, browser):
    """visit(**options) -> the page in a new window. Afterwards there must be no error and no request to another host."""
    opened = []

    def open_page(**options):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, "reduced_motion": "reduce", **options})
        context.set_default_timeout(WAIT)
        page = context.new_page()
        page.problems = []
        page.on("console", lambda m: page.problems.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: page.problems.append(str(e)))
        page.on("request", lambda r: page.problems.append(r.url) if not r.url.startswith((address, "blob:")) else None)
        opened.append(page)
        page.goto(address)
        page.locator("#model").wait_for()
        return page

    yield open_page
    for page in opened:
        page.context.close()
        assert page.problems == []


def shows(page, selector, text):
    from playwright.sync_api import expect

    expect(page.locator(selector)).to_contain_text(text, timeout=WAIT)


def violations(page):
    """What axe-core finds that a keyboard, a screen reader or weak eyes cannot use: {rule: the elements}."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    answer = axe.Axe().run(page).response
    assert answer["passes"]
    return {rule["id"]: [node["html"] for node in rule["nodes"]] for rule in answer["violations"]}
