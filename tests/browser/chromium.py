"""The system's browser: where it is, and how it is started.

``python -m tests.browser.chromium`` prints its path, or, with exit code 1, that there is none.
"""

from __future__ import annotations

import os
import shutil
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NO_BROWSER = (
    f"no browser: none of {', '.join(NAMES)} is on PATH, and CHROME_BIN names none; on Debian: apt-get install chromium"
)


def find_browser() -> str | None:
    """The path of a Chromium: that of ``CHROME_BIN``, or the first that is on ``PATH``; ``None`` without one."""
    named = os.environ.get("CHROME_BIN")
    return next((path for name in ((named,) if named else NAMES) if (path := shutil.which(name))), None)


def options() -> list[str]:
    """Arguments of the browser's command."""
    rebound = ["--host-resolver-rules=MAP rebound.test 127.0.0.1"]
    small = ["--disable-dev-shm-usage", "--disable-gpu"]  # A container's shared memory holds 64 MB.
    root = ["--no-sandbox"] if os.geteuid() == 0 else []  # As root, Chromium starts only so.
    return [*rebound, *small, *root]


if __name__ == "__main__":
    print(find_browser() or NO_BROWSER)
    sys.exit(find_browser() is None)
