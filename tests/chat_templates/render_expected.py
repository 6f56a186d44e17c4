"""Writes expected.json: what transformers renders for every case below. Run it after changing a template or a case."""

import datetime
import json
import pathlib

from transformers.utils.chat_template_utils import _compile_jinja_template

HERE = pathlib.Path(__file__).parent
NOW = datetime.datetime(2024, 7, 4, 13, 5, 9)


def talk(*turns):
    return [dict(zip(("role", "content"), turn)) for turn in turns]


SYS = ("system", " Be brief. ")
Q1, A1, Q2 = ("user", " Hi & <hello>? "), ("assistant", "Good\nday. "), ("user", "Und “weiter”? 🙂")
THOUGHT = ("assistant", "<think>\nhm,\nso\n</think>\n\nForty-two.")
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"x": {"type": "int", "é": []}}}}
LLAMA2 = {"bos_token": "<s>", "eos_token": "</s>"}
LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}

CASES = [
    ("chatml", talk(Q1), True, {}),
    ("chatml", talk(SYS, Q1, A1, Q2), True, {}),
    ("chatml", talk(Q1, A1), False, {}),
    ("llama2", talk(Q1), True, LLAMA2),
    ("llama2", talk(SYS, Q1, A1, Q2), True, LLAMA2),
    ("llama2", talk(Q1, Q2), True, LLAMA2),
    ("llama3", talk(Q1), True, LLAMA3),
    ("llama3", talk(SYS, Q1, A1, Q2), False, LLAMA3 | {"date_string": "26 Jul 2024"}),
    ("llama3", talk(Q1, ("tool", "a \"b\"")), True, LLAMA3 | {"tools": [TOOL]}),
    ("qwen3", talk(Q1), True, {}),
    ("qwen3", talk(SYS, Q1, THOUGHT, Q2), True, {"enable_thinking": False}),
    ("qwen3", talk(SYS, Q1, THOUGHT), False, {"enable_thinking": True}),
    ("qwen3", talk(Q1, THOUGHT, ("tool", "1"), ("tool", "2"), A1), True, {"tools": [TOOL, TOOL]}),
    ("mistral", talk(SYS, Q1, A1, Q2), True, LLAMA2),
    ("mistral", talk(Q1), True, LLAMA2),
    ("mistral", talk(Q1, A1, A1), True, LLAMA2),
    ("mistral", talk(("user", "a"), ("judge", "b")), True, LLAMA2),
    ("features", talk(SYS, ("skip", "x"), ("assistant", "a cat's \"tail\" <b>"), ("stop", "y"), Q2), True, LLAMA2),
    ("features", talk(Q2, A1), False, {}),
]

expected = []
for template, messages, prompt, variables in CASES:
    compiled = _compile_jinja_template((HERE / f"{template}.jinja").read_text(encoding="utf-8"))
    case = {"template": template, "messages": messages, "add_generation_prompt": prompt, "variables": variables}
    given = {"tools": None, "documents": None, "strftime_now": NOW.strftime} | variables
    try:
        case["text"] = compiled.render(messages=messages, add_generation_prompt=prompt, **given)
    except Exception as error:
        case["raises"] = str(error)
    expected.append(case)
(HERE / "expected.json").write_text(json.dumps(expected, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
