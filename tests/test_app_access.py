"""The page by keyboard, in light and dark, with the clipboard and a camera, and hostile files."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from benchmarks.speed.app import crafted_uploads
from browser import Browser, start_browser
from PIL import Image
from visit import PHOTO, SHOWN, choose_example, faint, open_page, open_tab, sentence, take_example

from openvocab.world.scenes import scene


@pytest.fixture
def browser(tmp_path, app_url) -> Iterator[Browser]:
    found = start_browser(tmp_path / "profile")
    yield found
    said = found.complaints()
    found.close()
    # gradio itself logs warnings when a page is left, and these tests read pixels often.
    assert [one for one in said if not re.search('"(type|level)": "warning"', one)] == []


def is_focused(browser: Browser, selector: str) -> bool:
    return bool(browser.look(f"document.activeElement.matches({selector!r})"))


def tab_to(browser: Browser, selector: str, most: int = 40) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(most):
        if is_focused(browser, selector):
            return
        browser.press("Tab")
    raise AssertionError(f"{most} times Tab did not lead to {selector}")


def test_everything_is_done_by_keyboard(browser, app_url) -> None:
    open_page(browser, app_url)
    tab_to(browser, "#examples button")
    browser.press("Enter")
    take_example(browser)
    tab_to(browser, "#names textarea")
    browser.call("Input.insertText", text=", penguin")
    tab_to(browser, "#segment")
    ring = (
        "(style => style.outlineStyle + style.boxShadow)(getComputedStyle(document.activeElement))"
    )
    assert browser.look(ring) != "nonenone"
    browser.press("Enter")
    browser.wait(SHOWN)
    assert "penguin" in browser.look("document.querySelector('#viewer .names').textContent")
    tab_to(browser, "#viewer canvas")
    browser.press("ArrowRight")
    browser.wait("document.querySelector('#viewer .said').innerText.includes('column')")
    tab_to(browser, "#viewer .names input[type=checkbox]")
    browser.press(" ")
    browser.wait("document.activeElement.checked === false")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground(browser, app_url, scheme) -> None:
    open_page(browser, app_url, scheme=scheme)
    assert faint(browser) == []
    choose_example(browser)
    browser.look("document.querySelectorAll('.label-wrap:not(.open)').forEach(e => e.click())")
    browser.wait("document.querySelectorAll('#formats input, #distractors input').length > 3")
    browser.settle()
    browser.click("#segment")
    browser.wait(SHOWN)
    browser.wait("!document.querySelector('#viewer .pending')")
    assert faint(browser) == []
    open_tab(browser, 2, "#compare")
    browser.click("#compare")
    browser.wait("!!document.querySelector('#comparison table')")
    assert faint(browser) == []
    browser.click("#why")
    browser.wait("!!document.querySelector('#comparison ul')")
    assert faint(browser) == []
    open_tab(browser, 3, "#teach")
    browser.click("#teach")
    browser.wait("!!document.querySelector('#steps section')")
    assert faint(browser) == []


def segmented_size(browser: Browser) -> list[int]:
    """Segment what the page holds, and return the width and height of the result."""
    browser.enter("#names textarea", "duck, wood")
    browser.settle()
    browser.click("#segment")
    browser.wait(SHOWN)
    return browser.look(
        "(canvas => [canvas.width, canvas.height])(document.querySelector('#viewer canvas'))"
    )


def test_a_picture_is_pasted(browser, app_url) -> None:
    image = scene(0, "val").image
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    code = base64.b64encode(stream.getvalue()).decode("ascii")
    browser.grant("clipboardReadWrite", "clipboardSanitizedWrite")
    open_page(browser, app_url)
    browser.call("Emulation.setFocusEmulationEnabled", enabled=True)
    browser.look(
        f"fetch('data:image/png;base64,{code}').then(answer => answer.blob())"
        ".then(blob => navigator.clipboard.write([new ClipboardItem({'image/png': blob})]))"
    )
    browser.events.clear()  # a page may not fetch what is not its own, but this test did
    browser.click("#photo button[aria-label='Paste from clipboard']")
    browser.wait(f"{PHOTO}?.src.includes('clipboard')")
    assert segmented_size(browser) == [image.shape[1], image.shape[0]]


def test_a_picture_is_taken_with_the_camera(browser, app_url) -> None:
    browser.grant("videoCapture")
    open_page(browser, app_url)
    browser.click("#photo button[aria-label='Capture from camera']")
    access = "[...document.querySelectorAll('#photo button')].find(b => /Webcam/.test(b.innerText))"
    browser.wait(f"!!{access}")
    browser.look(f"{access}.click()")
    browser.wait("document.querySelector('#photo video')?.videoWidth")
    browser.click("#photo button[aria-label='capture photo']")
    browser.wait(f"{PHOTO}?.src.includes('/file=')")
    assert max(segmented_size(browser)) == 1280  # the camera's 1920 pixels are too many to show


def test_hostile_files_get_sentences_on_the_page(browser, app_url, tmp_path) -> None:
    open_page(browser, app_url)
    browser.enter("#names textarea", "duck")
    for number, data in enumerate(crafted_uploads().values()):
        path = Path(tmp_path, f"hostile{number}.png")
        path.write_bytes(data)
        browser.upload("#photo input[type=file]", path)
        browser.wait(f"{PHOTO}?.src.endsWith('hostile{number}.png')")
        browser.click("#segment")
        said = sentence(browser)
        assert re.fullmatch(r"[^\n]*image[^\n]*", said), said
        assert "Traceback" not in said and "/" not in said.replace("150x150", "")
    # A picture that cannot be shown is an error of the picture, not of the page.
    browser.events[:] = [one for one in browser.events if one.get("method") != "Log.entryAdded"]
