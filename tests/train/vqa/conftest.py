"""A dataset of synthetic maps, its folder of words, and a scripted language model on loopback."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from train.vqa.build import VqaConfig, build_vqa

Script = Callable[[dict[str, Any]], tuple[int, Any]]


@pytest.fixture(scope="session")
def words_folder(synthetic_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``wafervlm data vqa`` writes about the synthetic dataset. Do not write to it."""
    out = tmp_path_factory.mktemp("vqa") / "words"
    build_vqa(VqaConfig(synthetic_dataset), out)
    return out


class ScriptedModel:
    """A server of chat completions on loopback whose replies a test writes: no language model. ``script``
    takes a request's body and gives the status and the body of the answer; ``asked`` holds the requests."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.script: Script = lambda body: completion("")
        model = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                model.asked.append(body)
                status, answer = model.script(body)
                sent = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens, up to /v1."""
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def completion(text: str | None, finish: str = "stop", **message: Any) -> tuple[int, dict[str, Any]]:
    """A chat completion as an OpenAI-compatible server writes it."""
    choice = {
        "index": 0,
        "finish_reason": finish,
        "message": {"role": "assistant", "content": text, **message},
    }
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "scripted", "choices": [choice]}
    return 200, {**body, "usage": usage}


def drafted(body: dict[str, Any]) -> str:
    """The text that a request asks to rewrite."""
    return str(body["messages"][-1]["content"]).split("Text:\n", 1)[1]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedModel]:
    """A scripted model that a test gives its script."""
    pytest.importorskip("openai", reason="the openai client is not installed")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server = ScriptedModel()
    yield server
    server.close()
