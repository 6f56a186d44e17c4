#!/usr/bin/env python3
"""Times greedy completions that read the whole text again for every token, in transformers, and compares them.

The loop is that of ICN's released code: encode prompt and continuation, run the model on all of it, take the likeliest
token, repeat; no keys and values are kept. Prompt, first tokens and expected texts come from

    target/release/tokselect icn-probe speed --format json > speed.json
    python3 scripts/bench_icn_reencoding.py speed.json --model models/demo --completions 20

With --cache the same completions are made with stored keys and values (one by one), for a second yardstick.
"""

import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM


def greedy(model, prompt, first, tokens, cache):
    ids = list(first)
    with torch.no_grad():
        if not cache:
            while len(ids) < tokens:
                logits = model(torch.tensor([prompt + ids]), use_cache=False).logits[0, -1]
                ids.append(int(logits.argmax()))
            return ids
        out = model(torch.tensor([prompt + ids]), use_cache=True)
        while len(ids) < tokens:
            ids.append(int(out.logits[0, -1].argmax()))
            out = model(torch.tensor([ids[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        return ids


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report")
    parser.add_argument("--model", default="models/demo")
    parser.add_argument("--completions", type=int, default=20, help="how many of the report's are made")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cache", action="store_true")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    details = json.load(open(args.report))["details"]
    expected = details["ids"][: args.completions]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    greedy(model, details["prompt_ids"], expected[0][:1], 3, args.cache)
    started = time.perf_counter()
    found = [greedy(model, details["prompt_ids"], ids[:1], len(ids), args.cache) for ids in expected]
    seconds = time.perf_counter() - started
    same = sum(a == b for a, b in zip(found, expected))
    way = "one by one with stored keys" if args.cache else "re-encoded for every token"
    print(f"transformers, {way}: {seconds / len(expected):.4f} s a completion of {len(expected[0])} tokens, "
          f"{torch.get_num_threads()} threads; {same} of {len(expected)} equal tokselect's batch")


if __name__ == "__main__":
    main()
