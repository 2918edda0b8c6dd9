"""`mergeforget doctor`."""

from __future__ import annotations

import click

from mergeforget.commands._options import emit, json_option

EXTRAS = {"search": "optuna", "eval": "lm_eval", "gpu": "bitsandbytes", "serve": "vllm"}


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Print versions, devices, memory, disk, the embedded model and installed extras."""
    facts = examine()
    width = max(map(len, facts))
    text = "\n".join(f"{name:<{width}}  {value}" for name, value in facts.items())
    emit(facts, text, as_json)


def examine() -> dict[str, str]:
    """What decides whether and how fast things will run, in words."""
    import os
    import shutil
    from importlib.util import find_spec

    import psutil
    import torch

    from mergeforget.embedded_model import cache_folder
    from mergeforget.run import versions

    facts = dict(versions())
    facts["cores"] = str(os.cpu_count())
    facts["threads"] = str(torch.get_num_threads())
    facts["memory"] = f"{psutil.virtual_memory().available / 1e9:.1f} GB free"
    facts["device"] = "cpu (float32)"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        facts["device"] = f"{name}, {free / 1e9:.0f} of {total / 1e9:.0f} GB free"
    cache = cache_folder()
    place = next(p for p in (cache, *cache.parents) if p.exists())
    facts["cache"] = f"{cache}, {shutil.disk_usage(place).free / 1e9:.0f} GB free"
    facts["embedded model"] = _embedded()
    for extra, package in EXTRAS.items():
        have = find_spec(package) is not None
        facts[f"extra {extra}"] = "ready" if have else f"pip install 'mergeforget[{extra}]'"
    return facts


def _embedded() -> str:
    """Whether the embedded model is ready, every file's hash checked."""
    from mergeforget import embedded_model

    folder = embedded_model.cache_folder() / embedded_model.NAME
    if embedded_model.is_intact(folder):
        return f"ready: {folder}"
    if embedded_model.gguf_file() is None:
        return embedded_model.INSTALL
    return "damaged; the next use makes it again" if folder.exists() else "made at its first use"
