"""Loads exported model directories with transformers and compares their logits with ours.

    python check_export.py DIR

Each folder of DIR is a model with an `expected.json` that holds {"tokens": [ids], "logits": [[numbers]]}. Exit code 1 if
any differs by more than 1e-4.
"""

import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM

worst = 0.0
for folder in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    expected = json.loads((folder / "expected.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(torch.tensor([expected["tokens"]])).logits[0]
    difference = (logits - torch.tensor(expected["logits"])).abs().max().item()
    print(f"{folder.name}: largest difference {difference:.3g}")
    worst = max(worst, difference)
sys.exit(0 if worst < 1e-4 else 1)
