"""Compare merge times with PEFT and mergekit, in one run on the same inputs; parity is asserted.

    python benchmarks/merge.py                    the whole table
    python benchmarks/merge.py --parts adapters:smollm2-135m checkpoints:smollm2-135m
    python benchmarks/merge.py --parts process:smollm2-135m

Each side is measured in a separate process, forked from one that has imported both. They take
turns, and the faster of two rounds counts (for PEFT's dense SVD, one round without warm-up). Peak
memory is the growth of the process's memory. The floor is the time in which this machine copies the
bytes that must be read and written. Large shapes are measured on fewer layers, SVD types of the
largest on one projection, and scaled by entries where the table says so. On a shared machine,
compare CPU seconds. The part ``process`` measures the whole command from the start of Python to the
written folder, and a script that does the same with PEFT on a base without weights; each is started
once before it is measured.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from merge_inputs import DENSITY, SHAPES, make_models, make_pair, modules, peft_merge, peft_model

from mergeforget.adapter import Adapter, read_adapter
from mergeforget.candidate import Candidate
from mergeforget.merge.blockwise import merge_whole
from mergeforget.merge.checkpoint.full import merge_models
from mergeforget.merge.checkpoint.tensor_jobs import Output
from mergeforget.merge.engine import MergeSettings, merge_adapters, sweep
from mergeforget.merge.kernels import dispatch
from mergeforget.merge.kernels.low_rank import products
from mergeforget.merge.request import canonical
from mergeforget.run import machine, versions

THREADS = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1))
MEASURED = {"smollm2-135m": 30, "olmo-1b": 4, "7b-layer": 1}  # layers, factor space
DENSE = {"smollm2-135m": 2, "olmo-1b": 0, "7b-layer": 0}  # layers, SVD; 0 is one projection
WHOLE = {"smollm2-135m": 30, "olmo-1b": 1}  # layers, checkpoints
PLAIN = ("linear", "cat", "ties", "dare_ties", "magnitude_prune", "ten densities")
SVD = ("svd", "ties_svd", "magnitude_prune_svd")
METHODS = ("linear", "task_arithmetic", "ties", "dare_ties")
DENSITIES = [i / 10 for i in range(1, 11)]
TARGETS = {
    "smollm2-135m": {"svd": 30, "ties_svd": 15, "magnitude_prune_svd": 15},
    "olmo-1b": {"svd": 1000, "ties_svd": 50, "magnitude_prune_svd": 50},
    "7b-layer": {"svd": 3000, "ties_svd": 80, "magnitude_prune_svd": 80},
    "adapters": {"linear": 4, "ties": 8, "ten densities": 40},
    "checkpoints": {"linear": 6, "task_arithmetic": 6, "ties": 20, "dare_ties": 20},
}


@dataclass(frozen=True)
class Cost:
    """Cost of one side: seconds, and growth of the memory in MB."""

    wall: float
    cpu: float
    peak: float


@dataclass(frozen=True)
class Row:
    """One line of the table; the measured seconds are multiplied by ``scaled``."""

    part: str
    work: str
    ours: Cost
    theirs: Cost
    floor: float
    scaled: float
    target: float | None

    def line(self) -> str:
        """The row in Markdown."""
        k = self.scaled
        ours, theirs = (
            f"{c.wall * k:.3g} / {c.cpu * k:.3g} / {c.peak:.0f}" for c in (self.ours, self.theirs)
        )
        ratio = f"{self.theirs.wall / self.ours.wall:.1f} / {self.theirs.cpu / self.ours.cpu:.1f}"
        note = f" (x{k:.3g})" if k != 1 else ""
        wanted = f"{self.target:g}" if self.target else ""
        floor = f"{self.floor * k:.2g}"
        cells = self.part, self.work + note, ours, theirs, ratio, wanted, floor
        return f"| {' | '.join(cells)} |"


def cost(act: Callable[[], Any], warm: bool) -> tuple[Cost, Any]:
    """Measure a call in a separate process; return its cost, and its result if picklable."""
    here, there = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        torch.set_num_threads(THREADS)
        held = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        if warm:
            act()
        wall, cpu = time.perf_counter(), time.process_time()
        result = act()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - held
        there.send((Cost(wall, cpu, peak / 1e6), result))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    there.close()
    found: tuple[Cost, Any] = here.recv()
    process.join()
    return found


def side_by_side(
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    check: Callable[[Any, Any], None],
    rounds: int,
) -> tuple[Cost, Cost]:
    """Measure both in turns; return the round of each side with less CPU time."""
    one, two = [], []
    for _ in range(rounds):
        first, mine = cost(ours, True)
        second, other = cost(theirs, rounds > 1)
        check(mine, other)
        one.append(first)
        two.append(second)
    return min(one, key=lambda c: c.cpu), min(two, key=lambda c: c.cpu)


def assert_parity(
    candidate: Candidate, sources: list[Adapter], ours: Adapter, theirs: dict[str, Any]
) -> None:
    """Assert equal bits for factor space and cat, and an equal truncation error for SVD.

    The products of an SVD may differ: if the singular values at the cut are close, many
    truncations are equally good.
    """
    for module, delta in ours.deltas.items():
        a, b = theirs[module]
        if candidate.method.endswith("svd"):
            step = canonical(candidate)
            stack = products([source.deltas[module] for source in sources])
            [meant] = merge_whole(stack, np.ones(len(sources)), [step], module)
            left, least = np.linalg.norm(meant - delta.dense()), np.linalg.norm(meant - b @ a)
            assert left <= least * 1.0002, (module, left, least)
        elif not candidate.method.startswith("dare"):
            assert np.array_equal(delta.a, a) and np.array_equal(delta.b, b), module


def adapters(shape: str, kinds: Sequence[str], layers: int, speed: float) -> Iterable[Row]:
    """Measure every kind of merge of a loaded pair, and a sweep over ten densities."""
    whole = sum(a * b for a, b in modules(shape, SHAPES[shape][3]).values())
    part = sum(a * b for a, b in modules(shape, layers).values())
    targets = TARGETS["adapters"] | TARGETS[shape]
    with tempfile.TemporaryDirectory() as place:
        pair = make_pair(Path(place), shape, layers)
        sources = [read_adapter(folder) for folder in pair]
        model = peft_model(pair, shape, layers)
        moved = 3 * (pair[0] / "adapter_model.safetensors").stat().st_size
        how = MergeSettings(threads=THREADS)
        for kind in kinds:
            rounds = 1 if kind in SVD else 2
            costs = side_by_side(*sides(kind, sources, model, how), rounds)
            scaled = round(whole / part, 3)
            yield Row(shape, kind, *costs, moved / speed, scaled, targets.get(kind))


def sides(
    kind: str, sources: list[Adapter], model: Any, how: MergeSettings
) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[Any, Any], None]]:
    """Our call, PEFT's call, and the assertion that they agree."""
    if kind == "ten densities":
        return (
            lambda: len(sweep(sources, Candidate("ties"), DENSITIES, how)),
            lambda: [len(peft_merge(model, "ties", d)) for d in DENSITIES],
            lambda ours, theirs: None,  # each is a merge that the row of ties compares
        )
    random_or_trimmed = "ties" in kind or "prune" in kind
    candidate = Candidate(kind, DENSITY if random_or_trimmed else None)
    return (
        lambda: merge_adapters(sources, candidate, how).adapter,
        lambda: peft_merge(model, kind),
        lambda ours, theirs: assert_parity(candidate, sources, ours, theirs),
    )


