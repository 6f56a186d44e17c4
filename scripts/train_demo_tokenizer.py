#!/usr/bin/env python3
"""Trains the demo model's tokenizer: byte-level BPE in which digits, capitals and the letters of uuids stand alone.

What a model copies from its context is then cut alike wherever it stands: a number is its digits, a uuid its 36
characters, a variable's name its capitals. Words keep the space before them; nothing else takes one but signs.

    tokselect bench demo-corpus --export text --documents 30000
    python3 scripts/train_demo_tokenizer.py --documents text/documents.jsonl --out models/demo
"""

import argparse
import json
import pathlib

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
# Inside a uuid (cut out before, so that it ends its piece) every letter alone; then digits, words, capitals, signs,
# white space.
PIECES = r"[0-9a-f](?=[0-9a-f-]*\z)|[0-9]| ?[A-Z]?[a-z]+|[A-Z]| ?[^\sA-Za-z0-9]|\s"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=pathlib.Path, required=True, help="JSONL of `bench demo-corpus`")
    parser.add_argument("--words", type=pathlib.Path, nargs="*", default=[], help="word lists, one word per line")
    parser.add_argument("--vocabulary", type=int, default=2304, help="ids, special tokens included")
    parser.add_argument("--context", type=int, default=1024, help="the model's window")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the model")
    args = parser.parse_args()

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(UUID), "isolated"),
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=args.vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )

    def texts():
        with args.documents.open() as lines:
            for line in lines:
                text = json.loads(line)["text"]
                # A corpus says the same fixed wording over and over; each document's lines count once.
                yield "\n".join(dict.fromkeys(text.split("\n")))
        for path in args.words:
            yield from (f"the {word} and-{word}" for word in path.read_text().split())

    tokenizer.train_from_iterator(texts(), trainer)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": args.context,
        "chat_template": CHAT_TEMPLATE,
    }
    (args.out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    sample = "What is the code of small-boat? One of 3f2a9bde-12ab-4cde-8fab-0123456789ab, 1234567, VAR ABCDE."
    print(tokenizer.get_vocab_size(), "ids;", tokenizer.encode(sample).tokens)


if __name__ == "__main__":
    main()
