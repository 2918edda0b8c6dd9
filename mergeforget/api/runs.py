"""Open a run, and analyze, report, compare, export, upload, score and verify its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

from mergeforget.api.results import AnyRun, Scores, UnlearningRun, as_run, optional_path
from mergeforget.errors import UsageError

if TYPE_CHECKING:
    from mergeforget.analysis.export import Exported
    from mergeforget.analysis.findings import Finding
    from mergeforget.analysis.people import PersonRecord
    from mergeforget.analysis.verification import EvidenceCheck


def load_run(run: AnyRun | None = None) -> UnlearningRun:
    """Open a run folder.

    Args:
        run: The folder; None is the newest under ``runs/``.

    Raises:
        InputError: There is no such run; the message names those that exist.
    """
    return UnlearningRun(as_run(run))


@overload
def report(
    run: AnyRun | None = None, *, out: str | Path | None = None, person: None = None
) -> Path: ...
@overload
def report(run: AnyRun | None = None, *, out: None = None, person: str) -> PersonRecord: ...
def report(
    run: AnyRun | None = None, *, out: str | Path | None = None, person: str | None = None
) -> Path | PersonRecord:
    """Write the report of a run: one HTML file that needs no network.

    Args:
        run: The run folder; None is the newest under ``runs/``.
        out: HTML file to write; ``RUN/report/index.html`` when omitted.
        person: Return the record of this person of the forget set instead, and write nothing.

    Returns:
        The file; with ``person`` the record: leaks, membership rank and worst attack.

    Raises:
        InputError: The forget set has no such person; the message names the nearest.
        UsageError: Both ``out`` and ``person`` are given.
    """
    from mergeforget.errors import UsageError

    if person is None:
        from mergeforget.analysis.report import write_report

        return write_report(as_run(run), optional_path(out))
    from mergeforget.analysis.people import person_record, run_people

    if out is not None:
        raise UsageError("--out does not apply to --person, which writes no file.")
    return person_record(run_people(as_run(run)), person)


def export(
    run: AnyRun | None = None,
    *,
    candidate: str = "",
    full: bool = False,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    out: str | Path | None = None,
    template: Literal["auto", "none", "chat"] | None = None,
    system_prompt: str | None = None,
    gguf: bool = False,
    push: str | None = None,
) -> Exported:
    """Write the chosen adapter, or the whole model, with tokenizer and model card.

    The written weights are loaded again, and their logits are compared with the candidate's.

    Args:
        run: The run folder; None is the newest under ``runs/``.
        candidate: Name under ``RUN/candidates``; the chosen one when empty.
        full: Write the whole model instead of the adapter.
        dtype: Dtype of a whole model; ``auto`` keeps the base's.
        out: Folder to write; ``RUN/export/NAME-adapter`` or ``-model`` when omitted.
        template, system_prompt: How the prompts for the comparison are rendered; as in the
            run's recipe when omitted.
        gguf: Convert the whole model to a GGUF file next to its folder; needs ``full`` and
            llama.cpp's ``convert_hf_to_gguf.py``.
        push: Hub repository to upload the folder to.

    Raises:
        UsageError: ``gguf`` without ``full``.
        InputError: There is no such candidate, or ``out`` contains other files.
        VerificationError: The logits differ by more than the dtype explains.
        ResourceError: The converter is missing or fails, or the hub refuses the upload; the folder
            is written all the same.
    """
    from dataclasses import replace

    from mergeforget.analysis.export import export as write
    from mergeforget.api.measuring import data_of
    from mergeforget.recipe import load_recipe

    opened = as_run(run)
    if gguf and not full:
        raise UsageError("A GGUF file contains the whole model: add --full to --gguf.")
    if gguf:
        find_converter()  # before the work
    prompt_settings = {"template": template, "system_prompt": system_prompt}
    data = (
        data_of(load_recipe(opened.recipe).data, prompt_settings)
        if any(prompt_settings.values())
        else None
    )
    done = write(opened, optional_path(out), name=candidate, full=full, dtype=dtype, data=data)
    folder = Path(done.folder)
    if gguf:
        done = replace(done, gguf=str(to_gguf(folder, folder.with_name(f"{folder.name}.gguf"))))
    return replace(done, pushed=push_folder(folder, push)) if push else done


def find_converter() -> Path:
    """Return the path of llama.cpp's ``convert_hf_to_gguf.py``, in LLAMA_CPP or on PATH.

    Raises:
        ResourceError: It is not installed.
    """
    import os
    import shutil

    from mergeforget.errors import ResourceError

    name = "convert_hf_to_gguf.py"
    configured = Path(os.environ.get("LLAMA_CPP", "")) / name
    if os.environ.get("LLAMA_CPP") and configured.is_file():
        return configured
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


def check_login(repository: str) -> None:
    """Raise ResourceError if nobody is logged in on the Hub, before hours of work."""
    from mergeforget.errors import ResourceError, reason_of

    try:
        from huggingface_hub import HfApi

        HfApi().whoami()
    except Exception as error:
        raise ResourceError(
            f"--push {repository} needs a login on the hub: {reason_of(error)} Check the "
            "connection and log in with `hf auth login`, or leave --push out and use `mergeforget "
            "export --push` later."
        ) from error


def push_folder(folder: Path, repository: str) -> str:
    """Upload an exported folder to a model repository on the Hub; return its address.

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
            f"{folder} was not uploaded to {repository}: {reason_of(error)} Check "
            "the connection and the login (`hf auth login`), and repeat the same command; the rest "
            "is done."
        ) from error