def checkpoints(shape: str, layers: int, speed: float) -> Iterable[Row]:
    """Measure merges of whole checkpoints in bfloat16; neither side waits for the disk."""
    import yaml
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from safetensors.torch import load_file

    from mergeforget.merge.mergekit_config import Request, read_config

    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        base, one, two = make_models(root, shape, layers)
        for method in METHODS:
            random = method not in ("linear", "task_arithmetic")
            own = {"weight": 0.5} | ({"density": DENSITY} if random else {})
            config: dict[str, Any] = {
                "merge_method": method,
                "models": [{"model": str(m), "parameters": own} for m in (one, two)],
                "dtype": "bfloat16",
            }
            if method != "linear":
                config["base_model"] = str(base)
            path = root / "config.yml"
            path.write_text(yaml.safe_dump(config))
            request = read_config(path)
            assert isinstance(request, Request)
            origin = base if request.base else None
            output = Output(dtype="bfloat16", threads=THREADS, durable=False)
            out, options = root / method, MergeOptions(quiet=True, write_model_card=False)
            ours = partial(merge_models, [one, two], origin, request.candidate, out / "a", output)
            theirs = partial(
                run_merge, MergeConfiguration.model_validate(config), str(out / "b"), options
            )

            def check(_: Any, __: Any, out: Path = out, method: str = method) -> None:
                found = load_file(out / "a" / "model.safetensors")
                for name, wanted in load_file(out / "b" / "model.safetensors").items():
                    apart = (found[name].float() - wanted.float()).abs()
                    # mergekit rounds differences to bfloat16, so single entries differ
                    assert method == "dare_ties" or float(apart.mean()) < 1e-3, (method, name)

            costs = side_by_side(ours, theirs, check, 2)
            moved = (2 + (origin is not None) + 1) * (base / "model.safetensors").stat().st_size
            part = f"{shape}, {layers} of {SHAPES[shape][3]} layers, whole"
            yield Row(part, method, *costs, moved / speed, 1, TARGETS["checkpoints"][method])


