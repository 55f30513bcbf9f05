"""A small grid whose stages are all real: training, replay, evaluation; its models are too small to be good at anything."""

from typing import Any

GRID: dict[str, Any] = {
    "name": "mini",
    "storage": {"uri": "storage"},
    "models": {
        "tiny": {
            "base": {
                "scratch": {
                    "hidden_size": 64,
                    "layers": 2,
                    "heads": 2,
                    "kv_heads": 1,
                    "intermediate_size": 128,
                    "max_positions": 256,
                },
                "train": {"data": "mixture"},
            }
        }
    },
    "datasets": {
        "mixture": {"toy": "mixture", "languages": ["en"], "rows": 200},
        "alpaca": {"toy": "alpaca", "languages": ["en"], "rows": 200},
        "multialpaca": {"toy": "multialpaca", "languages": ["de"], "rows": 200, "english": "alpaca"},
    },
    "pairs": [{"phase1": "alpaca", "phase2": "multialpaca"}],
    "strategies": ["none", "GR_10"],
    "template": {"name": "toy"},
    "training": {"learning_rate": 1e-3, "steps": 20, "batch_size": 16, "precision": "fp32", "max_length": 128},
    "replay": {"max_new_tokens": 16},
    "loggers": [{"name": "tensorboard", "folder": "curves"}],
    "evaluation": {"limit": 20, "evaluate_base": False, "benchmarks": ["toy_letters", "toy_languages"]},
}
