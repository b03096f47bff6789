"""Failures of the Kubernetes API, as the Status objects a real API server sends."""

from __future__ import annotations

from typing import Any

from tests.kube.resources import Resource

_REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    409: "Conflict",
    410: "Expired",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
_MESSAGES = {
    401: "Unauthorized",
    429: "the server has received too many requests and has asked us to try again later",
    500: "Internal error occurred: etcdserver: leader changed",
    503: "the server is currently unable to handle the request",
    504: "The request timed out",
}


class ApiError(Exception):
    """A refused request.

    :param reason: the Status reason; by default the usual one of the code
    """

    def __init__(
        self,
        code: int,
        message: str = "",
        *,
        reason: str | None = None,
        details: dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.code = code
        self.message = message or _MESSAGES.get(code, "unknown")
        self.reason = _REASONS.get(code, "") if reason is None else reason
        self.details = details
        self.headers = headers or {}
        super().__init__(f"{code} {self.message}")

    def as_status(self) -> dict[str, Any]:
        status: dict[str, Any] = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        return status | ({"details": self.details} if self.details else {})


def not_found(resource: Resource, name: str) -> ApiError:
    return ApiError(404, f'{resource.qualified} "{name}" not found', details=_details(resource, name))


def already_exists(resource: Resource, name: str) -> ApiError:
    return ApiError(
        409,
        f'{resource.qualified} "{name}" already exists',
        reason="AlreadyExists",
        details=_details(resource, name),
    )


def conflict(resource: Resource, name: str, why: str) -> ApiError:
    message = f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}'
    return ApiError(409, message, details=_details(resource, name))


def forbidden(resource: Resource, name: str, why: str) -> ApiError:
    return ApiError(
        403, f'{resource.qualified} "{name}" is forbidden: {why}', details=_details(resource, name)
    )


def invalid(resource: Resource, name: str, causes: list[tuple[str, str]]) -> ApiError:
    """:param causes: (field path, what is wrong with it)"""
    sentences = [f"{field}: {message}" for field, message in causes]
    joined = sentences[0] if len(sentences) == 1 else f"[{', '.join(sentences)}]"
    group = f".{resource.group}" if resource.group else ""
    details = _details(resource, name) | {
        "kind": resource.kind,
        "causes": [
            {"reason": "FieldValueInvalid", "message": text, "field": field} for field, text in causes
        ],
    }
    return ApiError(422, f'{resource.kind}{group} "{name}" is invalid: {joined}', details=details)


def _details(resource: Resource, name: str) -> dict[str, Any]:
    group = {"group": resource.group} if resource.group else {}
    return {"name": name, "kind": resource.plural} | group
