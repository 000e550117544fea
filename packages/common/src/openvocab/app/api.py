"""The API that gradio offers for programs: `/segment` and `/methods`."""

from __future__ import annotations

import base64
from typing import Any

import gradio as gr

from openvocab.app.asked import read_asked
from openvocab.app.downloads import label_png
from openvocab.app.engine import MOST_SCORE, Engine, shown_weights
from openvocab.app.photo import photo
from openvocab.app.sentences import sentences
from openvocab.drawing.overlay import label_shares
from openvocab.errors import InputError
from openvocab.formats.run_length import encode_labels
from openvocab.image import ImageArray


def add_api(engine: Engine) -> None:
    """Add the two calls to the page in work; nothing of them is seen on it."""

    def segment(
        image: ImageArray | None, names: str, method: str, threshold: float
    ) -> dict[str, Any]:
        """Segment a picture with any names.

        Args:
            image: the picture, as a data address ("data:image/png;base64,...") or an upload.
            names: with commas or new lines between them; "dog | puppy" are synonyms.
            method: key of a method, such as "san".
            threshold: pixels whose best score is below it get no name; 0 for none.

        Returns:
            The size [height, width], the names, and for each name that was found its index, its
            area (share of the picture, 0 to 1), its score (mean over its pixels), and its mask in
            COCO's run-length format; the label map as a PNG in a data address.
        """
        return segment_to_json(engine, image, names, method, threshold)

    def methods() -> list[dict[str, Any]]:
        """List the methods: key, title, summary, weights, and whether each is in memory."""
        return [
            {
                "key": key,
                "title": method.title,
                "summary": method.summary,
                "weights": shown_weights(engine.weights[key]),
                "loaded": engine.is_loaded(key),
            }
            for key, method in engine.methods.items()
        ]

    with gr.Group(visible=False):
        inputs = [
            photo(engine.limits, label="image"),
            gr.Textbox(label="names"),
            gr.Textbox(next(iter(engine.methods)), label="method"),
            gr.Number(0, label="threshold"),
        ]
        answer, listing = gr.JSON(label="segmentation"), gr.JSON(label="methods")
        asked, listed = gr.Button(), gr.Button()
    asked.click(sentences(segment), inputs, answer, api_name="segment", concurrency_limit=8)
    listed.click(sentences(methods), None, listing, api_name="methods")


def segment_to_json(
    engine: Engine, image: ImageArray | None, names: str, method: str, threshold: float
) -> dict[str, Any]:
    """Segment a picture at its own size and describe the result as plain data.

    Raises:
        InputError: something is missing or cannot be used.
    """
    if image is None:
        raise InputError("there is no picture; send one as 'image'")
    if not isinstance(threshold or 0, int | float) or not 0 <= (threshold or 0) <= MOST_SCORE:
        raise InputError(f"the threshold is {threshold!r:.40}; use a number from 0 to {MOST_SCORE}")
    if not isinstance(names, str) or not isinstance(method, str):
        raise InputError("names and method are texts; send them as strings")
    asked = read_asked(names, max_names=engine.limits.max_names)
    found = engine.segment(method, image, asked)
    result = found.with_threshold(none_of_these=threshold or 0)
    codes = encode_labels(result.labels)
    segments = [
        {
            "index": label,
            "name": result.vocabulary.names[label],
            "area": share,
            "score": None
            if found.certainty is None
            else float(found.certainty[result.labels == label].mean()),
            "rle": codes[label],
        }
        for label, share in label_shares(result.labels)
    ]
    return {
        "method": method,
        "weights": found.weights,
        "size": list(result.labels.shape),
        "names": list(result.vocabulary.names),
        "threshold": threshold or 0,
        "segments": segments,
        "seconds": round(found.seconds, 4),
        "notices": list(found.notices),
        "label_png": "data:image/png;base64," + base64.b64encode(label_png(result)).decode("ascii"),
    }
