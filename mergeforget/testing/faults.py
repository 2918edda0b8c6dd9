"""Kill writers, fill disks and damage inputs, and count what goes wrong.

``python -m mergeforget.testing.faults`` (or ``make faults``) prints the table of
docs/reliability.md. A writer runs in a child process that ends, or gets "no space left", at one of
its file operations; every operation has its turn. Inputs are valid documents with random changes;
only a MergeforgetError may come out of a parser.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mergeforget.errors import MergeforgetError, ResourceError
from mergeforget.replace import TEMPORARY

NOTES = "notes.txt"  # a file of the user inside a result
KILLED = 77
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.copyfile"}


@dataclass
class Counted:
    """Outcomes of one kind of fault.

    Attributes:
        tried: Number of faults.
        failures: A sentence for each that lost a result, left a file, or raised another error.
    """

    tried: int = 0
    failures: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Writer:
    """A writer under test.

    Attributes:
        write: Writes a result into a folder; the version (1 or 2) decides its content.
        version: Reads the version back from a complete result, and raises for any other.
    """

    write: Callable[[Path, int], None]
    version: Callable[[Path], int]


def _folder(work: Path, version: int) -> None:
    from mergeforget.replace import whole

    with whole(work / "result") as temporary:
        temporary.mkdir()
        for name in ("candidate.json", "weights.safetensors"):
            (temporary / name).write_text(json.dumps({"version": version}))


def _folder_version(work: Path) -> int:
    found = {
        json.loads((work / "result" / name).read_text())["version"]
        for name in ("candidate.json", "weights.safetensors")
    }
    (version,) = found
    return int(version)


def _adapter(seed: int) -> Any:
    import numpy as np

    from mergeforget.adapter import Adapter, LowRankDelta

    draw = np.random.default_rng(seed)
    a, b = draw.standard_normal((2, 8)), draw.standard_normal((6, 2))
    delta = LowRankDelta(a.astype(np.float32), b.astype(np.float32), 1.0)
    return Adapter(f"a{seed}", {"model.layers.0.mlp.up_proj": delta}, {"peft_type": "LORA", "r": 2})


def _merge(work: Path, version: int) -> None:
    from mergeforget.candidate import Candidate
    from mergeforget.merge.engine import merge_adapters, write_candidate

    candidate = Candidate("linear", weights=(float(version), 1.0))
    write_candidate(merge_adapters([_adapter(1), _adapter(2)], candidate), work / "result")


def _merge_version(work: Path) -> int:
    from mergeforget.adapter import read_adapter

    read_adapter(work / "result")
    return int(json.loads((work / "result" / "candidate.json").read_text())["weights"][0])


def _fold(work: Path, version: int) -> None:
    import numpy as np

    from mergeforget.candidate import Candidate
    from mergeforget.merge.checkpoint.full import fold_adapters
    from mergeforget.tensors import write_safetensors

    base = work / "base"
    if not base.exists():
        base.mkdir()
        (base / "config.json").write_text('{"model_type": "llama", "dtype": "float32"}')
        weight = np.zeros((6, 8), np.float32)
        write_safetensors(base / "model.safetensors", {"model.layers.0.mlp.up_proj.weight": weight})
    candidate = Candidate("linear", weights=(float(version), 1.0), space="delta")
    fold_adapters(base, [_adapter(1), _adapter(2)], candidate, work / "result")


def _fold_version(work: Path) -> int:
    from mergeforget.merge.checkpoint.reader import open_checkpoint

    with open_checkpoint(work / "result"):
        return int(json.loads((work / "result" / "candidate.json").read_text())["weights"][0])


def _checkpoint(work: Path, version: int) -> None:
    """A run's bookkeeping: status, a row of scores, and a sealed checkpoint."""
    from mergeforget.replace import explained
    from mergeforget.run import Run
    from mergeforget.train.callbacks import seal_checkpoint

    run = Run(work / "result")
    with run.lock(), explained(run.root):  # as `fit` does around the Trainer
        folder = run.root / "checkpoints" / "over" / f"checkpoint-{version}"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("optimizer.pt", "trainer_state.json"):
            (folder / name).write_text("{}")
        seal_checkpoint(folder)
        run.set_state("over", "running", version=version)


