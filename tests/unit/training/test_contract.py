"""What a training asks of a model's files before it loads them."""

import json
from typing import Any

import pytest

from cft_ray.errors import UserError
from cft_ray.grid.settings import TrainingSettings
from cft_ray.training.contract import Contract


def test_a_model_of_the_hub_that_is_quantised_is_refused_before_it_is_loaded(tmp_path):
    """No plan has read its files."""
    config = {"vocab_size": 4, "max_position_embeddings": 64, "quantization_config": {"quant_method": "awq"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    unread: Any = None  # neither rows nor probe are looked at
    with pytest.raises(UserError, match="quantised \\(awq") as caught:
        Contract(str(tmp_path), TrainingSettings(max_length=32), unread).check_limits(unread)
    assert caught.value.where == str(tmp_path)
