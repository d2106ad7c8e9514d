"""A room: POST / says something, GET / tells what was said, GET /follow goes on telling."""
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROOM = os.environ["SKERRY_KEY"]
KEPT = 1000
said = []
first = 0  # number of said[0]
news = threading.Condition()


class Room(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def text(self, status, text):
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self):
        global first
        line = self.rfile.read(min(int(self.headers.get("Content-Length", 0)), 4096))
        with news:
            said.append(line.decode("utf-8", "replace").replace("\n", " "))
            if len(said) > KEPT:
                first += 1
                del said[0]
            news.notify_all()
            count = first + len(said)
        self.text(200, "%s: %d said\n" % (ROOM, count))

    def do_GET(self):
        if self.path.split("?")[0] == "/follow":
            self.follow()
            return
        with news:
            self.text(200, "".join(line + "\n" for line in said))

    def follow(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        seen = 0
        while True:
            with news:
                news.wait_for(lambda: first + len(said) > seen)
                lines = said[max(seen - first, 0):]
                seen = first + len(said)
            data = "".join(line + "\n" for line in lines).encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))

    def log_message(self, form, *values):
        pass


ThreadingHTTPServer(("", int(os.environ["PORT"])), Room).serve_forever()
