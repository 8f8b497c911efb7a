"""What a model folder may hold for the learner to load it."""

from __future__ import annotations

import json

import pytest
from tests.learner.models import of_kind

from agentrl.errors import ConfigError
from agentrl.learner.folder import check_unquantised, load_model


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, r"quantised to 4 bits \(bitsandbytes\)"),
        ({"quant_method": "gptq", "bits": 4}, r"quantised to 4 bits \(gptq\)"),
        ({"quant_method": "fp8"}, r"quantised \(fp8\)"),
    ],
)
def test_quantised_weights_are_refused_with_what_saves_memory_instead(tmp_path, written, said):
    of_kind("qwen3").save_pretrained(tmp_path)
    check_unquantised(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": written}))
    with pytest.raises(ConfigError, match=said) as raised:
        load_model(tmp_path)
    assert raised.value.key == "model.name"
    assert "training.lora" in raised.value.fix
