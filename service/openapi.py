"""The OpenAPI document."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.schemas import ActRequest, BatchRequest, ReloadRequest

_HAND_READ = (ActRequest, BatchRequest, ReloadRequest)


def request_body(model: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """How a body that is read by hand stands in the document."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": reference}}}}


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """The document of an application. Bodies are read by hand, so FastAPI does not know their schemas."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model in _HAND_READ:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas.update(schema.pop("$defs", {}))
        schemas[model.__name__] = schema
    return document
