"""What the part's rules are."""

from agentrl_plugin_name.algorithm import PluginNameAlgorithm


def advantages(
    *returns: dict[str, float], scale: float = 1.0
) -> list[dict[str, float]]:
    settings = PluginNameAlgorithm.Settings(scale=scale)
    return [dict(each) for each in PluginNameAlgorithm(settings)(returns)]


def test_each_is_compared_with_the_others() -> None:
    assert advantages({"a": 1.0}, {"b": 0.0}, {"c": 0.5}) == [
        {"a": 0.75},
        {"b": -0.75},
        {"c": 0.0},
    ]


def test_equal_returns_and_a_group_of_one_teach_nothing() -> None:
    assert advantages({"a": 1.0}, {"b": 1.0}) == [{"a": 0.0}, {"b": 0.0}]
    assert advantages({"a": 1.0}) == [{"a": 0.0}]


def test_its_key_scales_it() -> None:
    assert advantages({"a": 1.0}, {"b": 0.0}, scale=3.0) == [{"a": 3.0}, {"b": -3.0}]
