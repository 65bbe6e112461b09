"""Loads an exported model directory with transformers and compares its logits with ours.

    python check_export.py --model DIR --expected expected.json

`expected.json` holds {"tokens": [ids], "logits": [[numbers]]}. Exit code 1 if any differs by more than 1e-4.
"""

import argparse
import json
import sys

import torch
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--expected", required=True)
arguments = parser.parse_args()
expected = json.load(open(arguments.expected))
model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32).eval()
with torch.inference_mode():
    logits = model(torch.tensor([expected["tokens"]])).logits[0]
difference = (logits - torch.tensor(expected["logits"])).abs().max().item()
print(f"largest difference {difference:.3g}")
sys.exit(0 if difference < 1e-4 else 1)
