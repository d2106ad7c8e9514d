"""Takes 200 ms for each request and tells how many were in at the same time, now and at most."""
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

lock = threading.Lock()
inside = most = 0


class Crowd(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        global inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.2)
        with lock:
            body = ("%s at most %d\n" % (os.environ["SKERRY_INSTANCE"], most)).encode()
            inside -= 1
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, form, *values):
        pass


ThreadingHTTPServer(("", int(os.environ["PORT"])), Crowd).serve_forever()
