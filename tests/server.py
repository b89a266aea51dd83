"""An HTTP server in this process, for tests of what asks one."""
import contextlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Server:
    """A subclass has reply(path, headers, body): (status, headers, bytes), or None to hang up without a word. A reply
    breaks off where its headers promise more bytes than it has. `over` is set when the test has ended."""

    def __init__(self):
        self.over = threading.Event()
        self.http = Quiet(("127.0.0.1", 0), type("Handler", (Handler,), {"reply": staticmethod(self.reply)}))
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self):
        self.over.set()
        self.http.shutdown()
        self.http.server_close()


class Quiet(ThreadingHTTPServer):
    request_queue_size = 100  # a connection beyond these would wait for a second

    def handle_error(self, *_):  # the client has gone
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body waits for no acknowledgement of its headers

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, headers, body = self.reply(self.path, dict(self.headers), body) or (0, {}, b"")
        headers = {"Content-Length": len(body)} | headers
        self.close_connection = not status or headers["Content-Length"] != len(body)
        if status:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def start():
    """start(kind, *arguments) returns a server of that kind, which stops when the test ends."""
    with contextlib.ExitStack() as stack:
        def one(kind, *arguments):
            server = kind(*arguments)
            stack.callback(server.stop)
            return server

        yield one