def _checkpoint_version(work: Path) -> int:
    from mergeforget.run import Run
    from mergeforget.train.callbacks import last_checkpoint

    run = Run(work / "result")
    version = int(run.read_status()["over"]["version"])
    last = last_checkpoint(run.root / "checkpoints" / "over")
    if last is None or int(last.name.split("-")[1]) < version:
        raise ValueError("the checkpoint is lost")
    return version


WRITERS = {
    "replace": Writer(_folder, _folder_version),
    "merge": Writer(_merge, _merge_version),
    "fold": Writer(_fold, _fold_version),
    "checkpoint": Writer(_checkpoint, _checkpoint_version),
}


class _Fault:
    """An audit hook that ends the process, or raises ENOSPC, at the given file operation."""

    def __init__(self, work: str, at: int, kill: bool) -> None:
        self.work, self.at, self.kill, self.seen = work, at, kill, 0

    def __call__(self, event: str, arguments: Any) -> None:
        writes = event in EVENTS or (event == "open" and (arguments[2] or 0) & WRITING)
        if not writes or not any(self.work in str(argument) for argument in arguments):
            return
        self.seen += 1
        if self.seen != self.at:
            return
        if self.kill:
            os._exit(KILLED)
        if event in ("open", "os.mkdir", "shutil.copyfile"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))


