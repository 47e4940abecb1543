"""Where a server stands: the path a proxy puts in front, its host names, and the pages of other sites that may call it."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from starlette.types import Scope

from mcdi.errors import McdiError
from mcdi.serve.limits import Refused

LOCAL = ("localhost", "127.0.0.1", "::1")
EVERYWHERE = ("0.0.0.0", "::", "")  # addresses to listen at that stand for all of this machine
ADDRESS = re.compile(r"\d+(\.\d+){3}|[0-9a-f]*:[0-9a-f:.]*")  # no name that a stranger's DNS could point to this machine
HOST = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]*))(?::\d{0,5})?")
NAME = re.compile(r"[\w.*-]+|\[?[0-9a-f:.]+\]?", re.ASCII)
ORIGIN = re.compile(r"https?://([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?|\*")


@dataclass(frozen=True)
class Deployment:
    """How a server is reached.

    Args:
        root_path: the path that a proxy puts in front of the server's own, whether it removes it from requests or not.
        origins: of pages of other sites whose scripts may call the server (CORS), or "*".
        hosts: names in the header Host that are answered, * matches anything; None: all. Without API keys this keeps out pages
            of other sites whose name points to this machine (DNS rebinding).
    """

    root_path: str = ""
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] | None = LOCAL

    def __post_init__(self) -> None:
        if not re.fullmatch(r"(/[\w.~-]*[\w~-])*", self.root_path, re.ASCII):
            raise McdiError(f"root path {self.root_path!r} is no path: give one like /mcdi")
        for origin in self.origins:
            if not ORIGIN.fullmatch(origin):
                raise McdiError(f"{origin!r} is no origin of a page: give one like https://example.org, without a path, or *")

    @classmethod
    def of(cls, root_path: str, origins: list[str], names: list[str], host: str, *, keys: bool) -> "Deployment":
        """As the options of `mcdi serve` say. host: the address to listen at; keys: whether requests need an API key."""
        for name in names:
            if not NAME.fullmatch(name.lower()):
                raise McdiError(f"{name!r} is no name of a host: give one like example.org, without a port, or *")
        answered = None if keys else (*LOCAL, host.lower(), *(name.lower().strip("[]") for name in names))
        return cls(root_path.rstrip("/"), tuple(origins), answered)

    def local_scope(self, scope: Scope) -> Scope:
        """A request as the routes read it: below the root path, HEAD as GET, whose body the connection leaves out, and for a
        whole file where a part of it is asked for."""
        path = scope["path"]
        inside = not self.root_path or path == self.root_path or path.startswith(self.root_path + "/")
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        local = {"method": method, "root_path": self.root_path, "path": path if inside else self.root_path + path}
        return {**scope, **local, "headers": [(name, value) for name, value in scope["headers"] if name != b"range"]}

    def check(self, scope: Scope) -> None:
        """Raises Refused for a request of two readings, or for a host that is not this one."""
        sent = {name: value.decode("latin-1") for name, value in scope["headers"]}
        if b"transfer-encoding" in sent and (b"content-length" in sent or scope["http_version"] < "1.1"):
            both = "the length of the body is given in two ways (Transfer-Encoding, and Content-Length or HTTP/1.0): send one"
            raise Refused(400, both, {"Connection": "close"})
        if self.hosts is not None and b"host" in sent and not self._answers_to(sent[b"host"].lower()):
            names = "ask by a name of the server, or start it with --allow-host NAME or --api-key-file"
            raise Refused(421, f"this server does not answer to the host {sent[b'host'][:100]!r}: {names}")

    def _answers_to(self, sent: str) -> bool:
        match = HOST.fullmatch(sent)
        host = (match[1] or match[2] or "") if match else sent
        everywhere = any(h in EVERYWHERE for h in self.hosts or ())
        return (everywhere and ADDRESS.fullmatch(host) is not None) or any(fnmatchcase(host, h) for h in self.hosts or ())
