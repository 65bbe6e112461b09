"""Renders chat templates as transformers does, for the worker's test.

    python render_templates.py [DIR]

Prints one JSON object a line: {"name", "template", "settings", "messages", "enable_thinking", "expected"}; "expected" is
null where the template refuses the conversation. The templates of published models come from the package trl (or from
DIR), which ships them as files; conversations have no tools.
"""

import importlib.util
import json
import pathlib
import sys

from transformers.utils.chat_template_utils import render_jinja_template

SETTINGS = {"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|pad|>", "unk_token": "<|unk|>"}
PLAIN = {
    "plain/chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
                    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "plain/inst": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
                  "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
    "plain/methods": "{% for m in messages %}{{ m.role.upper() }}: {{ m.content.strip().split('\n')[0].rstrip('.?') }}"
                     "{% if not loop.last %}\n{% endif %}{% endfor %}{{ messages | map(attribute='role') | join(',') }}"
                     "{{ '\n' if add_generation_prompt else '' }}{{ messages[-1].content.lstrip().title().replace('A', '4') }}",
    "plain/json": "{{ messages | tojson }}\n{{ messages[0] | tojson(indent=2) }}{% if tools %}tools{% endif %}",
    "plain/raises": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}ok",
    "plain/generation": "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
                        "{%- endgeneration %}{% else %}{{ m.content }}{% endif %}|{% endfor %}",
}
CONVERSATIONS = [
    [("user", "What is 1+1?")],
    [("system", "Reason step by step.\nPut the answer in \\boxed{}."), ("user", "  Solve $x^2 = 4$.\n\n")],
    [("system", ""), ("user", "<tag> & \"quotes\" 'single' é 日本 🙂 {{ braces }}")],
    [("user", "first"), ("assistant", "<think>\nhm\n</think>\n\nanswer"), ("user", "second")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
]


def published(folder):
    for path in sorted(folder.glob("*.jinja")):
        yield "published/" + path.stem, path.read_text()


def main():
    templates = dict(PLAIN)
    if len(sys.argv) > 1:
        templates.update(published(pathlib.Path(sys.argv[1])))
    elif spec := importlib.util.find_spec("trl"):
        templates.update(published(pathlib.Path(spec.origin).parent / "chat_templates"))
    for name, template in templates.items():
        for turns in CONVERSATIONS:
            messages = [{"role": role, "content": content} for role, content in turns]
            for thinking in (None, True, False) if "enable_thinking" in template else (None,):
                extra = {} if thinking is None else {"enable_thinking": thinking}
                try:
                    rendered, _ = render_jinja_template(
                        [messages], chat_template=template, add_generation_prompt=True, **SETTINGS, **extra)
                    expected = rendered[0]
                except Exception:
                    expected = None
                print(json.dumps({
                    "name": name, "template": template, "settings": SETTINGS, "messages": messages,
                    "enable_thinking": thinking, "expected": expected,
                }))


if __name__ == "__main__":
    main()