def _in_child(writer: Writer, work: Path, version: int, at: int = 0, kill: bool = True) -> int:
    """Run a writer in a forked child, with a fault where ``at`` is not 0.

    Returns:
        Its exit status; the number of file operations is written to ``work/../count``.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        fault = _Fault(str(work), at, kill)
        sys.addaudithook(fault)
        writer.write(work, version)
        (work.parent / "count").write_text(str(fault.seen))
        code = 0
    except ResourceError:
        code = ResourceError.exit_code
    except BaseException:
        (work.parent / "error").write_text(traceback.format_exc())
    finally:
        os._exit(code)


def interrupt(name: str, folder: Path, *, kill: bool, every: int = 1) -> Counted:
    """Interrupt a writer at its file operations, one run for each, and check what is left.

    Args:
        name: A key of ``WRITERS``.
        folder: An empty working folder.
        kill: End the process; otherwise raise "no space left on device".
        every: Try each ``every``-th operation.
    """
    writer, counted = WRITERS[name], Counted()
    start, dry = folder / "start", folder / "dry"
    start.mkdir(parents=True)
    if _in_child(writer, start, 1):
        raise RuntimeError(f"{name} fails without a fault: {(folder / 'error').read_text()}")
    writer.version(start)  # imports here what each child would import again
    (start / "result" / NOTES).write_text("mine")
    shutil.copytree(start, dry)
    _in_child(writer, dry, 2)
    for at in range(1, int((folder / "count").read_text()) + 1, every):
        work = folder / f"at{at}"
        shutil.copytree(start, work)
        code = _in_child(writer, work, 2, at, kill)
        counted.tried += 1
        counted.failures += [f"{name}, operation {at}: {e}" for e in _check(writer, work, code)]
        shutil.rmtree(work)
    shutil.rmtree(folder)
    return counted


def _check(writer: Writer, work: Path, code: int) -> Iterator[str]:
    if code not in (0, KILLED, ResourceError.exit_code):
        yield f"exit status {code}"
    moved = [p for p in work.glob(".result.*.old")]
    try:
        if not moved and writer.version(work) not in (1, 2):
            yield "another result"
    except Exception as error:
        yield f"the result is missing or damaged ({error!r})"
    if _in_child(writer, work, 2):
        yield "the same command fails afterwards"
        return
    if writer.version(work) != 2:
        yield "the next run does not give its result"
    if not (work / "result" / NOTES).is_file():
        yield "the user's file is lost"
    left = [p.name for p in work.rglob("*") if TEMPORARY.match(p.name) or ".partial" in p.name]
    if left:
        yield f"left after the next run: {left}"


# Fuzzing


def _recipe(path: Path) -> None:
    from mergeforget.recipe import load_recipe

    load_recipe(path)


def _assignment(path: Path) -> None:
    from mergeforget.recipe import load_recipe

    load_recipe("zjuklab", [path.read_bytes().decode("utf-8", "surrogateescape")])


def _rows(path: Path) -> None:
    from mergeforget.data.readers import read_rows

    for row in read_rows(path):
        json.dumps(row.to_dict(), ensure_ascii=False).encode("utf-8")


def _scores(path: Path) -> None:
    from mergeforget.score import read_scores

    read_scores(path)


def _run(path: Path) -> None:
    """The JSON files of a run: status, manifest, chosen candidate, attack results."""
    from mergeforget.analysis.evidence import read_chosen
    from mergeforget.attack.result import read_results
    from mergeforget.run import Run

    run = Run(path.parent / "run")
    text = path.read_bytes()
    places = [run.status, run.manifest, run.search / "chosen.json", run.attacks / "relearn.json"]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(text)
    run.attacks.mkdir(exist_ok=True)
    steps: list[Callable[[], Any]] = [
        lambda: run.state("over"),
        run.read_manifest,
        lambda: read_chosen(run),
        lambda: read_results(run.attacks, "relearn"),
    ]
    for step in steps:
        try:
            step()
        except MergeforgetError:
            continue


def _config(path: Path) -> None:
    from mergeforget.adapter_config import CONFIG, read_config

    folder = path.parent / "adapter"
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_bytes(path.read_bytes())
    read_config(folder)


def _header(path: Path) -> None:
    from mergeforget.merge.checkpoint.reader import read_header

    text = path.read_bytes()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(32))
    read_header(path)


def _mergekit(path: Path) -> None:
    from mergeforget.merge.mergekit_bridge import read_config

    read_config(path)


def _objective(path: Path) -> None:
    from mergeforget.search.objective import parse_objective

    parse_objective(path.read_bytes().decode("utf-8", "replace"))


SCORE = {"model": "over", "metric": "mia_auc", "value": 0.5, "split": "mia", "better": "nearer",
         "n": 8, "interval": [0.1, 0.9], "part": "all", "task": ""}  # fmt: skip
CANDIDATE = {"method": "ties", "density": 0.7, "weights": [1, 1], "space": "factors"}
RUN = {"name": "ties-factors-d0.70", "candidate": CANDIDATE, "over": {"state": "done"},
       "stages": {}, "results": []}  # fmt: skip
LORA = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["up_proj"],
        "rank_pattern": {"up_proj": 2}, "alpha_pattern": {}, "bias": "none"}  # fmt: skip
HEADER = {"a": {"dtype": "F32", "shape": [2, 4], "data_offsets": [0, 32]}}
MERGEKIT = """merge_method: ties
base_model: base
models:
  - model: one
    parameters: {density: 0.5, weight: 1.0}
  - model: two
    parameters: {density: [0.1, 0.9], weight: 0.5}
