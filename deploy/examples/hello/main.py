"""Says hello and counts: who joins the same instance sees the count go on."""
import itertools
import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

requests = itertools.count(1)


class Hello(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # connections are kept: a join costs no new one

    def do_GET(self):
        text = "Hello from %s, request %d here.\n" % (os.environ["SKERRY_INSTANCE"], next(requests))
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, form, *values):
        print(self.command, self.path, flush=True)  # see: skerry logs


ThreadingHTTPServer(("", int(os.environ["PORT"])), Hello).serve_forever()