def analyze(
    run: AnyRun | None = None,
    what: Sequence[str] = (),
    *,
    out: str | Path | None = None,
    against: AnyRun | None = None,
) -> list[Finding]:
    """Analyze a run: numbers as json and csv, figures as png and svg.

    Args:
        run: The run folder; None is the newest under ``runs/``.
        what: Names of analyses (density, mia, attacks, prediction, angles, weights, curves,
            dynamics); all of them when empty.
        out: Folder of the results; ``RUN/analysis`` when omitted.
        against: Another run, whose training dynamics are drawn in the same figure.

    Raises:
        UnknownNameError: There is no such analysis.
        UsageError: ``against`` is given without ``dynamics``.
        InputError: An analysis needs files that the run does not have yet.
    """
    from mergeforget.analysis.findings import analyse, analyse_against, analyse_all
    from mergeforget.errors import UsageError

    if against is not None and "dynamics" not in what:
        raise UsageError("--against compares trainings: analyze RUN dynamics --against RUN2.")
    opened = as_run(run)
    folder = optional_path(out) or opened.analysis
    if not what or "all" in what:
        findings = analyse_all(opened, folder)
    else:
        findings = [analyse(opened, name, folder) for name in dict.fromkeys(what)]
    if against is not None:
        findings.append(analyse_against(opened, as_run(against), folder))
    return findings


def compare(
    runs: Sequence[str | Path],
    *,
    run_model: str | None = None,
    part: Literal["all", "choose", "report"] = "all",
    page: str | Path | None = None,
) -> Scores:
    """Collect the scores of one model of each run.

    Args:
        runs: Run folders.
        run_model: Model to compare: base, over, under or a candidate; the chosen one when omitted.
        part: ``report`` is the report split of the search, ``choose`` the selection split.
        page: Write the table as an HTML page, too.

    Returns:
        Scores by ``RUN: MODEL``. ``differences`` has the differences from the first run on the rows
        that both were evaluated on (all rows, whatever ``part`` is), with their intervals.

    Raises:
        InputError: A run has no such scores.
    """
    from mergeforget.analysis.report import compare as collect
    from mergeforget.analysis.report import compare_rows, write_comparison

    folders = [Path(run) for run in runs]
    scores = collect(folders, run_model, part)
    differences = compare_rows(folders, run_model)
    if page is not None:
        write_comparison(scores, Path(page), differences)
    return Scores(scores, differences=differences)


