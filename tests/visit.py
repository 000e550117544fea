"""What a visitor of the page does, each step ended by a wait for what it leads to.

gradio puts the parts of the page in place one after the other. One frame after it has opened a tab
or a fold, it gives the parts in there their first values once more, and takes back what was pressed
meanwhile. So each step waits for what it needs, and for the frame behind it.
"""

from __future__ import annotations

from typing import Any

from browser import FAINT, Browser

SHOWN = "document.querySelector('#viewer [data-shown]')?.dataset.shown"
PHOTO = "document.querySelector('#photo img')"
_THERE = (
    "#photo input[type=file]", "#examples button", "#names textarea", "#methods input", "#segment",
    "button[role=tab]:nth-of-type(3)",
)  # fmt: skip
_TOAST = "document.querySelector('[data-testid=toast-text]')"


def open_page(browser: Browser, url: str, **screen: Any) -> None:
    """Open the page of all methods, and wait until all of it is there."""
    browser.show(url, **screen)
    for part in _THERE:
        browser.wait(f"!!document.querySelector({part!r})")
    browser.settle()


def choose_example(browser: Browser, number: int = 1) -> None:
    """Press an example, and wait until its picture and its names are on the page."""
    browser.click(f"#examples button:nth-of-type({number})")
    take_example(browser)


def take_example(browser: Browser) -> None:
    """Wait until the picture and the names of an example are on the page."""
    browser.wait(f"{PHOTO} && document.querySelector('#names textarea').value")
    browser.settle()


def choose_all_methods(browser: Browser) -> None:
    """Choose the second and the third method as well."""
    for number in (2, 3):
        browser.click(f"#methods label:nth-of-type({number}) input")
        browser.settle()
    browser.wait("document.querySelectorAll('#methods input:checked').length === 3")


def open_tab(browser: Browser, number: int, button: str) -> None:
    """Open a tab, and wait until a button in it can be pressed."""
    browser.click(f"button[role=tab]:nth-of-type({number})")
    browser.wait(f"document.querySelector({button!r})?.getClientRects().length")
    browser.settle()


def open_fold(browser: Browser, fold: str, inside: str, count: int) -> None:
    """Open a fold, and wait until all of some elements inside can be used."""
    browser.click(f"{fold} .label-wrap")
    browser.wait(f"document.querySelectorAll({inside!r}).length === {count}")
    browser.settle()


def sentence(browser: Browser) -> str:
    """Return the error that the page shows, and close it before it goes away by itself."""
    text = browser.wait(
        f"(() => {{ const text = {_TOAST}?.innerText; "
        "if (text) document.querySelector('[data-testid=toast-close]').click(); return text })()"
    )
    browser.wait(f"!{_TOAST}")
    return text


def faint(browser: Browser) -> list[str]:
    """Return the texts that stay too faint when all that fades in or out has done so."""
    browser.patient(f"({FAINT}).length === 0")
    return browser.look(FAINT)
