"""The command line: a thin shell over what a script can do, one module a verb, each imported when it is used.

Results go to stdout and narration to stderr. Exit codes: 0 done, 1 the run failed, 2 usage, 3 plugin or
environment, 75 stopped by SIGTERM and resumable, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]

VARIABLE = "_AGENTRL_COMPLETE"
"""Where a shell says what it wants completed, as click reads it."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run ``agentrl`` with ``arguments``, by default those of the process, which then ends, and exit."""
    from agentrl.cli.boundary import open_streams

    open_streams()
    from agentrl.cli.boundary import leave, report_errors
    from agentrl.cli.root import App, root

    if VARIABLE in os.environ:
        from agentrl.cli.completion import add_shells

        add_shells()
    app = App()

    def run() -> object:
        return root.main(arguments, prog_name="agentrl", standalone_mode=False, obj=app)

    code = report_errors(run, debug=lambda: app.debug)
    if arguments is None:
        leave(code)
    sys.exit(code)
