"""Kills, full disks and damaged inputs; `make faults` repeats every one of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest

from mergeforget.testing.faults import Fault, interrupt
from mergeforget.testing.fuzzing import fuzz
from mergeforget.testing.parsers import FUZZED, FuzzedParser
from mergeforget.testing.writers import WRITERS

FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="the faults run in forked processes")


@FORK
@pytest.mark.parametrize("fault", ["kill", "full disk", "large file"])
@pytest.mark.parametrize(("name", "every"), [("replace", 1), ("merge", 5)])
def test_an_interrupted_write_loses_no_data_and_leaves_no_files(
    name: str, every: int, fault: Fault, tmp_path: Path
) -> None:
    found = interrupt(name, tmp_path / "work", fault=fault, every=every)
    assert found.tried and not found.failures


@FORK
@pytest.mark.slow
@pytest.mark.parametrize("fault", get_args(Fault))
@pytest.mark.parametrize("name", WRITERS)
def test_every_file_operation_may_be_interrupted(name: str, fault: Fault, tmp_path: Path) -> None:
    """Runs in a separate process: torch, loaded by other tests, may hold locks at a fork."""
    code = (
        "import sys; from pathlib import Path\n"
        "from mergeforget.testing.faults import interrupt\n"
        f"every = {10 if name == 'train-pair' else 1}\n"
        f"found = interrupt({name!r}, Path({str(tmp_path / 'work')!r}), fault={fault!r}, "
        "every=every)\n"
        "sys.exit('; '.join(found.failures) or (0 if found.tried else 'nothing was tried'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", FUZZED)
def test_damaged_input_gives_our_errors_only(name: str, tmp_path: Path) -> None:
    assert fuzz(name, tmp_path, 100).failures == []


@pytest.mark.slow
@pytest.mark.parametrize("name", FUZZED)
def test_two_thousand_damaged_inputs_give_our_errors_only(name: str, tmp_path: Path) -> None:
    assert fuzz(name, tmp_path, 2000, seed=1).failures == []


def test_the_harness_finds_a_writer_that_loses_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check itself: a writer that removes the old result first loses it when it is killed."""
    from mergeforget.testing import writers

    def careless(work: Path, version: int) -> None:
        result = work / "result"
        result.mkdir(exist_ok=True)
        for name in ("candidate.json", "weights.safetensors"):
            (result / name).unlink(missing_ok=True)
            (result / name).write_text(f'{{"version": {version}}}')

    writer = writers.Writer(careless, writers._folder_version)
    monkeypatch.setitem(WRITERS, "careless", writer)
    assert interrupt("careless", tmp_path / "work").failures


def test_the_fuzzer_finds_a_parser_that_raises_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad(path: Path) -> None:
        path.read_text(encoding="utf-8").encode("ascii")

    monkeypatch.setitem(FUZZED, "bad", FuzzedParser(bad, "a.txt", "abc"))
    assert fuzz("bad", tmp_path, 100).failures


def test_an_alias_bomb_and_a_slow_pattern_are_refused_at_once() -> None:
    from mergeforget.errors import InputError
    from mergeforget.parsing import parse_yaml, safe_pattern

    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
    )
    start = time.process_time()
    with pytest.raises(InputError, match="aliases expand"):
        parse_yaml(bomb, "bomb.yaml")
    for pattern in ("(a+)+$", "(.*a){20}.*.*.*.*.*.*.*", "([a-z]+|b)*x", "(x*)*"):
        with pytest.raises(InputError, match="exponential"):
            safe_pattern(pattern, "rank_pattern")
    assert safe_pattern(r".*\\.(q|k|v)_proj", "target_modules")
    assert time.process_time() - start < 5
