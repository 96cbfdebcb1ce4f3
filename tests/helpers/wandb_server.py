"""A stand-in for W&B's server on loopback: it keeps what a client sends of its runs, and can refuse or vanish."""

from __future__ import annotations

import gzip
import http.server
import json
import re
import threading
from collections import defaultdict
from typing import Any

ENTITY = {"id": "entity", "name": "someone"}


class WandbServer:
    """Runs by id: what the client said of them, and every line it streamed."""

    def __init__(self) -> None:
        self.settings: dict[str, dict[str, Any]] = defaultdict(dict)
        """By run: name, group, job type, tags, config, as last said."""
        self.history: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.summary: dict[str, dict[str, Any]] = defaultdict(dict)
        self.finished: dict[str, int] = {}
        """By run: its exit code."""
        self.views: dict[str, dict[str, Any]] = {}
        """Workspaces by name."""
        self.refuses = False
        """Whether no key is the right one."""
        self.silent = False
        """Whether requests get no answer any more."""
        self.streamed = threading.Event()
        """Set when history has come."""
        self._stop = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, format: str, *args: Any) -> None:
                return

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                if server.silent:
                    server._stop.wait(60)
                    return
                code, answer = server.answer(self.path, body)
                data = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST  # noqa: N815 (the names that the server looks for)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, body: bytes) -> tuple[int, Any]:
        """The status and the JSON for one request."""
        if path == "/graphql":
            if self.refuses:
                return 401, {"errors": [{"message": "user is not logged in"}]}
            request = json.loads(body)
            named = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])
            return 200, {"data": self._graphql(named[1] if named else None, request.get("variables") or {})}
        if path.endswith("/file_stream"):
            self._stream(path.split("/")[-2], json.loads(body))
        return 200, {}

    def _graphql(self, name: str | None, said: dict[str, Any]) -> dict[str, Any]:
        if name in ("Viewer", "GetDefaultEntity"):
            return {"viewer": {"id": "1", "entity": ENTITY["name"], "username": "someone", "flags": "{}"}}
        if name == "RunResumeStatus":
            return {"model": {"id": "p", "name": said["name"], "entity": ENTITY, "bucket": self._known(said["name"])}}
        if name == "UpsertBucket":
            run = said["name"] or said["id"]
            self.settings[run] |= {key: value for key, value in said.items() if value is not None}
            project = {"id": "p", "name": said.get("project") or "p", "entity": ENTITY}
            bucket = {"id": run, "name": run, "displayName": said.get("displayName") or run, "config": "{}"}
            new = run not in self.history and not self.finished.get(run)
            return {"upsertBucket": {"bucket": {**bucket, "project": project, "historyLineCount": 0}, "inserted": new}}
        if name == "CreateRunFiles":
            return {"createRunFiles": {"runID": said.get("run"), "uploadHeaders": [], "files": []}}
        if name is not None and name.startswith("UpsertView"):
            self.views[said["displayName"]] = json.loads(said["spec"])
            return {"upsertView": {"view": {"id": "view", "name": said["name"]}, "inserted": True}}
        if name == "CreateArtifact":  # a table's file; the server has its contents already
            collection = {"id": "collection", "latestArtifact": {"id": "artifact", "versionIndex": 0}}
            artifact = {"id": "artifact", "state": "COMMITTED", "artifactSequence": collection}
            return {"createArtifact": {"artifact": artifact}}
        return {"project": None}  # whether there was a table of this name before, and the like

    def _known(self, run: str) -> dict[str, Any] | None:
        """What W&B says of a run that exists."""
        if run not in self.history:
            return None
        lines = self.history[run]
        tail = json.dumps([json.dumps(lines[-1])])
        counts = {"logLineCount": 0, "historyLineCount": len(lines), "eventsLineCount": 0}
        said = {"id": run, "name": run, "displayName": run, "config": "{}", "tags": [], "notes": ""}
        said |= {"summaryMetrics": json.dumps(self.summary[run]), "historyTail": tail, "eventsTail": "[]"}
        return {**said, **counts, "wandbConfig": json.dumps({"t": {}})}

    def _stream(self, run: str, sent: dict[str, Any]) -> None:
        files = sent.get("files") or {}
        for line in (files.get("wandb-history.jsonl") or {}).get("content", []):
            self.history[run].append(json.loads(line))
            self.streamed.set()
        for line in (files.get("wandb-summary.json") or {}).get("content", []):
            self.summary[run] = json.loads(line)
        if sent.get("complete"):
            self.finished[run] = sent.get("exitcode", 0)
