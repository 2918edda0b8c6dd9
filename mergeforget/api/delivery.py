"""Steps before and after an unlearning job: merged bases, earlier requests, GGUF, upload."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergeforget.api.results import UnlearningRun

if TYPE_CHECKING:
    from mergeforget.recipe import Recipe
    from mergeforget.run import Run

REQUEST = "request.json"  # file of the run folder with the request


def folded_base(run: Run, request: dict[str, Any]) -> str:
    """Return the model to unlearn from, after merging an adapter or an earlier result into it."""
    from mergeforget.api.merging import merge_full
    from mergeforget.errors import InputError, UsageError
    from mergeforget.run import open_run

    adapter, after = request["adapter"], request["after"]
    if adapter is None and after is None:
        return str(request["model"])
    if adapter is not None and after is not None:
        raise UsageError("Give --adapter or --after, not both.")
    base, source = request["model"], adapter
    if after is not None:
        earlier = open_run(Path(after))
        chosen = UnlearningRun(earlier).chosen
        if chosen is None:
            raise InputError(f"{after} has no chosen merge. Finish that run first.")
        base, source = earlier.base(), str(earlier.candidates / chosen)
    folder = run.root / "base"
    if not (folder / "config.json").is_file():
        merge_full([source], folder, method="linear", weights=[1.0], space="delta", base=base)
    return str(folder)


def recheck(run: Run, recipe: Recipe, chosen: str) -> dict[str, float]:
    """Return the share of earlier forget answers that the result repeats, by run folder."""
    from mergeforget.adapter import read_adapter
    from mergeforget.data.readers import read_rows
    from mergeforget.data.templating import template_of
    from mergeforget.data.tokens import encode_rows
    from mergeforget.errors import InputError
    from mergeforget.files import read_json_object
    from mergeforget.merge.apply import applied
    from mergeforget.models import load_model
    from mergeforget.run import Run as Folder
    from mergeforget.train.checks import read_nlls

    earlier: list[Folder] = []
    before = read_json_object(run.root / REQUEST).get("after")
    while before is not None:
        if not isinstance(before, str) or len(earlier) > 1000:
            raise InputError(f"{run.root / REQUEST}: `after` does not lead to an earlier run.")
        earlier.append(Folder(Path(before)))
        path = earlier[-1].root / REQUEST
        before = read_json_object(path).get("after") if path.exists() else None
    if not earlier:
        return {}
    loaded = load_model(recipe.model.model_copy(update={"name": run.base()}))
    template = template_of(loaded.tokenizer, recipe.data)
    found = {}
    with applied(loaded.model, read_adapter(run.candidates / chosen, chosen)):
        for one in earlier:
            rows = read_rows(one.data / "forget.jsonl", split="forget")
            encoded = encode_rows(loaded.tokenizer, rows, max_length=512, template=template)
            found[str(one.root)] = float(read_nlls(loaded.model, encoded)[1].float().mean())
    return found


def find_converter() -> Path:
    """Return the path of llama.cpp's ``convert_hf_to_gguf.py``, in LLAMA_CPP or on PATH.

    Raises:
        ResourceError: It is not installed.
    """
    import os
    import shutil

    from mergeforget.errors import ResourceError

    name = "convert_hf_to_gguf.py"
    own = Path(os.environ.get("LLAMA_CPP", "")) / name
    if os.environ.get("LLAMA_CPP") and own.is_file():
        return own
    if on_path := shutil.which(name):
        return Path(on_path)
    raise ResourceError(
        "--gguf needs llama.cpp's converter convert_hf_to_gguf.py, which was not found. Clone "
        "llama.cpp and name its folder in LLAMA_CPP, or leave --gguf out."
    )


def to_gguf(model: Path, out: Path) -> Path:
    """Convert an exported model to a GGUF file.

    Raises:
        ResourceError: The converter is not installed, or fails.
    """
    import subprocess
    import sys

    from mergeforget.errors import ResourceError

    call = [sys.executable, str(find_converter()), str(model), "--outfile", str(out)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode or not out.is_file():
        last = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise ResourceError(f"llama.cpp's converter failed on {model}: {last}")
    return out


def push_folder(folder: Path, repository: str) -> str:
    """Upload an exported folder to a model repository of the hub; return its address.

    Raises:
        ResourceError: The hub refuses or cannot be reached.
    """
    from mergeforget.errors import ResourceError, reason_of

    try:
        from huggingface_hub import HfApi

        hub = HfApi()
        hub.create_repo(repository, exist_ok=True)
        return str(hub.upload_folder(repo_id=repository, folder_path=str(folder)))
    except Exception as error:
        raise ResourceError(
            f"{folder} was not uploaded to {repository}: {reason_of(error)} Log in with "
            "`hf auth login` and repeat the same command; everything else is done."
        ) from error
