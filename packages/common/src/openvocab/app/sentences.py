"""Errors of a request, each shown as one sentence on the page and returned as one by the API."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import gradio as gr
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from gradio.route_utils import FnIndexInferError

from openvocab.errors import InputError

_FAILED = "something went wrong on the server, whose log says what; this is no fault of yours"
_ELSEWHERE = ("http:", "https:")


def sentences(function: Callable[..., Any]) -> Callable[..., Any]:
    """Turn what a visitor can cause into a sentence on the page."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except InputError as error:
            raise _said(str(error)) from None
        except Exception:
            # What the reason may tell of the server is for its log only.
            logging.getLogger(__name__).exception("a request failed")
            raise _said(_FAILED) from None

    return guarded


def check_inputs(blocks: gr.Blocks) -> None:
    """Let values that gradio cannot read be refused with a sentence instead of nothing."""
    preprocess_data = blocks.preprocess_data

    async def checked(block_fn: Any, inputs: list[Any], *rest: Any, **options: Any) -> Any:
        labels = [str(block.label) for block in block_fn.inputs if hasattr(block, "label")]
        if len(inputs) != len(block_fn.inputs):
            takes = f"{len(labels)} values ({', '.join(labels)})" if labels else "no values"
            raise _said(f"this call takes {takes}, but got {len(inputs)}")
        for block, value in zip(block_fn.inputs, inputs, strict=True):
            if isinstance(block, gr.Textbox) and not isinstance(value, str | None):
                raise _said(f"'{block.label}' is no text; send it as a string")
            if isinstance(value, dict) and str(value.get("path")).startswith(_ELSEWHERE):
                raise _said("this server fetches no pictures from others; send the picture itself")
        try:
            return await preprocess_data(block_fn, inputs, *rest, **options)
        except gr.Error:
            raise
        except Exception:
            raise _said(
                f"one of the values cannot be read ({', '.join(labels)}); send each as the page's "
                "documentation of the API has it"
            ) from None

    blocks.preprocess_data = checked


def add_handlers(application: FastAPI, waiting: int) -> None:
    """Let requests that gradio itself refuses get a sentence as well.

    Args:
        application: gradio's own.
        waiting: how many requests may wait.
    """
    said = {
        RequestValidationError: (422, "the request cannot be read; send the JSON that the "
                                 "documentation of the API shows"),
        FnIndexInferError: (404, "there is no call of this name; the page offers /segment and "
                            "/methods"),
        Exception: (500, _FAILED),
    }  # fmt: skip
    for kind, (status, words) in said.items():
        application.add_exception_handler(kind, _answer(status, words))
    full = f"the page is busy: {waiting} requests wait already; try again in a minute"

    def refuse(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        words = full if error.status_code == 503 else error.detail
        return JSONResponse({"detail": words}, error.status_code, error.headers)

    application.add_exception_handler(HTTPException, refuse)


def _answer(status: int, words: str) -> Callable[[Request, Exception], JSONResponse]:
    return lambda request, error: JSONResponse({"detail": words}, status)


def _said(words: str) -> gr.Error:
    return gr.Error(words, print_exception=False)
