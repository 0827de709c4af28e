"""What a request is refused with, in the form of OpenAI's API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from fedlora.errors import ClientLost, FedloraError, ProtocolError
from fedlora.generation.bounds import GenerationRefused


class RequestFault(FedloraError):
    """A request that is not answered.

    Attributes
    ----------
    param
        The field that is at fault; None where it is none.
    code
        OpenAI's code, or None.
    status
        Of HTTP.
    """

    def __init__(
        self, sentence: str, param: str | None = None, code: str | None = None, status: int = 400
    ) -> None:
        super().__init__(sentence)
        self.param, self.code, self.status = param, code, status


def as_fault(error: FedloraError) -> RequestFault:
    """Return how whatever may go wrong with a text is told."""
    if isinstance(error, RequestFault):
        return error
    sentence = str(error)
    if isinstance(error, GenerationRefused):
        if error.refusal == "full":
            return RequestFault(sentence, code="full", status=503)
        if error.refusal == "long":
            return RequestFault(sentence, code="context_length_exceeded")
        return RequestFault(sentence, code="refused", status=502)
    if isinstance(error, ClientLost):
        return RequestFault(sentence, code="server_lost", status=503)
    if isinstance(error, ProtocolError):
        return RequestFault(sentence, code="server_failed", status=502)
    return RequestFault(sentence)


def error_body(fault: RequestFault) -> dict[str, Any]:
    """Return an error as OpenAI's API has it."""
    kind = "invalid_request_error" if fault.status < 500 else "server_error"
    told = {"message": str(fault), "type": kind, "param": fault.param, "code": fault.code}
    return {"error": told}


def json_response(
    content: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return JSON in ASCII, as a quoted value may hold what is no UTF-8."""
    body = json.dumps(content).encode()
    return Response(body, status, headers=headers, media_type="application/json")


def error_response(fault: RequestFault, headers: Mapping[str, str] | None = None) -> Response:
    """Return the answer to a request at fault."""
    return json_response(error_body(fault), fault.status, headers)
