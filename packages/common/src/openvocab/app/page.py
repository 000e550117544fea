"""The page itself: what is on it, and what happens when a visitor asks.

Source of the layout: one column for what is asked, one for what was found.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np

from openvocab.app.api import add_api
from openvocab.app.asked import Asked, read_asked
from openvocab.app.downloads import CHOICES, USUAL, write_files
from openvocab.app.engine import MOST_SCORE, Engine, Found
from openvocab.app.photo import photo
from openvocab.app.reports import compare_html, examples_html, steps_html, why, why_html
from openvocab.app.sentences import check_inputs, sentences
from openvocab.app.viewer import view_of, viewer_file
from openvocab.errors import InputError
from openvocab.image import ImageArray
from openvocab.reading.json_files import parse_json
from openvocab.vocabulary import available_vocabularies
from openvocab.world.names import world_names

SHOWN_SIDE = 1280  # the page works with pictures of at most this long side; the API with any
_KEEP_SECONDS, _SWEEP_SECONDS = 900, 60  # how long uploads and results live
_DISTRACTORS = [
    ("none", ""),
    ("the 91 stuff names of COCO", "coco-stuff"),
    ("all 171 names of COCO", "coco-all"),
]
_PICK_EXAMPLE = """element.addEventListener("click", (event) => {
  const button = event.target.closest("button")
  if (button) trigger("click", { number: Number(button.dataset.number) })
})"""
_WITH_THRESHOLDS = """(session, formats) =>
  [session, formats, JSON.stringify(window.openvocabThresholds ?? {})]"""


@dataclass(frozen=True, eq=False)
class Session:
    """The last picture of a visitor and what was found in it; lives as long as the page.

    Attributes:
        image: (H, W, 3), as the page works with it.
        asked: the names.
        found: what each chosen method found.
    """

    image: ImageArray
    asked: Asked
    found: tuple[Found, ...]


class Page:
    """The page of an engine's methods.

    Attributes:
        engine: runs them.
        blocks: what gradio shows.
    """

    def __init__(
        self, engine: Engine, folder: Path, examples: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Lay out the page.

        Args:
            engine: of the methods to show.
            folder: for files to download.
            examples: picture files and names for them.
        """
        self.engine, self.folder = engine, folder
        self.names = gr.Textbox(
            label="Names",
            info="With commas or new lines between them; dog | puppy are synonyms.",
            lines=3,
            elem_id="names",
            placeholder="dog, grass, sky",
            render=False,  # comes below the examples, which write into it
        )
        folder.mkdir(parents=True, exist_ok=True)
        self.titles = {key: method.title for key, method in engine.methods.items()}
        with gr.Blocks(
            title="Open-vocabulary segmentation",
            analytics_enabled=False,
            delete_cache=(_SWEEP_SECONDS, _KEEP_SECONDS),
            fill_width=True,
        ) as self.blocks:
            gr.Markdown(f"# Open-vocabulary segmentation\n{self._introduction()}")
            with gr.Row():
                with gr.Column(scale=1, min_width=320):
                    self._ask(examples)
                with gr.Column(scale=2, min_width=320):
                    self._answer()
            add_api(engine)
        check_inputs(self.blocks)

    def _introduction(self) -> str:
        titles = list(self.titles.values())
        those = titles[0] if len(titles) == 1 else f"{', '.join(titles[:-1])} and {titles[-1]}"
        return f"Give {those} a picture and any names; each pixel gets the name that fits it best."

    def _ask(self, examples: Sequence[tuple[str, str]]) -> None:
        """Lay out what a visitor gives."""
        self.photo = photo(
            self.engine.limits,
            label="Picture",
            sources=["upload", "clipboard", "webcam"],
            image_mode="RGB",
            elem_id="photo",
            height=300,
            buttons=[],
            alt_text="The picture to segment",
        )
        if examples:
            self._examples(examples)
        self.names.render()
        self.methods = gr.CheckboxGroup(
            [(title, key) for key, title in self.titles.items()],
            value=[next(iter(self.titles))],
            label="Methods",
            elem_id="methods",
            visible=len(self.titles) > 1,
        )
        with gr.Accordion("More names", open=False):
            self._more_names()
        self.asked = [self.photo, self.names, self.preset, self.distractors]

    def _examples(self, examples: Sequence[tuple[str, str]]) -> None:
        """Lay out the example pictures as buttons, each of which fills in picture and names."""
        shown = gr.HTML(
            examples_html(examples),
            js_on_load=_PICK_EXAMPLE,
            apply_default_css=False,
            elem_id="examples",
        )

        def take(event: gr.EventData) -> tuple[str, str]:
            return examples[int(event.number)]

        # Modules with postponed annotations hide the type that gradio looks for.
        take.__annotations__["event"] = gr.EventData
        shown.click(take, None, [self.photo, self.names], api_visibility="private", queue=False)

    def _more_names(self) -> None:
        """Lay out suggestions, the vocabularies of data sets, and distractors."""
        known = [[name.name] for name in world_names()]
        suggestions = gr.Dataset(
            components=[gr.Textbox(visible=False)],
            samples=known,
            samples_per_page=len(known),
            label="Names of the embedded world",
            elem_id="suggestions",
        )
        self.preset = gr.Dropdown(
            [("none", ""), *((key, key) for key in available_vocabularies())],
            value="",
            label="Vocabulary",
            info="The names of a data set, asked for as well.",
            elem_id="preset",
        )
        self.distractors = gr.Radio(
            _DISTRACTORS,
            value="",
            label="Distractor names",
            info="They compete as well; what they win is none of your names.",
            elem_id="distractors",
        )
        suggestions.click(
            _with_name, [self.names, suggestions], self.names, api_visibility="private", queue=False
        )

    def _answer(self) -> None:
        """Lay out what was found."""
        self.session = gr.State(None, time_to_live=_KEEP_SECONDS)
        with gr.Tab("Segment"):
            self._segment_tab()
        with gr.Tab("Compare"):
            self._compare_tab()
        with gr.Tab("Teach"):
            self._teach_tab()

    def _segment_tab(self) -> None:
        button = gr.Button("Segment", variant="primary", elem_id="segment")
        viewer = gr.HTML(
            None,
            html_template=viewer_file(".html"),
            css_template=viewer_file(".css"),
            js_on_load=viewer_file(".js"),
            apply_default_css=False,
            elem_id="viewer",
        )
        with gr.Accordion("Files", open=False, elem_id="files"):
            formats = gr.CheckboxGroup(
                list(CHOICES),
                value=list(USUAL),
                label="Formats",
                info="What openvocab.export writes; several files of a format come as one zip.",
                elem_id="formats",
            )
            make = gr.Button("Make files", elem_id="make-files")
            files = gr.File(label="Files", file_count="multiple", interactive=False, visible=False)
        thresholds = gr.Textbox("{}", visible=False)  # the browser puts those of the viewer here
        self._on(button, self.segment, [*self.asked, self.methods], [viewer, self.session])
        self._on(
            make, self.make_files, [self.session, formats, thresholds], files, js=_WITH_THRESHOLDS
        )

    def _compare_tab(self) -> None:
        gr.Markdown("Two methods on the names at the side, or one method on two wordings of them.")
        choices, keys = [(title, key) for key, title in self.titles.items()], list(self.titles)
        with gr.Row():
            first = gr.Radio(choices, value=keys[0], label="First method", elem_id="first")
            second = gr.Radio(choices, value=keys[-1], label="Second method", elem_id="second")
        wording = gr.Textbox(
            label="Other names for the second",
            info="Empty: the same names.",
            lines=2,
            elem_id="wording",
        )
        with gr.Row():
            compare = gr.Button("Compare", variant="primary", elem_id="compare")
            ask_why = gr.Button("Why not my name?", elem_id="why")
        answer = gr.HTML(elem_id="comparison", apply_default_css=False)
        ends = [*self.asked, first, second, wording]
        self._on(compare, self.compare, ends, answer)
        self._on(ask_why, self.why, ends, answer)

    def _teach_tab(self) -> None:
        gr.Markdown("What the chosen methods do with the picture, step by step.")
        button = gr.Button("Show the steps", variant="primary", elem_id="teach")
        steps = gr.HTML(elem_id="steps", apply_default_css=False)
        self._on(button, self.teach, [*self.asked, self.methods], steps)

    def _on(
        self,
        button: gr.Button,
        function: Callable[..., Any],
        inputs: Sequence[Any],
        outputs: Any,
        js: str | None = None,
    ) -> None:
        name = f"page_{function.__name__}"  # `/segment` is that of the API
        button.click(
            sentences(function), inputs, outputs, js=js, api_name=name, api_visibility="private"
        )

    def read(
        self,
        photo: ImageArray | None,
        names: str,
        preset: str | None,
        distractors: str | None,
    ) -> tuple[ImageArray, Asked]:
        """Check what a visitor gave, and shrink the picture to what the page works with.

        Raises:
            InputError: there is no picture, or the names cannot be used.
        """
        if photo is None:
            raise InputError("there is no picture; upload one, paste one, or choose an example")
        asked = read_asked(names, preset, distractors, max_names=self.engine.limits.max_names)
        return fit(photo), asked

    def segment(
        self,
        photo: ImageArray | None,
        names: str,
        preset: str | None,
        distractors: str | None,
        methods: list[str],
    ) -> tuple[dict[str, Any], Session]:
        """Segment the visitor's picture with the chosen methods."""
        image, asked = self.read(photo, names, preset, distractors)
        chosen = self._chosen(methods)
        found = tuple(self.engine.segment(key, image, asked) for key in chosen)
        if photo is not None and photo.shape != image.shape:
            gr.Info(
                f"The picture of {photo.shape[1]}x{photo.shape[0]} is segmented at "
                f"{image.shape[1]}x{image.shape[0]}; the API and the commands keep its size."
            )
        view = view_of(image, found, [self.titles[key] for key in chosen])
        kept = tuple(replace(one, margin=None, evidence=()) for one in found)
        return view, Session(image, asked, kept)

    def make_files(self, session: Session | None, formats: list[str], thresholds: str) -> Any:
        """Write what was found as files to download, with the viewer's thresholds by method."""
        if session is None:
            raise InputError("there is no result yet; press Segment first")
        if not formats:
            raise InputError("no format is chosen; choose at least one")
        chosen = parse_json(thresholds, "the viewer's message", "thresholds by method")
        if not isinstance(chosen, dict) or not all(isinstance(c, dict) for c in chosen.values()):
            raise InputError("the viewer's thresholds are not by method; press Segment again")
        results = []
        for found in session.found:
            given = chosen.get(found.method, {})
            none_of_these, min_score = (_score(given.get(key, 0)) for key in ("pixel", "name"))
            kept = found.with_threshold(none_of_these=none_of_these, min_score=min_score)
            results.append((found.method, kept))
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        files = write_files(session.image, results, formats, folder)
        return gr.update(value=[str(file) for file in files], visible=True)

    def compare(self, *given: Any) -> str:
        """Show where two methods or two wordings differ on the visitor's picture."""
        image, sides = self._sides(*given)
        found = [self.engine.segment(key, image, asked) for key, asked in sides]
        titles = [self.titles[key] for key, _ in sides]
        if titles[0] == titles[1]:
            titles = [f"{titles[0]}, first names", f"{titles[1]}, second names"]
        return compare_html(image, found, titles)

    def why(self, *given: Any) -> str:
        """Show for each name where it scored best and who won there."""
        image, sides = self._sides(*given)
        told = dict.fromkeys(sides)  # the same method and names twice are told once
        return why_html(
            [why(self.engine, self.engine.segment(k, image, asked), asked) for k, asked in told]
        )

    def _sides(
        self,
        photo: ImageArray | None,
        names: str,
        preset: str | None,
        distractors: str | None,
        first: str,
        second: str,
        wording: str,
    ) -> tuple[ImageArray, list[tuple[str, Asked]]]:
        """Return the picture, and the method and names of both sides of a comparison."""
        image, asked = self.read(photo, names, preset, distractors)
        other = asked
        if wording.strip():
            other = read_asked(wording, None, distractors, max_names=self.engine.limits.max_names)
        return image, [(first, asked), (second, other)]

    def teach(
        self,
        photo: ImageArray | None,
        names: str,
        preset: str | None,
        distractors: str | None,
        methods: list[str],
    ) -> str:
        """Show what the chosen methods do with the visitor's picture, step by step."""
        image, asked = self.read(photo, names, preset, distractors)
        shown = []
        for key in self._chosen(methods):
            shown.append((self.engine.methods[key], self.engine.explain(key, image, asked)))
        return steps_html(shown)

    def _chosen(self, methods: list[str]) -> list[str]:
        if not methods:
            raise InputError("no method is chosen; choose at least one")
        return [key for key in self.engine.methods if key in methods]


def _score(value: Any) -> float:
    """Check a threshold that a browser sends."""
    if not isinstance(value, int | float) or not 0 <= value <= MOST_SCORE:
        raise InputError(f"the threshold {value!r:.40} is no score; move its slider again")
    return float(value)


def _with_name(names: str, suggestion: list[str]) -> str:
    """Add a suggested name behind what was typed."""
    typed = names.strip().rstrip(",")
    return f"{typed}, {suggestion[0]}" if typed else suggestion[0]


def fit(photo: ImageArray) -> ImageArray:
    """Shrink a picture whose long side is longer than the page shows."""
    scale = SHOWN_SIDE / max(photo.shape[:2])
    if scale >= 1:
        return photo
    size = max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale))
    return np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