PEFT_SCRIPT = """
import sys
from pathlib import Path
from merge_inputs import peft_merge, peft_model
pair = [Path(name) for name in sys.argv[1:3]]
model = peft_model(pair, sys.argv[3], int(sys.argv[4]))
peft_merge(model, sys.argv[5])
model.save_pretrained(sys.argv[6], selected_adapters=["merged"])
"""


def processes(shape: str, layers: int, speed: float) -> Iterable[Row]:
    """Measure `mergeforget merge` of two adapters as a process, from files to a folder."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        pair = [str(folder) for folder in make_pair(root, shape, layers)]
        moved = 3 * (root / "over" / "adapter_model.safetensors").stat().st_size
        for kind in ("linear", "ties"):
            density = [] if kind == "linear" else ["--density", str(DENSITY)]
            inputs = ["--adapter", pair[0], "--adapter", pair[1]]
            ours = ["-m", "mergeforget", "merge", *inputs, "--method", kind, *density]
            given = [*pair, shape, str(layers), kind, str(root / "theirs")]
            commands = [*ours, "--out", str(root / "ours")], ["-c", PEFT_SCRIPT, *given]
            best = [min((started(c) for _ in range(3)), key=lambda x: x.wall) for c in commands]
            yield Row(f"{shape}, whole process", kind, *best, moved / speed, 1, None)


def started(arguments: Sequence[str]) -> Cost:
    """Measure a Python process from its start to its end."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    here = Path(__file__).resolve().parent
    environment["PYTHONPATH"] = os.pathsep.join([str(here.parent), str(here)])
    begun = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *arguments], env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    memory, done, status = Path(f"/proc/{process.pid}/status"), 0, 0
    peak = 0.0
    while not done:  # the peak of ru_maxrss is that of the parent, from before exec
        found = [x for x in memory.read_text().splitlines() if x.startswith("VmHWM")]
        peak = max([peak, *(float(line.split()[1]) / 1e3 for line in found)])
        time.sleep(0.01)
        done, status, used = os.wait4(process.pid, os.WNOHANG)
    wall = time.perf_counter() - begun
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return Cost(wall, used.ru_utime + used.ru_stime, peak)


def bandwidth() -> float:
    """Return the bytes per second that a copy of a large array reads and writes."""
    source = np.ones(1 << 26, np.float32)
    target = np.empty_like(source)
    best = float("inf")
    for _ in range(4):
        start = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - start)
    return 2 * source.nbytes / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    every = [f"adapters:{s}" for s in SHAPES] + [f"checkpoints:{s}" for s in WHOLE]
    every.append("process:smollm2-135m")
    parser.add_argument("--parts", nargs="+", default=every, choices=every, metavar="PART")
    parser.add_argument("--kinds", nargs="+", default=[*PLAIN, *SVD], metavar="KIND")
    parser.add_argument("--json", type=Path, default=Path("benchmark-merge.json"))
    told = parser.parse_args()
    torch.set_num_threads(1)  # a process with several threads must not be forked
    speed, rows = bandwidth(), []
    dispatch.expect(dispatch.WORTH)  # as work of the full size does
    print(
        f"Copies at {speed / 1e9:.1f} GB/s, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    print(
        "| shape | work | ours: wall s / CPU s / MB | peer | ratio wall / CPU | target | floor s |"
    )
    print("|---|---|---|---|---|---|---|", flush=True)
    for one in told.parts:
        kind, shape = one.split(":")
        if kind == "checkpoints":
            parts = [checkpoints(shape, WHOLE[shape], speed)]
        elif kind == "process":
            parts = [processes(shape, MEASURED[shape], speed)]
        else:
            parts = [
                adapters(shape, [k for k in PLAIN if k in told.kinds], MEASURED[shape], speed),
                adapters(shape, [k for k in SVD if k in told.kinds], DENSE[shape], speed),
            ]
        for row in (row for part in parts for row in part):
            print(row.line(), flush=True)
            rows.append(row)
    facts = {"bandwidth": speed, "rows": [asdict(row) for row in rows]}
    told.json.write_text(json.dumps(facts | versions() | machine(), indent=2) + "\n")


if __name__ == "__main__":
    main()
