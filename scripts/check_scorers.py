#!/usr/bin/env python3
"""Compares the scorers of src/eval with the packages and the official scripts on random and adversarial texts.

    check_scorers.py --longbench metrics.py --infinitebench compute_scores.py --token-select infinitebench_eval.py
    check_scorers.py ... --fixture tests/fixtures/scorers.json --cases 400

Needs `pip install rouge==1.0.1 rouge_score==0.1.2 fuzzywuzzy==0.18.0`, without python-Levenshtein, and the three scripts
from their repositories (LongBench, InfiniteBench, TokenSelect); they are loaded, not copied. A script that stops with an
exception counts as a score of 0, as in src/eval. `evaluate.load("rouge")` is stood in for by what it wraps: rouge_score
without stemmer, the best F over references. jieba (Chinese only) is not needed.

Prints the number of cases and the largest difference that tests/scorers.rs finds; fails if it is above 1e-6.
"""

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
import types
import unicodedata
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TASKS = [
    "passkey", "number_string", "kv_retrieval", "longbook_sum_eng", "longbook_qa_eng", "longbook_choice_eng",
    "longbook_qa_chn", "longdialogue_qa_eng", "math_find", "math_calc", "code_run", "code_debug",
]  # fmt: skip
WORDS = (
    "the a an cat dog sat ran red blue Paris London 1984 7 42 3.14 -5 yes no unanswerable running runs Paragraph "
    "paragraph answer is: answer: option is A B C D E J AB BC A. B: (C) I'm it's don't x_y return def self.x = + // # "
    "func_3 option Option correct `code` ** - JOHN John johnson MARY \"quoted\" {key} K İ ǅ ß ﬁ naïve café co-op"
).split()
ODD = list("\u0301\u093e\u24b6\u200b\u00a0\u001c\u001f\u0085\u2028٣٤²½Ⅷ中文。，「」？的是ΣςσÅ🙂") + ["\t", "\n", "\r\n", "..", " . ", "  "]


class Rouge:
    """What evaluate's rouge metric does with one prediction."""

    def __init__(self):
        from rouge_score import rouge_scorer

        self.scorer = rouge_scorer.RougeScorer(["rougeLsum"], use_stemmer=False)

    def compute(self, predictions, references, use_aggregator):
        assert not use_aggregator
        several = isinstance(references[0], list)
        score = self.scorer.score_multi if several else self.scorer.score
        return {"rougeLsum": [score(r, p)["rougeLsum"].fmeasure for p, r in zip(predictions, references)]}


def load(path):
    """The script as a module, with stand-ins for imports that scoring does not use."""
    stand_ins = {"evaluate": {"load": lambda name: Rouge()}, "jieba": {}, "tqdm": {"tqdm": iter}, "args": {"parse_args": None}}
    for name, members in stand_ins.items():
        module = types.ModuleType(name)
        module.__dict__.update(members)
        sys.modules[name] = module
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text(rng, longest=40):
    kind = rng.random()
    count = rng.randint(0, longest)
    if kind < 0.06:
        return rng.choice(["", " ", ".", "...", "\n", "\n\n", ". .", "a", "the", "!?", "\u0301", "A", "B.", "- C"])
    if kind < 0.16:
        points = (rng.randint(1, 0x2FFF) for _ in range(count))
        return "".join(chr(p) for p in points if unicodedata.category(chr(p)) not in ("Cn", "Cs"))
    pieces = []
    for _ in range(count):
        pieces.append(rng.choice(ODD) if rng.random() < 0.12 else rng.choice(WORDS))
        pieces.append(rng.choice([" ", " ", " ", " ", ". ", ", ", "\n", "", "."]))
    return "".join(pieces)


