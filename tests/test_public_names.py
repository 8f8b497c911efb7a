"""The names that ``agentrl`` exports."""

import agentrl
import agentrl.config


def test_public_names_are_sorted_and_can_be_imported() -> None:
    for package in (agentrl, agentrl.config):
        assert package.__all__ == sorted(package.__all__)
        assert set(package.__all__) <= set(dir(package))
        for name in package.__all__:
            assert getattr(getattr(package, name), "__name__", name) == name
