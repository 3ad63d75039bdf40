"""The paths of the service: a FastAPI application over models."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from bert_miniatures.serve import documents, v2
from bert_miniatures.serve.asked import read_explain, read_predict
from bert_miniatures.serve.explain import explain
from bert_miniatures.serve.failures import Refused
from bert_miniatures.serve.guard import Guard
from bert_miniatures.serve.limits import Limits
from bert_miniatures.serve.meters import Meters
from bert_miniatures.serve.scores import ranked, scores
from bert_miniatures.serve.served import Models

__all__ = ["create_app"]

_PAGE = Path(__file__).with_name("page")
# path -> (file, media type)
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_NO_OUTSIDE = {
    "content-security-policy": "default-src 'self'; img-src data:; frame-ancestors 'none'; form-action 'none'"
}
_OPEN = {*_FILES, "/docs", "/openapi.json", "/health", "/v2/health/live", "/v2/health/ready"}
_SCHEME = "key"
_ALWAYS = ("not-http", "failed", "head-too-large", "connections")
_BODY = ("body-too-large", "too-many-texts", "text-too-long", "not-json-type", "not-utf8", "not-json", "input")
_WORK = ("too-slow", *_BODY, "queue-full", "timeout", "stopping")
Endpoint = Callable[[Request], Awaitable[Response]]


class _Route(APIRoute):
    """A path whose function gets the request as it is: FastAPI's dependencies would take as long as an answer."""

    def __init__(self, path: str, endpoint: Endpoint, **options: Any) -> None:
        super().__init__(path, endpoint, **options)

        async def plain(scope: Scope, receive: Receive, send: Send) -> None:
            response = await endpoint(Request(scope, receive, send))
            await response(scope, receive, send)

        self.app = plain


class _Json(Response):
    """A response whose head needs no looking at."""

    def init_headers(self, headers: Any = None) -> None:
        """Set what every answer has."""
        length = str(len(self.body)).encode()
        self.raw_headers = [(b"content-length", length), (b"content-type", b"application/json")]


def create_app(models: Models, limits: Limits, meters: Meters, key: str | None = None) -> FastAPI:
    """Return the application.

    Args:
        models: that are opened already.
        limits: of size and time.
        meters: the counters that the models count in too.
        key: the bearer key that clients must send; None: anybody who can connect may ask.
    """

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        for model in models.by_name.values():
            model.batcher.start()
        yield
        for model in models.by_name.values():
            await model.batcher.stop()

    app = FastAPI(
        title="bert-miniatures",
        version=version("bert-miniatures"),
        description="Texts in, labels and scores out.",
        docs_url=None,  # FastAPI's own page takes its script from elsewhere
        redoc_url=None,
        lifespan=running,
        exception_handlers={HTTPException: _not_served},
    )
    app.router.route_class = _Route
    app.state.names = list(models.by_name)
    _add_predicting(app, models, limits, key is not None)
    _add_protocol(app, models, limits, key is not None)
    _add_watching(app, meters, key is not None)
    app.add_middleware(Guard, limits=limits, meters=meters, open_paths=_OPEN, key=key)
    if key is not None:
        app.openapi().setdefault("components", {})["securitySchemes"] = {_SCHEME: {"type": "http", "scheme": "bearer"}}
    return app


def _add(
    app: FastAPI,
    method: str,
    path: str,
    endpoint: Endpoint,
    summary: str,
    answer: dict[str, Any] | str,
    codes: tuple[str, ...],
    body: dict[str, Any] | None = None,
    locked: bool = False,
) -> None:
    """Add a path together with what the OpenAPI document says about it."""
    more: dict[str, Any] = {}
    if body is not None:
        more["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    if "{name}" in path:
        more["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": {"enum": app.state.names}}]
    if locked:
        more["security"] = [{_SCHEME: []}]
    app.add_api_route(
        path,
        endpoint,
        methods=[method],
        summary=summary,
        response_class=Response,
        response_model=None,
        responses=documents.responses(answer, *_ALWAYS, *(("key",) if locked else ()), *codes),
        openapi_extra=more,
    )


