"""The OpenAPI document."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.paper_schemas import CommandRequest
from service.schemas import ActRequest, BatchRequest, ErrorBody, LoginRequest, ReloadRequest

_HAND_READ = (ActRequest, BatchRequest, ReloadRequest, CommandRequest, LoginRequest)
_ERRORS: Final = {
    401: "no key, or one that is not known",
    403: "the key lacks the scope, or a cookie came without its token or from another site",
    404: "nothing is stored under that name",
    409: "it contradicts an earlier request, one in progress, or what is stored",
    413: "the body is larger than the service reads",
    415: "the body is not said to be JSON",
    422: "the request is understood and wrong",
    429: "too many requests or too many wrong keys; see Retry-After",
    503: "not now; see Retry-After",
    504: "no answer before the deadline",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers of a route that are not a success, all of one form."""
    return {status: {"model": ErrorBody, "description": _ERRORS[status]} for status in statuses}


def request_body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """How a body that is read by hand stands in the document."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": reference}}}}


def idempotency_header() -> dict[str, Any]:
    """How a route that takes an Idempotency-Key says so."""
    return {
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "description": "a repetition with the same key and body gets the first answer; another body gets 409. "
                "The header Idempotency-Kept of the answer says where it is remembered: ledger, or memory, which a "
                "restart forgets",
                "schema": {"type": "string", "pattern": r"^[\x21-\x7e]{1,128}$"},
            }
        ]
    }


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """The document of an application. Bodies are read by hand, so FastAPI does not know their schemas."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model in _HAND_READ:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    return document
