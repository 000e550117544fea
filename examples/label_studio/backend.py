"""Label Studio's pre-annotation with any installed method: `python backend.py --method san`.

Label Studio sends its tasks and its labeling configuration; the names of the `BrushLabels` in there
are what is looked for, so that a change of the labels needs no restart.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config
from label_studio_sdk._extensions.label_studio_tools.core.utils.io import get_local_path

from openvocab.cli import CommandParser, run
from openvocab.errors import InputError, one_line
from openvocab.formats.labelstudio import labelstudio_prediction
from openvocab.formats.regions import result_of
from openvocab.methods import add_method_arguments, load_from_arguments
from openvocab.reading.json_files import parse_json
from openvocab.segmenter import Segmenter

_MOST_BYTES = 10_000_000  # of a request


def download(address: str, task: Mapping[str, Any]) -> str:
    """Return the path of a task's image, which Label Studio's SDK fetches where it is not local."""
    path: str = get_local_path(
        address,
        hostname=os.environ.get("LABEL_STUDIO_URL"),
        access_token=os.environ.get("LABEL_STUDIO_API_KEY"),
        task_id=task.get("id"),
    )
    return path


class Backend:
    """Predicts tasks as Label Studio asks for it.

    Args:
        segmenter: The method, loaded.
        version: Shown in Label Studio as the version of the model.
        find_file: Returns the image file of an address in a task.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        version: str,
        find_file: Callable[[str, Mapping[str, Any]], str] = download,
    ) -> None:
        self.segmenter, self.version, self.find_file = segmenter, version, find_file

    def predict(self, tasks: Sequence[Mapping[str, Any]], config: str) -> list[dict[str, Any]]:
        """Return a prediction for each task.

        Args:
            tasks: With their `data`, as Label Studio sends them.
            config: The labeling configuration of the project, XML.

        Raises:
            InputError: The configuration has no brushes for an image, or an image cannot be read.
        """
        from_name, to_name, field, names = _brushes(config)
        predictions = []
        for task in tasks:
            path = self.find_file(str(task["data"][field]), task)
            found = self.segmenter.segment(path, names)
            result = result_of(found, path)
            predictions.append(labelstudio_prediction(result, self.version, from_name, to_name))
        return predictions


def _brushes(config: str) -> tuple[str, str, str, list[str]]:
    """Return the name of the brushes, of the image, of its field in tasks, and the labels."""
    for name, tag in parse_config(config).items():
        if tag["type"] == "BrushLabels" and tag["inputs"][0]["type"] == "Image":
            return name, tag["to_name"][0], tag["inputs"][0]["value"], list(tag["labels"])
    raise InputError("the labeling configuration has no BrushLabels for an Image; add them")


def make_server(backend: Backend, host: str, port: int) -> ThreadingHTTPServer:
    """Return a server with the four addresses that Label Studio calls."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(200, {"status": "UP", "model_class": backend.version})

        def do_POST(self) -> None:
            try:
                self._answer(200, self._result())
            except (InputError, KeyError, TypeError, ValueError, OSError) as error:
                self._answer(400, {"error": one_line(f"{type(error).__name__}: {error}")})

        def _result(self) -> dict[str, Any]:
            if self.path != "/predict":  # /setup and /webhook
                return {"model_version": backend.version}
            size = int(self.headers.get("Content-Length", 0))
            if size > _MOST_BYTES:
                raise InputError(f"a request has {size} bytes, more than {_MOST_BYTES}")
            request = parse_json(self.rfile.read(size).decode(), "the request", "tasks")
            results = backend.predict(request["tasks"], request["label_config"])
            return {"results": results, "model_version": backend.version}

        def _answer(self, status: int, content: Mapping[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer((host, port), Handler)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until the process is stopped."""
    parser = CommandParser(description=__doc__)
    add_method_arguments(parser)
    parser.add_argument("--device", default=None, help="where to compute (default: the best)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=9090, metavar="N")
    args = parser.parse_args(argv)
    server = make_server(Backend(load_from_arguments(args), args.method), args.host, args.port)
    print(f"add http://{args.host}:{server.server_port} as a model in Label Studio's settings")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