def _add_predicting(app: FastAPI, models: Models, limits: Limits, locked: bool) -> None:
    async def answer(name: str | None, request: Request) -> Response:
        model = models.find(name)
        asked = read_predict(await request.body(), model.labels, limits)
        logits = await model.batcher.logits(asked.texts, asked.pairs)
        return _json(ranked(model.labels, scores(model.labels, logits, asked.function), asked.top_k))

    async def tell(name: str | None, request: Request) -> Response:
        model = models.find(name)
        return _json(await explain(model, read_explain(await request.body(), model.labels, limits), limits.words))

    async def predict(request: Request) -> Response:
        return await answer(None, request)

    async def predict_with(request: Request) -> Response:
        return await answer(request.path_params["name"], request)

    async def explain_first(request: Request) -> Response:
        return await tell(None, request)

    async def explain_with(request: Request) -> Response:
        return await tell(request.path_params["name"], request)

    async def listed(request: Request) -> Response:
        return _json({"models": [model.about() for model in models.by_name.values()]})

    predicting = (documents.predicted(), _WORK, documents.predict_body(models, limits), locked)
    explaining = (documents.explained(), _WORK, documents.explain_body(models, limits), locked)
    named = (*_WORK, "unknown-model")
    _add(app, "POST", "/predict", predict, "Labels and scores, as Hugging Face's servers give them", *predicting)
    _add(app, "POST", "/explain", explain_first, "One answer, its pieces, and which words mattered", *explaining)
    _add(app, "GET", "/models", listed, "The models and their labels", {"type": "object"}, (), None, locked)
    path = "/models/{name}"
    _add(app, "POST", f"{path}/predict", predict_with, "/predict of one model", predicting[0], named, *predicting[2:])
    _add(app, "POST", f"{path}/explain", explain_with, "/explain of one model", explaining[0], named, *explaining[2:])


def _add_protocol(app: FastAPI, models: Models, limits: Limits, locked: bool) -> None:
    async def server(request: Request) -> Response:
        return _json({"name": "bert-miniatures", "version": app.version, "extensions": []})

    async def live(request: Request) -> Response:
        return _json({"live": True})

    async def ready(request: Request) -> Response:
        return _json({"ready": True})

    async def metadata(request: Request) -> Response:
        return _json(v2.metadata(models.find(request.path_params["name"])))

    async def model_ready(request: Request) -> Response:
        return _json({"name": models.find(request.path_params["name"]).name, "ready": True})

    async def infer(request: Request) -> Response:
        model = models.find(request.path_params["name"])
        asked = v2.read_infer(await request.body(), model.labels, limits)
        return _json(v2.answer_infer(model, asked, await model.batcher.logits(asked.texts, asked.pairs)))

    about: dict[str, Any] = {"type": "object"}
    path, unknown = "/v2/models/{name}", ("unknown-model",)
    _add(app, "GET", "/v2", server, "Open Inference Protocol: the server", about, (), None, locked)
    _add(app, "GET", "/v2/health/live", live, "The process answers", about, ())
    _add(app, "GET", "/v2/health/ready", ready, "The models are loaded", about, ())
    _add(app, "GET", path, metadata, "A model's tensors", about, unknown, None, locked)
    _add(app, "GET", f"{path}/ready", model_ready, "A model is loaded", about, unknown, None, locked)
    body = documents.infer_body(models, limits)
    _add(app, "POST", f"{path}/infer", infer, "Answer tensors", documents.inferred(), (*_WORK, *unknown), body, locked)


def _add_watching(app: FastAPI, meters: Meters, locked: bool) -> None:
    async def health(request: Request) -> Response:
        return _json({"status": "ok"})

    async def metrics(request: Request) -> Response:
        return Response(meters.text(), media_type=CONTENT_TYPE_LATEST)

    async def docs(request: Request) -> Response:
        return Response(documents.docs_page(app.openapi()), media_type="text/html", headers=_NO_OUTSIDE)

    _add(app, "GET", "/health", health, "The service answers", {"type": "object"}, ())
    _add(app, "GET", "/metrics", metrics, "Counters for Prometheus", "text/plain", (), None, locked)
    app.add_api_route("/docs", docs, include_in_schema=False, response_model=None)
    for path in _FILES:
        app.add_api_route(path, _file, include_in_schema=False, response_model=None)


async def _file(request: Request) -> Response:
    name, kind = _FILES[request.url.path.removeprefix(request.scope.get("root_path", ""))]
    return Response((_PAGE / name).read_bytes(), media_type=kind, headers=_NO_OUTSIDE)


async def _not_served(request: Request, error: Exception) -> Response:
    """Answer what the router refuses."""
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        refused = Refused("method", "the path has no such method; /docs lists them")
    else:
        refused = Refused("not-found", "no such path; /docs lists them")
    headers = dict(error.headers or {}) | dict(refused.headers())
    return Response(refused.body(), refused.status, headers, "application/json")


def _json(document: Any) -> Response:
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return _Json(text.encode())
