"""The server of the page: one process that takes requests until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import tempfile
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from openvocab.app.engine import Engine
from openvocab.app.guard import Guard
from openvocab.errors import InputError
from openvocab.world.names import world_names
from openvocab.world.scenes import scene, visible_labels

_EXTRA = 'the page needs {}, which is not installed; install it with pip install ".[app]"'
_LAST_SECONDS = 8  # for what is in work when the server is told to stop
_AT_ONCE = 8  # requests that are read and answered at once; the device takes them one by one
_EXAMPLES = (0, 1, 2, 3, 4, 5)  # scenes of the world's validation set
_SESSIONS = 40  # visitors whose last result is kept; the oldest are forgotten
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "Consolas", "monospace")


def serve(engine: Engine, *, host: str, port: int, root_path: str = "", mcp: bool = False) -> int:
    """Serve the page until SIGTERM or Ctrl-C; what is in work is ended first.

    Args:
        engine: runs the methods.
        host: address to listen on.
        port: port to listen on.
        root_path: of the page behind a proxy.
        mcp: offer the API to language-model tools as well.

    Raises:
        InputError: gradio is not installed, or the port is in use.
    """
    with tempfile.TemporaryDirectory(prefix="openvocab-") as name, listen(host, port) as door:
        folder = Path(name).resolve()
        application = build_application(engine, folder, root_path=root_path, mcp=mcp)
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{door.getsockname()[1]}"
        ended = _run(application, door, engine, address)
    if not ended:
        os._exit(0)  # what computes or loads in another thread cannot be ended otherwise
    return 0


def _run(application: Any, door: socket.socket, engine: Engine, address: str) -> bool:
    """Serve until a signal comes; then end what is in work, and close what pages hold open.

    Returns:
        Whether all that was in work has ended.
    """
    import uvicorn  # comes with gradio

    ended = [False]

    class Server(uvicorn.Server):  # type: ignore[misc]
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            engine.warm()
            print(f"The page is at {address} (Ctrl-C stops it).", flush=True)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            ended.append(await asyncio.to_thread(engine.close, _LAST_SECONDS))
            await super().shutdown(sockets)

    config = uvicorn.Config(
        application,
        log_level="warning",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=1,  # for answers on their way; open pages never end by themselves
        server_header=False,
    )
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    # uvicorn raises the signal that stopped it again when all is done.
    signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        Server(config).run(sockets=[door])
    except KeyboardInterrupt:
        pass
    return ended[-1]


def _is_news(record: logging.LogRecord) -> bool:
    """Leave out that connections of open pages were closed at the end."""
    closed = record.exc_info and record.exc_info[0] is asyncio.CancelledError
    return not closed and "timeout graceful shutdown exceeded" not in record.getMessage()


def listen(host: str, port: int) -> socket.socket:
    """Open the port to listen on.

    Raises:
        InputError: the address is not of this machine, or the port is in use.
    """
    door = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        door.bind((host, port))
    except (OSError, OverflowError) as error:
        door.close()
        raise InputError(
            f"the page cannot listen on {host}, port {port} ({error}); choose another --port or "
            "--host"
        ) from error
    return door


def build_application(
    engine: Engine, folder: Path, *, root_path: str = "", mcp: bool = False
) -> Any:
    """Return the ASGI application of the page.

    Args:
        engine: runs the methods.
        folder: for uploads and files to download, emptied as they age.
        root_path: of the page behind a proxy.
        mcp: offer the API to language-model tools as well.

    Raises:
        InputError: gradio is not installed.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "uploads")  # read when gradio is imported
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio as gr
        from fastapi import FastAPI
        from starlette.routing import Mount
    except ImportError as error:
        raise InputError(_EXTRA.format(error.name)) from error
    if mcp and find_spec("mcp") is None:
        raise InputError(_EXTRA.format("mcp"))

    from openvocab.app.page import Page
    from openvocab.app.sentences import add_handlers

    page = Page(engine, folder / "files", write_examples(folder / "examples"))
    page.blocks.queue(
        max_size=engine.limits.queue, api_open=False, default_concurrency_limit=_AT_ONCE
    )
    page.blocks.state_session_capacity = _SESSIONS
    # gradio checks that files were uploaded only in blocks that it has launched by itself.
    page.blocks.has_launched = True
    application = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def health() -> dict[str, Any]:
        """Tell that the server answers, and which methods are in memory."""
        return {"status": "ok", "loaded": [key for key in engine.methods if engine.is_loaded(key)]}

    application.add_api_route("/health", health)
    gr.mount_gradio_app(
        application,
        page.blocks,
        path="/",
        root_path=root_path or None,
        max_file_size=engine.limits.max_bytes,
        show_error=False,
        ssr_mode=False,
        run_history=False,
        css=resources.files("openvocab.app").joinpath("page.css").read_text("utf-8"),
        footer_links=["api", "settings"],
        theme=_theme(),
        mcp_server=mcp,
    )
    (mounted,) = (route for route in application.routes if isinstance(route, Mount))
    add_handlers(mounted.app, engine.limits.queue)
    return Guard(application, folder, engine.limits.max_bytes)


def _theme() -> Any:
    """Return a theme with the fonts of the visitor's system, and a contrast of 4.5 to 1 or more."""
    import gradio as gr

    dim, dim_dark, strong, stronger = "#52525b", "#c4c4cc", "#c2410c", "#9a3412"
    light_and_dark = {
        "body_text_color_subdued": (dim, dim_dark),
        "block_info_text_color": (dim, dim_dark),
        "block_label_text_color": (dim, dim_dark),
        "block_title_text_color": (dim, dim_dark),
        "input_placeholder_color": ("#71717a", "#a1a1aa"),
        "button_primary_background_fill": (strong, strong),
        "button_primary_background_fill_hover": (stronger, stronger),
        "checkbox_background_color_selected": (strong, strong),
        "checkbox_border_color_selected": (strong, strong),
    }
    light = {name: colors[0] for name, colors in light_and_dark.items()}
    dark = {f"{name}_dark": colors[1] for name, colors in light_and_dark.items()}
    theme = gr.themes.Default(font=_FONTS, font_mono=_MONO)
    return theme.set(color_accent=strong, **light, **dark)  # page.css has the accent of the dark


def write_examples(folder: Path) -> list[tuple[str, str]]:
    """Draw scenes of the embedded world and return the files with the names that they show.

    An installation without the world's pictograms has no examples.
    """
    try:
        scenes = [scene(index, "val") for index in _EXAMPLES]
    except InputError:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    names = [name.name for name in world_names()]
    examples = []
    for number, one in enumerate(scenes):
        path = folder / f"scene {number + 1}.png"
        Image.fromarray(one.image).save(path)
        shown = [names[label] for label in sorted(visible_labels(one.label))]
        examples.append((str(path), ", ".join(shown)))
    return examples
