#!/usr/bin/env python3
"""Stands in for llama-server: answers with tokens 1, 2, 3 ... on the loopback; ends by itself after a minute."""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if 666 in body["prompt"]:
            self.send_response(500)
            self.end_headers()
            self.wfile.write(b"no such token")
            return
        wanted = body["n_predict"]
        sent = wanted - 1 if 667 in body["prompt"] else wanted
        self.send_response(200)
        self.end_headers()
        for n in range(1, sent + 1):
            self.event({"content": "x", "tokens": [n], "stop": False})
        self.event({"content": "", "tokens": [], "stop": True, "tokens_predicted": sent})

    def event(self, message: object) -> None:
        self.wfile.write(f"data: {json.dumps(message)}\n\n".encode())


if __name__ == "__main__":
    if "--version" in sys.argv:
        print("version: 7 (fake)", file=sys.stderr)
        sys.exit()
    if "broken.gguf" in sys.argv:
        sys.exit("no such model")
    timer = threading.Timer(60, os._exit, (1,))
    timer.daemon = True
    timer.start()
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
