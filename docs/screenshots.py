"""Makes the pictures of the page in docs/images with a browser without a screen (`make screenshots`).

Needs `recursivemas[app]`, the package `playwright`, and a browser of Chromium's family: `CHROMIUM` names it, else it
is looked for on the path and among playwright's own (`playwright install chromium`).
"""

import contextlib
import os
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..app import Offer, build_page, launch
from ..errors_recursivemas import InputError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

IMAGES = Path(__file__).with_name("images")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
WIDE, NARROW = (1280, 900), (390, 844)  # pixels of a window on a desk, and of a telephone
SECONDS = 60  # that something on the page is waited for, on a busy machine


@contextlib.contextmanager
def browser() -> Iterator["Browser"]:
    """A browser of Chromium's family without a screen.

    Raises:
        InputError: there is none here, or nothing to drive it with.
    """
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError as error:
        raise InputError("A browser needs its client.", found=error, hint="pip install playwright") from error
    with sync_playwright() as client:
        found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
        try:
            chromium = client.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error as error:
            hint = "name one by CHROMIUM, or `playwright install chromium`"
            raise InputError("There is no browser.", found=str(error).partition("\n")[0], hint=hint) from error
        try:
            yield chromium
        finally:
            chromium.close()


@contextlib.contextmanager
def served(offers: Sequence[Offer]) -> Iterator[str]:
    """The address at which a page is served, on this machine only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    page = build_page(offers)
    launch(page, "127.0.0.1", port, wait=False)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        page.close()


def opened(chromium: "Browser", address: str, size: tuple[int, int], dark: bool = False) -> "Page":
    """A page in a window of its own, ready to be asked."""
    width, height = size
    context = chromium.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
    )
    context.set_default_timeout(1000 * SECONDS)
    page = context.new_page()
    page.goto(address)
    page.get_by_label("Question").wait_for()
    return page


def wait_for_answers(page: "Page", number: int) -> list[str]:
    """The first `number` answers on a page, when they and the trace are there."""
    shown = page.locator(".answer")
    shown.nth(number - 1).wait_for()
    page.frame_locator("iframe.trace").locator(".wrote").wait_for()
    return shown.all_inner_texts()


def take_pictures(folder: Path, offers: Sequence[Offer]) -> dict[Path, float]:
    """Asks the first system the example in the middle, and takes a picture on a desk, and one on a telephone.

    Returns:
        Picture -> seconds from the click until the first answer was to be seen: of a server's first question, and of
        its second.
    """
    taken = {}
    with served(offers) as address, browser() as chromium:
        for name, size, dark in (("page", WIDE, False), ("page-narrow", NARROW, True)):
            page = opened(chromium, address, size, dark)
            started = time.perf_counter()
            page.locator(".examples button").nth(1).click()
            page.locator(".answer").first.wait_for()
            taken[folder / f"{name}.png"] = time.perf_counter() - started
            wait_for_answers(page, 3)
            page.wait_for_timeout(1000)  # for what moves
            height = min(page.evaluate("document.documentElement.scrollHeight"), 1600)
            page.screenshot(
                path=folder / f"{name}.png", full_page=True, clip={"x": 0, "y": 0, "width": size[0], "height": height}
            )
            page.context.close()
    return taken


def main() -> None:
    import argparse

    from ..app import configure, offers_of

    parser = argparse.ArgumentParser()
    configure(parser)
    for path, seconds in take_pictures(IMAGES, offers_of(parser.parse_args([]))).items():
        print(f"{path}: {path.stat().st_size / 1000:.0f} kB, first answer after {seconds:.2f} s")


if __name__ == "__main__":
    main()
