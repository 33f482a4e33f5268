"""A stand-in for a cluster's API server, for the real kubectl: it keeps objects, and runs none of them.

It has what kubectl asks of one: discovery, lists by label, single objects, creation, deletion, and logs of pods. It
validates nothing, so that what is sent is compared here with what was rendered, and validated elsewhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from answering import answering

Object = dict[str, Any]

RESOURCES = {  # by group and version: (plural, kind)
    "v1": [("configmaps", "ConfigMap"), ("pods", "Pod")],
    "batch/v1": [("jobs", "Job")],
    "jobset.x-k8s.io/v1alpha2": [("jobsets", "JobSet")],
    "trainer.kubeflow.org/v1alpha1": [("trainjobs", "TrainJob"), ("trainingruntimes", "TrainingRuntime")],
    "kubeflow.org/v1": [("pytorchjobs", "PyTorchJob")],
}
VERBS = ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"]
PATH = re.compile(
    r"/(?:api|apis)/(?P<api>v1|[^/]+/[^/]+)/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/]+)(?P<rest>/.*)?"
)


class Cluster(ThreadingHTTPServer):
    """Objects by (plural, name), and the lines that pods have written."""

    daemon_threads = True

    def __init__(self, resources: dict[str, list[tuple[str, str]]] | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.resources = RESOURCES if resources is None else resources
        self.objects: dict[tuple[str, str], Object] = {}
        self.refused: set[str] = set()  # names that cannot be created

    @property
    def names(self) -> list[str]:
        """What there is."""
        return sorted(f"{plural}/{name}" for plural, name in self.objects)

    def configuration(self, folder: Path) -> Path:
        """A kubeconfig that leads here."""
        path = folder / "kubeconfig"
        address = f"http://127.0.0.1:{self.server_port}"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "here", "cluster": {"server": address}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "nobody"}}],
            "users": [{"name": "nobody", "user": {}}],
            "current-context": "here",
        }
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path

    def discovery(self, path: str) -> Object | None:
        """What the server says of itself."""
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = [each.split("/") for each in self.resources if "/" in each]
            listed = [
                {
                    "name": group,
                    "versions": [{"groupVersion": f"{group}/{version}", "version": version}],
                    "preferredVersion": {"groupVersion": f"{group}/{version}", "version": version},
                }
                for group, version in groups
            ]
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
        if path == "/openapi/v3":
            paths = {api_path(api): {"serverRelativeURL": f"/openapi/v3/{api_path(api)}"} for api in self.resources}
            return {"paths": paths}
        if path.startswith("/openapi/v3/"):
            return self.validation(path.removeprefix("/openapi/v3/").split("/", 1)[1])
        api = path.removeprefix("/apis/").removeprefix("/api/")
        if api in self.resources and path.startswith(("/api/", "/apis/")):
            found = [
                {"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": VERBS}
                for plural, kind in self.resources[api]
            ]
            return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api, "resources": found}
        return None

    def validation(self, api: str) -> Object:
        """That the server would look at fields itself, without which kubectl wants schemas for it."""
        group, _, version = api.rpartition("/")
        parameter = {"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}
        paths = {
            f"/{api_path(api)}/namespaces/{{namespace}}/{plural}/{{name}}": {
                "patch": {
                    "parameters": [parameter],
                    "x-kubernetes-group-version-kind": {"group": group, "version": version, "kind": kind},
                    "responses": {},
                }
            }
            for plural, kind in self.resources[api]
        }
        return {"openapi": "3.0.0", "info": {"title": "here", "version": "1"}, "paths": paths}


def api_path(api: str) -> str:
    """Where a group and version lies."""
    return f"apis/{api}" if "/" in api else f"api/{api}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Cluster
    protocol_version = "HTTP/1.1"

    def answer(self, code: int, content: Object | str) -> None:
        """Send something."""
        text = content if isinstance(content, str) else json.dumps(content)
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def fail(self, code: int, reason: str, message: str) -> None:
        """Send why not."""
        content = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
        self.answer(code, {**content, "message": message})

    def placed(self) -> tuple[str, str, str, dict[str, list[str]]] | None:
        """(api, plural, name, query) of a namespaced path."""
        parts = urlsplit(self.path)
        found = PATH.fullmatch(parts.path)
        if found is None or found["plural"] not in dict(self.server.resources.get(found["api"], [])):
            return None
        return found["api"], found["plural"], (found["rest"] or "").strip("/"), parse_qs(parts.query)

    def do_GET(self) -> None:
        """Discovery, a list, an object, or the log of a pod."""
        told = self.server.discovery(urlsplit(self.path).path)
        if told is not None:
            return self.answer(200, told)
        place = self.placed()
        if place is None:
            return self.fail(404, "NotFound", "the server could not find the requested resource")
        api, plural, name, query = place
        if name.endswith("/log"):
            return self.answer(200, self.server.objects["pods", name.removesuffix("/log")]["said"])
        if not name:
            kind = dict(self.server.resources[api])[plural]
            items = list(self.selected(plural, query))
            return self.answer(200, {"kind": f"{kind}List", "apiVersion": api, "metadata": {}, "items": items})
        if (plural, name) not in self.server.objects:
            return self.fail(404, "NotFound", f'{plural} "{name}" not found')
        return self.answer(200, self.server.objects[plural, name])

    def selected(self, plural: str, query: dict[str, list[str]]) -> Iterator[Object]:
        """Objects whose labels are as asked: equal, or one of several."""
        selector = query.get("labelSelector", [""])[0]
        asked = re.findall(r"([^,=!\s]+?)(?:=([^,]*)| in \(([^)]*)\))", selector)
        absent = re.findall(r"!([^,]+)", selector)
        for (kind, _), content in self.server.objects.items():
            labels = content["metadata"].get("labels", {})
            if (
                kind == plural
                and not set(absent) & labels.keys()
                and all(labels.get(key) in (several.split(",") if several else [one]) for key, one, several in asked)
            ):
                yield content

    def do_POST(self) -> None:
        """A new object."""
        place = self.placed()
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if place is None:
            return self.fail(404, "NotFound", "the server could not find the requested resource")
        name = content["metadata"]["name"]
        if name in self.server.refused:
            return self.fail(403, "Forbidden", f"admission webhook denied the request: {name} may not be")
        self.server.objects[place[1], name] = content
        return self.answer(201, content)

    def do_DELETE(self) -> None:
        """An object, gone at once."""
        place = self.placed()
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        if place is None or (place[1], place[2]) not in self.server.objects:
            return self.fail(404, "NotFound", "not found")
        del self.server.objects[place[1], place[2]]
        return self.answer(200, {"kind": "Status", "apiVersion": "v1", "status": "Success"})

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def running(resources: dict[str, list[tuple[str, str]]] | None = None) -> Iterator[Cluster]:
    """A server for a while."""
    with answering(Cluster(resources)) as cluster:
        yield cluster
