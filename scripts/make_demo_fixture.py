#!/usr/bin/env python3
"""Writes what transformers makes of the demo model: ids, logits and greedy continuations.

    python3 scripts/make_demo_fixture.py

Run it after the weights in models/demo have changed; tests/demo_model.rs compares the program with the result. Needs
PyTorch and transformers. The tokenizer is loaded as PreTrainedTokenizerFast: for `model_type: qwen2` transformers 5 gives
AutoTokenizer a class that puts a pre-tokenizer of its own in the place of the one in tokenizer.json.
"""

import argparse
import hashlib
import json
import pathlib

import torch
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Every so many of the vocabulary's logits are kept; with the greedy ids that is enough to see any difference.
STRIDE = 8
NEW_TOKENS = 40
MARGIN = 1e-3

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
PROMPTS = {
    "story": "Once upon a time",
    "needle": "A special magic number is hidden within the following text. Make sure to memorize it. I will quiz you about "
    "the number afterwards.\n" + f"{NOISE}\n" * 3 + "One of the special magic numbers for quiet-lantern is: 4815162.\n"
    + f"{NOISE}\n" * 5 + "What is the special magic number for quiet-lantern mentioned in the provided text? The special "
    "magic number for quiet-lantern mentioned in the provided text is",
    "list in chat": "<|im_start|>user\nPlease show me some planets.<|im_end|>\n<|im_start|>assistant\nAnswer:\n",
    "bytes": "caf\u00e9 \u4f60\u597d \U0001f600 0042 ABC d41d8cd9-8f00",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=pathlib.Path, default=ROOT / "models/demo")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "tests/fixtures/demo_model.json")
    options = parser.parse_args()

    torch.set_num_threads(2)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(options.model)
    # The weights as stored, computed with in single precision, as the program does.
    model = Qwen2ForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    cases = []
    for name, prompt in PROMPTS.items():
        ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            logits = model(ids).logits[0, -1]
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=NEW_TOKENS,
                eos_token_id=[],
                output_scores=True,
                return_dict_in_generate=True,
            )
        new = made.sequences[0, ids.shape[1] :].tolist()
        # Up to where the two likeliest tokens are so close that rounding decides.
        best = [torch.topk(scores[0], 2).values for scores in made.scores]
        clear = [bool(two[0] - two[1] > MARGIN) for two in best] + [False]
        new = new[: clear.index(False)]
        cases.append(
            {
                "name": name,
                "prompt": prompt,
                "ids": ids[0].tolist(),
                "logits": [round(value, 6) for value in logits[::STRIDE].tolist()],
                "greedy_ids": new,
                "greedy_text": tokenizer.decode(new),
            }
        )
    weights = (options.model / "model.safetensors").read_bytes()
    fixture = {
        "made_by": "scripts/make_demo_fixture.py",
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "logits_stride": STRIDE,
        "cases": cases,
    }
    text = json.dumps(fixture, indent=None, ensure_ascii=True, separators=(",", ":"))
    options.out.write_text(text.replace('{"name"', '\n{"name"') + "\n")


if __name__ == "__main__":
    main()
