"""The page of ``agentrl view`` in a real headless browser: what it shows, what it asks for, and what it must not run.

The environment ``tox -e view`` runs these tests. Elsewhere, where the package ``playwright`` is missing, they are not
collected. Without a browser each is skipped, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.browser import runs
from tests.browser.chromium import NO_BROWSER, find_browser, options

collect_ignore_glob = [] if find_spec("playwright") else ["test_*.py"]

if find_spec("playwright"):
    from playwright.sync_api import Browser, sync_playwright
    from tests.browser import hostile
    from tests.browser.serving import viewed
    from tests.browser.watching import Watched
    from transformers import AutoTokenizer


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a browser nothing is prepared for the tests either: no run is trained that none would see."""
    if find_browser() is None:
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=NO_BROWSER))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless browser, in which the host ``rebound.test`` is this machine, as after a rebinding of its name."""
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=find_browser(), args=options())
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four steps on the bundled model, with every kind of outcome."""
    return runs.record(tmp_path_factory.mktemp("runs"), "recorded", "training.steps=4", "evaluation.every=2")


@pytest.fixture(scope="session")
def site(recorded: Path) -> Iterator[str]:
    """The address of the pages over the folder of the recorded run."""
    with viewed(recorded.parent) as url:
        yield url


@pytest.fixture(scope="session")
def hostile_run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """The folder of a run whose texts do what they can to break a page."""
    return hostile.write_run(tmp_path_factory.mktemp("hostile"), AutoTokenizer.from_pretrained(tiny_folder).encode)


@pytest.fixture
def watch(browser: Browser) -> Iterator[Callable[..., Watched]]:
    """Opens a window of which all requests, errors and messages are kept.

    ``watch(width=390, dark=True)``. A test's windows must be ``clean`` when it ends, but for what it has ``expected``.
    """
    opened: list[Watched] = []

    def open_window(*, width: int = 1280, height: int = 900, dark: bool = False) -> Watched:
        window = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        window.set_default_timeout(15_000)
        opened.append(Watched(window.new_page()))
        return opened[-1]

    yield open_window
    try:
        for watched in opened:
            watched.assert_clean()
    finally:
        for watched in opened:
            watched.page.context.close()
