"""Take the README's picture: the top of the demonstration's report, in headless Chromium.

make demo && python docs/screenshot.py out/demo docs/images

The record of the run goes beside the picture; the README's words come from it (``generate.py``).
"""

import base64
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "report"))

import chromium  # noqa: E402 - it lives with the tests that use it

WIDTH, HEIGHT = 1000, 1040  # from the verdict to the end of the table


def main(run: Path, images: Path) -> None:
    """Open the page of a run, write what its first screens show, and its record."""
    if chromium.find() is None:
        raise SystemExit(chromium.INSTALL)
    with chromium.browse(Path(tempfile.mkdtemp())) as tab:
        tab.open(
            (run / "report.html").resolve().as_uri(), width=WIDTH, height=5000
        )  # no scroll bar
        clip = {"x": 0, "y": 0, "width": WIDTH, "height": HEIGHT, "scale": 1}
        image = tab.call("Page.captureScreenshot", clip=clip)
        if tab.errors or len(tab.requests) > 1:
            raise SystemExit(f"the page complains or asks for more: {tab.errors} {tab.requests}")
    images.mkdir(parents=True, exist_ok=True)
    (images / "report.png").write_bytes(base64.b64decode(image["data"]))
    shutil.copyfile(run / "metrics.json", images / "report.json")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
