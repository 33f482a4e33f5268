"""A stand-in for a W&B server, by what wandb 0.31 sends: the real one cannot run here.

Keeps what it is sent: per run the lines of its history by offset, as the real one does, config, summary, files, and
artifacts by name and digest. `python tests/wandb_server.py PORT` to look at what a client sends.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0" * 40


@dataclass
class Run:
    """What a server keeps of a run."""

    name: str
    attributes: dict[str, Any] = field(default_factory=dict)
    streams: dict[str, dict[int, str]] = field(default_factory=dict)  # by name and line
    received: int = 0  # lines of history, those sent twice counted twice
    files: dict[str, bytes] = field(default_factory=dict)
    complete: bool = False
    used: list[str] = field(default_factory=list)  # ids of artifacts

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Lines of one of its streams."""
        return [json.loads(line) for _, line in sorted(self.streams.get(name, {}).items())]

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows that were logged."""
        return self.lines("wandb-history.jsonl")


class WandbServer:
    """A server on a port of this machine, until it is closed."""

    def __init__(self, port: int = 0, verbose: bool = False) -> None:
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}  # by id
        self.verbose = verbose
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                answer = json.dumps(server.answer(self.command, self.path, body)).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            do_GET = do_POST = do_PUT = _answer  # noqa: N815

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """Clients that hang up are nobody's concern."""

        self.http = Quiet(("127.0.0.1", port), Handler)
        self.port = self.http.server_port
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    @property
    def environment(self) -> dict[str, str]:
        """What makes W&B go here."""
        address = f"http://127.0.0.1:{self.port}"
        interval = "WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL"  # seconds between two deliveries, 15 unless said
        return {"WANDB_BASE_URL": address, "WANDB_API_KEY": KEY, interval: "0.5"}

    def close(self) -> None:
        """Be away from now on."""
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def answer(self, method: str, path: str, body: bytes) -> Any:
        """What the server says to a request."""
        if path.startswith("/graphql"):
            request = json.loads(body)
            named = re.search(r"(?:query|mutation) (\w+)", request["query"])
            name = request.get("operationName") or (named[1] if named else "")
            handler = getattr(self, f"on_{name}", None)
            if self.verbose:
                print(
                    name,
                    "" if handler else "UNKNOWN " + request["query"],
                    str(request.get("variables"))[:700],
                    flush=True,
                )
            return {"data": handler(request.get("variables") or {}) if handler else {}}
        if path.endswith("/file_stream"):
            return self.stream(path.split("/")[-2], json.loads(body))
        if path.startswith("/upload/"):
            run, _, name = path.removeprefix("/upload/").partition("/")
            if run in self.runs:
                self.runs[run].files[name] = body
        elif self.verbose:
            print(method, path, body[:300], flush=True)
        return {}

    def run(self, name: str) -> Run:
        """A run by its id."""
        return self.runs.setdefault(name, Run(name))

    def stream(self, run_id: str, content: dict[str, Any]) -> Any:
        """Lines of files, each at its offset."""
        run = self.run(run_id)
        for name, chunk in (content.get("files") or {}).items():
            for number, line in enumerate(chunk["content"]):
                run.streams.setdefault(name, {})[chunk["offset"] + number] = line
                run.received += name == "wandb-history.jsonl"
        run.complete = bool(content.get("complete"))
        return {"exitcode": None, "limits": {}}

    def on_UpsertBucket(self, variables: dict[str, Any]) -> Any:  # noqa: N802
        inserted = variables["name"] not in self.runs
        run = self.run(variables["name"])
        run.attributes.update({key: value for key, value in variables.items() if value is not None})
        return {"upsertBucket": {"bucket": self._bucket(run), "inserted": inserted}}

    def on_RunResumeStatus(self, variables: dict[str, Any]) -> Any:  # noqa: N802
        run = self.runs.get(variables["name"])
        entity = {"id": "entity", "name": "somebody"}
        return {
            "model": {"id": "project", "name": "rlhf", "entity": entity, "bucket": self._bucket(run) if run else None}
        }

    def _bucket(self, run: Run) -> Any:
        streams = run.streams
        tails = {name: json.dumps(list(lines.values())[-1:]) for name, lines in streams.items()}
        return {
            "id": f"id-{run.name}",
            "name": run.name,
            "displayName": run.attributes.get("displayName"),
            "description": None,
            "sweepName": None,
            "project": {"id": "project", "name": "rlhf", "entity": {"id": "entity", "name": "somebody"}},
            "summaryMetrics": json.dumps((run.lines("wandb-summary.json") or [{}])[-1]),
            "config": run.attributes.get("config", "{}"),
            "historyLineCount": len(streams.get("wandb-history.jsonl", {})),
            "eventsLineCount": len(streams.get("wandb-events.jsonl", {})),
            "logLineCount": len(streams.get("output.log", {})),
            "historyTail": tails.get("wandb-history.jsonl", "[]"),
            "eventsTail": tails.get("wandb-events.jsonl", "[]"),
            "tags": [],
            "notes": None,
            "wandbConfig": '{"t": {"1": []}}',
        }

    def on_CreateRunFiles(self, variables: dict[str, Any]) -> Any:  # noqa: N802
        address = f"http://127.0.0.1:{self.port}/upload/{variables['run']}"
        files = [{"name": name, "uploadUrl": f"{address}/{name}"} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def on_CreateArtifact(self, variables: dict[str, Any]) -> Any:  # noqa: N802
        given = variables["input"]
        name, digest = given["artifactCollectionName"], given["digest"]
        found = next((a for a in self.artifacts.values() if (a["name"], a["digest"]) == (name, digest)), None)
        if found is None:
            found = {"id": f"artifact-{len(self.artifacts)}", "name": name, "digest": digest, "state": "PENDING"}
            found |= {"type": given["artifactTypeName"], "metadata": given["metadata"], "client": given["clientID"]}
            found["by"] = given["runName"]
            self.artifacts[found["id"]] = found
        shown = {"id": found["id"], "state": found["state"], "artifactSequence": {"latestArtifact": None}}
        return {"createArtifact": {"artifact": shown}}

    def on_CreateArtifactManifest(self, variables: dict[str, Any]) -> Any:  # noqa: N802
        address = f"http://127.0.0.1:{self.port}/upload/manifest/{variables.get('artifactId')}"
        file = {"id": "file", "name": "manifest", "displayName": "m", "uploadUrl": address, "uploadHeaders": []}
        return {"createArtifactManifest": {"artifactManifest": {"id": "manifest", "file": file}}}

    def on_CommitArtifact(self, variables: dict[str, Any]) -> Any:  # noqa: N802
        self.artifacts[variables["artifactID"]]["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": variables["artifactID"], "digest": ""}}}

    def on_CreateArtifactFiles(self, variables: dict[str, Any]) -> Any:  # noqa: N802
        edges = []
        for file in variables["input"]["artifactFiles"]:
            address = f"http://127.0.0.1:{self.port}/upload/{file['artifactID']}/{file['name']}"
            node = {"storagePath": file["name"], "uploadUrl": address, "uploadHeaders": [], "uploadMultipartUrls": None}
            edges.append({"node": {**node, "artifact": {"id": file["artifactID"]}}})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def on_UseArtifact(self, variables: dict[str, Any]) -> Any:  # noqa: N802
        given = variables["input"]
        self.run(given["runName"]).used.append(given["artifactID"])
        return {"useArtifact": {"artifact": {"id": given["artifactID"]}}}

    def on_Viewer(self, variables: dict[str, Any]) -> Any:  # noqa: N802
        somebody = {"id": "somebody", "entity": "somebody", "username": "somebody", "email": None, "flags": "{}"}
        return {"viewer": {**somebody, "teams": {"edges": []}}}

    def on_ArtifactType(self, variables: dict[str, Any]) -> Any:  # noqa: N802
        name = variables["name"].partition(":")[0]
        found = next((a for a in self.artifacts.values() if a["name"] == name), None)
        return {"project": {"artifact": {"artifactType": {"name": found["type"]}} if found else None}}

    def on_OrganizationCoreWeaveOrganizationID(self, variables: dict[str, Any]) -> Any:  # noqa: N802
        return {"entity": {"organization": None}}

    def on_ServerFeaturesQuery(self, variables: dict[str, Any]) -> Any:  # noqa: N802
        return {"serverInfo": {"features": []}}


if __name__ == "__main__":
    WandbServer(int(sys.argv[1]), verbose=True).thread.join()
