"""The page of `mcdi serve` below the path of a proxy that removes the path, and with an API key beyond ASCII."""

import threading
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from browsing import WAIT, shows
from serving import listening

from mcdi.generator.ready_made import ready_made
from mcdi.serve.deployment import Deployment

KEY = "ключ-schlüssel-à"


def proxy(port):
    """A server that hands every request below /mcdi/ on to another port, without /mcdi."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if not self.path.startswith("/mcdi/"):
                self.send_error(404)
                return
            upstream = HTTPConnection("127.0.0.1", port, timeout=60)
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            upstream.request(self.command, self.path.removeprefix("/mcdi"), data, dict(self.headers))
            answer = upstream.getresponse()
            content = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)
            upstream.close()

        do_POST = do_GET

        def log_message(self, *_):
            pass

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"ann:{KEY}", encoding="utf-8")
    with listening({"symbols": ready_made("symbols")}, keys, Deployment("/mcdi")) as ((_, port), _, _), proxy(port) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/mcdi/"
        server.shutdown()


def test_the_page_generates_and_predicts(browser, address):
    context = browser.new_context(reduced_motion="reduce")
    context.set_default_timeout(WAIT)
    page, elsewhere = context.new_page(), []
    page.on("request", lambda r: elsewhere.append(r.url) if not r.url.startswith((address, "blob:")) else None)
    page.goto(address)
    page.fill("#key", KEY)
    page.click("#key-form button")
    page.click("#fill")
    shows(page, "#prediction", "Prediction:")
    links = page.evaluate("[...document.querySelectorAll('footer a')].map((a) => a.href)")
    assert links == [f"{address}openapi.json", f"{address}v1/models"] and elsewhere == []
    context.close()