def near(rng, original, edits=6):
    """A text with a few characters and words changed."""
    letters = list(original)
    for _ in range(rng.randint(0, edits)):
        at = rng.randint(0, len(letters))
        kind = rng.random()
        if kind < 0.4 and letters:
            del letters[at : at + rng.randint(1, 4)]
        elif kind < 0.7:
            letters[at:at] = list(rng.choice(WORDS) + " ")
        else:
            letters[at:at] = [rng.choice(ODD)]
    words = "".join(letters)
    if rng.random() < 0.2:
        words = " ".join(rng.sample(words.split(" "), len(words.split(" "))))
    return words


def code(rng):
    """Few different characters, often beyond 200 of them: what difflib's autojunk is about."""
    alphabet = rng.choice(["ab", "abc ", "xyz=()", "return self.value[index] + 1", "é中a"])
    return "".join(rng.choice(alphabet) for _ in range(rng.choice([3, 20, 150, 199, 200, 201, 300, 450])))


def pair(rng):
    label = text(rng)
    return (near(rng, label) if rng.random() < 0.6 else text(rng)), label


def sure(function, *args, **kwargs):
    try:
        return float(function(*args, **kwargs))
    except Exception:
        return 0.0


def number_answer(rng, label):
    return rng.choice([f"{label}", f"The answer is: {label}.", text(rng, 8) + label, f"{label}5 or {label}", f"0{label}",
                       f"-{label}", f"{label}.0", f"+{label}", text(rng, 8)])  # fmt: skip


def infinite_case(rng, task):
    """Prediction, labels as texts, options, and the label as the script gets it."""
    options = []
    if task in ("longbook_choice_eng", "code_debug"):
        options = rng.sample(["f", "run_all", "B", "The cat.", "self.x", "main", "is it", "D"], 4)
        at = rng.randrange(4)
        labels = [options[at]]
        given = [options[at], "ABCD"[at]]
        letter = rng.choice("ABCDEIJ")
        prediction = rng.choice([
            letter, f"{letter}.", f"{letter}: {options[0]}", f"The answer is: {letter}", f"answer is:{letter}",
            f"So the answer is {letter}. {rng.choice('ABCD')} is not", f"Option {letter}", options[rng.randrange(4)],
            f"the error is: `{options[at]}`", f"**{letter}**", f"It is:", f"{letter}_1 {letter}", f" {letter}\n\nA", text(rng, 8),
            f"I think\n{letter} rather than {rng.choice('ABCD')}\nnot {rng.choice('ABCD')}",
        ])  # fmt: skip
        return prediction, labels, options, given
    if task in ("passkey", "number_string", "kv_retrieval"):
        label = rng.choice(["71432", "1112223334", "0042", "4dc1-22"])
        return number_answer(rng, label), [label], options, label if task == "kv_retrieval" else [label]
    if task == "code_run":
        label = rng.choice([7, -7, 0, 12345])
        shapes = [f"{label}", f"The value is {label}.", f"`{label}`", "٧", f"{label}_0", f"1_0{label}", "--7", text(rng, 6)]
        return rng.choice(shapes), [str(label)], options, [label]
    if task == "math_find":
        label = rng.choice([7, 42, 7.0, 3.5, 0.1])
        return number_answer(rng, str(label)), [str(label)], options, [label]
    if task == "math_calc":
        label = [rng.randint(-3, 20) for _ in range(rng.randint(1, 8))]
        made = [v if rng.random() < 0.9 else v + 1 for v in label][: rng.randint(0, 9)]
        return rng.choice([str(made), " ".join(map(str, made)), text(rng, 6)]), [str(v) for v in label], options, label
    if task == "longdialogue_qa_eng":
        labels = rng.sample(["JOHN", "MARY", "STRASSE", "JOHN SMITH"], rng.randint(1, 2))
        shapes = [f"{labels[0]}", "johnson", "it is john.", "Straße", f"{labels[-1]}'s", text(rng, 8)]
        return rng.choice(shapes), labels, options, labels
    labels = [text(rng) for _ in range(rng.randint(1, 3))]
    prediction = near(rng, rng.choice(labels)) if rng.random() < 0.6 else text(rng)
    return prediction, labels, options, labels


