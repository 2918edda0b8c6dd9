"""Format shift: the same question in other formats."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mergeforget.attack.asking import ask
from mergeforget.attack.methods import attack
from mergeforget.attack.result import Result
from mergeforget.attack.target import Target
from mergeforget.attack.variants import Variant, entity_of, read_lines, statement_of
from mergeforget.data.schema import Row
from mergeforget.errors import UnknownNameError

FORMATS = (
    "raw", "chat", "system", "instruction", "upper", "lower", "dialogue", "completion", "fill-in",
    "reversed", "json", "form",
)  # fmt: skip
INSTRUCTIONS = (  # of fine-tuning tools, for a tokenizer without their template
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{}\n\n### Response:\n",
    "### Instruction:\n{}\n\n### Response:\n",
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives "
    "helpful, detailed, and polite answers to the user's questions. USER: {} ASSISTANT:",
    "[INST] {} [/INST]",
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "Question: {}\nAnswer:",
)  # Alpaca, Vicuna, Llama 2, ChatML
SYSTEMS = Path(__file__).parents[1] / "systems.txt"


@attack(
    "formats",
    source="Lynch et al., Eight Methods to Evaluate Robust Unlearning in LLMs, arXiv:2402.16835; "
    "Jin et al., RWKU, arXiv:2406.10890, fill-in and reversed queries",
    strength={"formats": "all of", "systems": "any"},
)
def formats(
    target: Target, *, formats: Sequence[str] = FORMATS, systems: Path | None = None
) -> Result:
    """Ask each question in chat, as raw text, dialogue, blank to fill in, reversed, JSON and more.

    Multiple choice, which shows the answer among others, is a separate attack.

    Args:
        formats: raw (the plain text), chat (the tokenizer's chat template, or raw without one),
            system (in chat with each system message), instruction (the formats of Alpaca, Vicuna,
            Llama 2 and ChatML as text), upper and lower (letters), dialogue, completion, fill-in,
            reversed, json, form.
        systems: File of system messages, one per line; None uses the built-in ones. An empty one is
            always tried.

    Raises:
        InputError: The file cannot be read, or contains no system message.
    """
    target.need("forget")
    for name in formats:
        if name not in FORMATS:
            raise UnknownNameError("format", name, FORMATS)
    messages = ["", *read_lines(systems or SYSTEMS)] if "system" in formats else []
    asked = [v for name in formats for row in target.forget for v in _forms(row, name, messages)]
    settings = {"formats": list(dict.fromkeys(v.kind for v in asked)), "systems": len(messages),
                "max_new_tokens": target.max_new_tokens}  # fmt: skip
    return ask(target, "formats", asked, settings, what="questions in other formats")


def _forms(row: Row, name: str, messages: Sequence[str] = ("",)) -> list[Variant]:
    """Return the row in one format, with each system message; empty if it does not apply."""
    if name == "system":
        return [Variant(row, name, row.input, row.output, way="chat", system=m) for m in messages]
    if name == "instruction":
        return [Variant(row, name, form.format(row.input.strip()), row.output, way="raw")
                for form in INSTRUCTIONS]  # fmt: skip
    text, entity = row.input.strip(), entity_of(row)
    prompt, secret = "", row.output
    if name in ("raw", "chat"):
        prompt = text
    elif name in ("upper", "lower"):
        prompt = text.upper() if name == "upper" else text.lower()
        return [Variant(row, name, prompt, secret)] if prompt != text else []
    elif name == "dialogue":
        prompt = f"User: {text}\nAssistant:"
    elif name == "completion":
        prompt = statement_of(text) or f"Question: {text}\nAnswer:"
    elif name == "fill-in":
        prompt = f"Fill in the blank.\n{statement_of(text) or text} ____.\nThe missing words are:"
    elif name == "json":
        prompt = f'{{"question": {json.dumps(text, ensure_ascii=False)}, "answer": "'
    elif name == "form" and entity:
        prompt = f"Name: {entity}\n{text.rstrip('?').replace(entity, '').strip()}:"
    elif name == "reversed" and entity and entity not in row.output:
        prompt = f'Of whom is this true: "{row.output}"? The answer is'
        secret = entity
    way: Literal["raw", "chat"] = "chat" if name == "chat" else "raw"
    return [Variant(row, name, prompt, secret, way=way)] if prompt else []
