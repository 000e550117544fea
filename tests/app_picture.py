"""Makes the picture of the page in the documents.

`python tests/app_picture.py http://127.0.0.1:7860 docs/pictures/app.png` photographs a page that
runs with `--weights world`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from browser import start_browser
from PIL import Image
from visit import SHOWN, choose_all_methods, choose_example, open_page

_SCENE = 3  # of the examples, from 1 on


def main(url: str, target: Path) -> None:
    """Segment an example with all methods and save what is seen, in few colors."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        browser = start_browser(Path(folder, "profile"))
        try:
            open_page(browser, url, width=1300)
            choose_example(browser, _SCENE)
            choose_all_methods(browser)
            browser.click("#segment")
            browser.wait(SHOWN)
            browser.picture(target)
        finally:
            browser.close()
    Image.open(target).convert("RGB").quantize(200).save(target, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