def cases(rng, count, longbench, infinitebench, token_select):
    from fuzzywuzzy import fuzz
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeLsum"], use_stemmer=False)
    kinds = ["qa_f1", "rouge_l", "rouge_l_sum", "fuzz_ratio", "code_similarity", "classification", "retrieval", "count"]
    kinds += ["qa_f1", "rouge_l", "rouge_l_sum", "fuzz_ratio"] + [f"infinite_bench:{task}" for task in TASKS]
    for number in range(count):
        kind = kinds[number % len(kinds)]
        prediction, label = pair(rng)
        labels, options = [label], []
        if kind in ("fuzz_ratio", "code_similarity") and rng.random() < 0.7:
            label = code(rng)
            prediction, labels = near(rng, label, 20), [label]
        if kind == "qa_f1":
            expected = [sure(longbench.qa_f1_score, prediction, label)]
        elif kind == "rouge_l":
            expected = [sure(longbench.rouge_score, prediction, label)]
        elif kind == "rouge_l_sum":
            expected = [scorer.score(label, prediction)["rougeLsum"].fmeasure]
        elif kind == "fuzz_ratio":
            expected = [fuzz.ratio(prediction, label) / 100]
        elif kind == "code_similarity":
            expected = [sure(longbench.code_sim_score, prediction, label)]
        elif kind == "classification":
            options = rng.sample(["City", "State", "Other location", "Other", "cat", "a", "the cat", "Date", "e"], rng.randint(1, 7))
            label = rng.choice(options)
            prediction = rng.choice([label, text(rng, 10), " ".join(rng.sample(options, rng.randint(1, len(options))))])
            labels = [label]
            expected = [sure(longbench.classification_score, prediction, label, all_classes=options)]
        elif kind in ("retrieval", "count"):
            label = rng.choice(["3", "12", "30"])
            prediction = number_answer(rng, label)
            if kind == "retrieval":
                label = rng.choice([f"Paragraph {label}", f"Paragraph x Paragraph {label}", label])
            labels = [label]
            score = longbench.retrieval_score if kind == "retrieval" else longbench.count_score
            expected = [sure(score, prediction, label)]
        else:
            task = kind.split(":")[1]
            prediction, labels, options, given = infinite_case(rng, task)
            expected = [
                sure(infinitebench.get_score_one, prediction, given, task, "any"),
                sure(token_select.get_score_one, prediction, given, task),
            ]
        yield {"metric": kind, "prediction": prediction, "labels": labels, "options": options, "expected": expected}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longbench", required=True, help="metrics.py of LongBench")
    parser.add_argument("--infinitebench", required=True, help="src/compute_scores.py of InfiniteBench")
    parser.add_argument("--token-select", required=True, help="benchmark/infinitebench_eval.py of TokenSelect")
    parser.add_argument("--cases", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=20402)
    parser.add_argument("--fixture", type=Path, help="write the cases here instead of comparing")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", message="Using slow pure-python SequenceMatcher")
    try:
        import Levenshtein  # noqa: F401
    except ImportError:
        pass
    else:
        sys.exit("python-Levenshtein is installed: fuzzywuzzy would not use difflib")
    scripts = [load(args.longbench), load(args.infinitebench), load(args.token_select)]
    made = list(cases(random.Random(args.seed), args.cases, *scripts))
    if args.fixture:
        body = ",\n".join(json.dumps(case) for case in made)
        args.fixture.write_text('{"made_with": "scripts/check_scorers.py", "seed": %d, "cases": [\n%s\n]}\n' % (args.seed, body))
        print(f"{len(made)} cases written")
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cases.json"
        path.write_text(json.dumps({"cases": made}))
        command = ["cargo", "test", "--release", "--quiet", "--test", "scorers", "--", "--nocapture"]
        environment = {**os.environ, "TOKSELECT_SCORER_CASES": str(path)}
        done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    print(done.stdout, done.stderr, sep="")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
