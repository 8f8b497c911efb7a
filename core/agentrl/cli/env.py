"""``agentrl env``: environments for plugins that cannot be installed beside the others."""

from __future__ import annotations

import click

__all__ = ["env"]


@click.group()
def env() -> None:
    """Make, list and remove environments: interpreters with agentrl-core and a plugin of their own."""