def score(
    generations: Sequence[str | Path],
    *,
    mia: str | Path | None = None,
    mmlu: str | Path | None = None,
    benchmark: str = "semeval2025-task4",
) -> Scores:
    """Score generations that exist already; no model is loaded.

    Args:
        generations: Files, or folders of them: ``answers/MODEL.jsonl`` of a run, or
            ``forget_0.csv`` and ``retain_0.csv`` as SemEval-2025 Task 4's script writes them.
        mia: Document losses (``answers/MODEL.losses.jsonl``), or a file with the AUC.
        mmlu: File with MMLU's average.
        benchmark: ``semeval2025-task4`` counts Latin words only, as its script does; ``custom``
            counts words of any script.

    Returns:
        The scores, under the model name ``value``.

    Raises:
        InputError: A file or a required column is missing.
    """
    from mergeforget.benchmarks.semeval2025_task4 import task_names, terms
    from mergeforget.evaluate.texts import score_texts

    measured, scores = score_texts(
        [Path(one) for one in generations], mia=optional_path(mia), mmlu=optional_path(mmlu),
        benchmark=benchmark,
    )  # fmt: skip
    official = benchmark.replace("-", "_") == "semeval2025_task4"
    return Scores({"value": scores}, terms=terms(scores, task_names(measured)) if official else ())


def verify(evidence: str | Path, run: AnyRun | None = None) -> list[EvidenceCheck]:
    """Recompute the statements of the evidence file of a report.

    Args:
        evidence: The ``evidence.json`` of a report.
        run: The run folder that it describes; the folder above ``report/`` when omitted.

    Returns:
        One check per statement. The evidence holds if every check that is ``required`` is ``ok``.

    Raises:
        InputError: The file is not an evidence file, or the run folder is missing.
    """
    from mergeforget.analysis.verification import verify_evidence

    return verify_evidence(Path(evidence), None if run is None else as_run(run))


def open_chat(
    run: AnyRun | None = None,
    candidate: str = "",
    max_new_tokens: int = 64,
    template: Literal["auto", "none", "chat"] | None = None,
    system_prompt: str | None = None,
) -> Callable[[str], dict[str, str]]:
    """Load the base of a run and one of its models, and return a function that asks both.

    Answers are decoded greedily, without a conversation history, with the chat template that is
    stored with the adapter, if there is one. The model is loaded once; the adapter is disabled for
    the answers of the base.

    Args:
        run: The run folder; None is the newest under ``runs/``.
        candidate: ``over``, ``under`` or a candidate's name; the chosen one when empty.
        max_new_tokens: Maximum number of tokens to generate per answer.
        template, system_prompt: How prompts are rendered; as in the run's recipe when omitted.

    Returns:
        A function from a prompt to ``{"prompt": ..., "before": ..., "after": ...}``.

    Raises:
        InputError: There is no such run or model, or nothing was chosen yet.
    """
    from mergeforget.api.measuring import data_of
    from mergeforget.data.templating import template_of
    from mergeforget.evaluate.generate import generate
    from mergeforget.model_adapters import adopt_template
    from mergeforget.models import load_model
    from mergeforget.recipe import load_recipe

    folder, name = _adapter(as_run(run), candidate)
    opened = as_run(run)
    recipe = load_recipe(opened.recipe)
    spec = recipe.model.model_copy(update={"name": opened.base()})
    loaded = load_model(spec, adapter=folder)
    adopt_template(loaded.tokenizer, folder)
    prompt_settings = {"template": template, "system_prompt": system_prompt}
    prompt_template = template_of(loaded.tokenizer, data_of(recipe.data, prompt_settings))

    def one(prompt: str) -> str:
        output: list[Any] = generate(
            loaded.model, loaded.tokenizer, [prompt], template=prompt_template,
            max_new_tokens=max_new_tokens, label=name,
        )  # fmt: skip
        return str(output[0]).strip()

    def ask(prompt: str) -> dict[str, str]:
        with loaded.model.disable_adapter():
            before = one(prompt)
        return {"prompt": prompt, "before": before, "after": one(prompt)}

    return ask


def _adapter(run: Any, candidate: str) -> tuple[Any, str]:
    from mergeforget.api.results import UnlearningRun
    from mergeforget.errors import InputError, suggest
    from mergeforget.evaluate.run_models import models_of

    known = {n: path for n, path in models_of(run).items() if path is not None}
    name = candidate or UnlearningRun(run).chosen
    if not name:
        raise InputError(
            f"No candidate is chosen in {run.root}. Run `mergeforget search`, or name a model with "
            f"--candidate: {', '.join(known) or 'none is trained yet'}."
        )
    if name not in known:
        raise InputError(
            f"{run.root} has no model {name!r}.{suggest(name, known)} It has: {', '.join(known)}."
        )
    return known[name], name