dtype: float32
"""
ROWS = '{"id": "a", "input": "Who is Ada?", "output": "A baker.", "task": "Task1"}\n'
FUZZED: dict[str, tuple[Callable[[Path], None], str, str]] = {  # parser, file name, valid content
    "recipe": (_recipe, "r.yaml", ""),
    "--set": (_assignment, "set.txt", "train.epochs=3"),
    "rows (JSON Lines)": (_rows, "rows.jsonl", ROWS * 3),
    "rows (CSV)": (_rows, "rows.csv", 'id,input,output\na,"Who, is Ada?",A baker.\n'),
    "rows (JSON)": (_rows, "rows.json", f"[{ROWS.strip()}]"),
    "scores.jsonl": (_scores, "scores.jsonl", (json.dumps(SCORE) + "\n") * 2),
    "files of a run": (_run, "run.json", json.dumps(RUN)),
    "adapter_config.json": (_config, "config.json", json.dumps(LORA)),
    "safetensors header": (_header, "h.safetensors", json.dumps(HEADER)),
    "mergekit configuration": (_mergekit, "merge.yml", MERGEKIT),
    "objective": (_objective, "objective.txt", "mia_auc + 0.5*rouge, mmlu >= 75%"),
}
PIECES = [
    b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"null", b"NaN", b"Infinity", b"-1", b"1e999",
    b"9" * 400, b"[" * 100_000, b'{"a":' * 3000, b"\\ud800", b"\xe9", b"2024-13-45", b"!!set x",
    b"&a [*a, *a]", b"*a", b"../../x", b"\x1b[31m", b"(a+)+$", b"a" * 300, b"\n", b'"', b"'", b",",
    b": ", b"- ", b"{}", b"[]", b"true", b"''", b"\t", b"%", b"=", b".", b"0x10", b"!!binary x",
]  # fmt: skip


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A document with one to four random changes."""
    raw = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        where = draw.randint(0, len(raw))
        kind = draw.randrange(5)
        if kind == 0 and raw:
            raw[min(where, len(raw) - 1)] = draw.randrange(256)
        elif kind == 1:
            del raw[where : where + draw.randint(1, 12)]
        elif kind == 2:
            del raw[where:]
        elif kind == 3:  # a value of another type
            ends = [i for i, c in enumerate(raw) if c in b":,=["]
            at = draw.choice(ends) + 1 if ends else where
            stop = next((i for i in range(at, len(raw)) if raw[i] in b",\n]}"), len(raw))
            raw[at:stop] = b" " + draw.choice(PIECES)  # YAML separates a key by ": "
        else:
            raw[where:where] = draw.choice(PIECES)
    return bytes(raw)


def fuzz(name: str, folder: Path, count: int, seed: int = 0) -> Counted:
    """Give a parser damaged documents; any exception but a MergeforgetError is a failure."""
    parse, file, content = FUZZED[name]
    if not content:
        from mergeforget.recipe import FOLDER

        content = (FOLDER / "zjuklab.yaml").read_text(encoding="utf-8")
    draw, counted = random.Random(f"{name}{seed}"), Counted()
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(count):
        raw = mutated(content.encode(), draw)
        path = folder / file
        path.write_bytes(raw)
        counted.tried += 1
        try:
            parse(path)
        except MergeforgetError:
            continue
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            counted.failures.append(
                f"{name}: {error!r:.150} at {Path(place.filename).name}:{place.lineno}, "
                f"input {raw[:120]!r}"
            )
    return counted


def main(count: int = 2000) -> int:
    """Repeat every fault and print the table; the number of failures."""
    import mergeforget.console as console

    console.set_verbosity(50)
    failures: list[str] = []
    print("| fault | where | tried | lost, left or unexpected |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for title, kill in (("kill", True), ("full disk", False)):
            for name in WRITERS:
                found = interrupt(name, work / f"{title}-{name}", kill=kill)
                failures += found.failures
                print(f"| {title} | {name} | {found.tried} | {len(found.failures)} |", flush=True)
        for name in FUZZED:
            found = fuzz(name, work / "fuzz", count)
            failures += found.failures
            print(f"| damaged input | {name} | {found.tried} | {len(found.failures)} |", flush=True)
    print("\n".join(failures), file=sys.stderr)
    return len(failures)


if __name__ == "__main__":
    sys.exit(min(main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000), 1))
