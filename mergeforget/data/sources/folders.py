"""Reads folders, data sets in the layout of the Hub, and data sets on the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergeforget.console import say
from mergeforget.data.sources.common import SHOWN, TEXTS, Records, text_of
from mergeforget.data.sources.files import read_file
from mergeforget.errors import InputError, reason_of
from mergeforget.parsing import usable_path

HUB = re.compile(r"(?P<name>[\w.-]+(/[\w.-]+)?)(:(?P<config>[\w.+-]+))?(/(?P<split>[\w.-]+))?")
SAVED = ("state.json", "dataset_dict.json")  # written by datasets' save_to_disk
DATA_FILES = ("*.jsonl", "*.ndjson", "*.json", "*.parquet", "*.csv", "*.tsv", "*/*.parquet",
              "*/*.jsonl")  # fmt: skip
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", *SAVED)  # of a data set, not its rows
SETS = ("forget", "retain", "holdout")
OF_SET = re.compile(r"(forget|retain|holdout)(?![^\W\d_])", re.IGNORECASE)  # at the start of a name
CARD = re.compile(r"(readme|license|licence|changelog|contributing|citation)\b", re.IGNORECASE)
INSTALL = "pip install 'mergeforget[hub]'"


def file_of_set(path: Path, split: str) -> Path:
    """Return the file of a set in a folder whose files are named after the sets.

    Such as ``forget.jsonl`` of the folder that ``mergeforget data make`` writes, or a split that
    ``datasets`` has saved. Any other path is returned unchanged.

    Args:
        split: forget, retain or holdout; any other value names no set.

    Raises:
        InputError: The folder has files of several sets, and none or several of this one.
    """
    if not usable_path(path).is_dir():
        return path
    if any((path / name).is_file() for name in SAVED):
        saved = path / split
        return saved if split in SETS and (saved / SAVED[0]).is_file() else path
    files = [file for file in [*data_files(path), *_documents(path)] if file.parent == path]
    of_sets = {file: found[1].lower() for file in files if (found := OF_SET.match(file.stem))}
    others = [file.name for file in files if file not in of_sets]
    if not of_sets:
        return path
    own = [file for file, name in of_sets.items() if name == split]
    names = ", ".join(sorted(file.name for file in of_sets))
    if not own and split not in SETS and len(of_sets) == 1:
        own = list(of_sets)
    if len(own) != 1:
        what = f"{len(own)} files of the {split} set" if split in SETS else "files of several sets"
        raise InputError(
            f"{path} has {what}: {names}. Name one file, for example {path / min(of_sets).name}."
        )
    unread = f" Not read: {', '.join(others)}." if others else ""
    say(f"{path}: {own[0].name} is read as the {split or 'given'} set.{unread}")
    return own[0]


def read_folder(path: Path) -> Records:
    """Read a saved data set, or one document per text file of a folder and its subfolders."""
    documents, data = _documents(path), data_files(path)
    if any((path / name).is_file() for name in SAVED):
        return read_hub(path, {"name": str(path), "config": None, "split": None})
    if documents and data:
        raise InputError(
            f"{path} has texts ({_some(path, documents)}) and data files ({_some(path, data)}), so "
            "it is not clear which to read. Give one of the files, or move the others elsewhere."
        )
    if not documents and not data:
        raise InputError(
            f"{path} is a folder without .txt files. Pass a data file, a folder of documents as "
            ".txt or .md files, or a data set that `datasets` has saved."
        )
    if not documents:
        return _hub_folder(path, data)
    known = {*documents, *_visible(path, "**/*.md")}
    others = [file for file in _visible(path, "**/*") if file not in known]
    if len(documents) > 1 or others:
        unread = f" Not read: {_some(path, others)}." if others else ""
        say(f"{path}: {len(documents)} documents are read: {_some(path, documents)}.{unread}")
    records = []
    for i, file in enumerate(documents, 1):
        name = file.relative_to(path).with_suffix("").as_posix()
        records.append((i, {"id": name, "subject": str(file), "text": text_of(file)}))
    return records


def _hub_folder(path: Path, files: Sequence[Path]) -> Records:
    """Read a folder in the layout of a data set on the Hub, with one or several data files.

    Raises:
        InputError: The files have several types, of which ``datasets`` reads one.
    """
    card = path / "README.md"
    configured = card.is_file() and "data_files" in card.read_text("utf-8", errors="replace")
    lines = (".jsonl", ".ndjson", ".json")  # of one reader
    types = {".json" if file.suffix.lower() in lines else file.suffix.lower() for file in files}
    if len(types) > 1 and not configured:
        raise InputError(
            f"{path} has data files of several types: {_some(path, files)}. Give one of the files."
        )
    return read_hub(path, {"name": str(path), "config": None, "split": None})


def hub_name(path: Path) -> dict[str, str | None] | None:
    """Parse ``name[:config][/split]``; None if it cannot name a data set on the Hub."""
    if path.is_absolute() or path.parts[0] in (".", ".."):
        return None
    text = path.as_posix()
    if ":" not in text and text.count("/") == 2:
        name, _, split = text.rpartition("/")
        return {"name": name, "config": None, "split": split}
    match = HUB.fullmatch(text)
    return match.groupdict() if match and ("/" in text or ":" in text) else None


def read_hub(path: Path, where: Mapping[str, str | None]) -> Records:
    """Load the records of a cached or downloadable data set."""
    name, config, split = where["name"] or "", where["config"], where["split"]
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"There is no file {path}, and data sets from the Hub need the package datasets: "
            f"{INSTALL}"
        ) from error
    saved = any((path / file).is_file() for file in SAVED)
    local = not saved and Path(name).is_dir()
    try:
        if saved:
            dataset = datasets.load_from_disk(str(path))
        elif local:
            found = datasets.load_dataset_builder(name, config).config.data_files.items()
            dataset = {str(key): [Path(file) for file in files] for key, files in found}
        else:
            dataset = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # for example an unknown name, no network, or a refused script
        if saved:
            raise InputError(
                f"The data set saved in {path} could not be loaded: {reason_of(error)} The package "
                f"datasets cannot load a split without rows; name another one: {path}/SPLIT."
            ) from error
        raise InputError(
            f"There is no file {path}, and the data set {name!r} could not be loaded from the hub: "
            f"{reason_of(error)} Check the path, the name and the connection; "
            "cached data sets work offline."
        ) from error
    if isinstance(dataset, dict):
        chosen = split or (next(iter(dataset)) if len(dataset) == 1 else "train")
        if chosen not in dataset:
            raise InputError(
                f"The data set {name} has the splits {', '.join(dataset)}. Name one: {name}/SPLIT."
            )
        if others := [key for key in dataset if key not in (chosen, split)]:
            say(f"{path}: the split {chosen!r} is read. Not read: {', '.join(others)}.")
        dataset = dataset[chosen]
    return _read_files(Path(name), dataset) if local else list(enumerate(dataset.to_list(), 1))


def _read_files(path: Path, files: Sequence[Path]) -> Records:
    """Read the files of a split, all values as written: ``datasets`` reads ``0012`` as 12."""
    if len(files) == 1:
        return read_file(files[0])
    records = [record for file in files for _, record in read_file(file)]
    say(f"{path}: {len(records)} rows are read from {_some(path, files)}.")
    return list(enumerate(records, 1))


def _visible(path: Path, pattern: str) -> list[Path]:
    """Return the files of a folder that match a pattern, without hidden ones."""
    return sorted(
        file for file in path.glob(pattern)
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )  # fmt: skip


def data_files(path: Path) -> list[Path]:
    """Return the files with rows in a folder and, of data sets on the Hub, its subfolders."""
    found = (file for pattern in DATA_FILES for file in _visible(path, pattern))
    return [file for file in found if file.name not in DESCRIPTIONS]


def _documents(path: Path) -> list[Path]:
    """Return the texts in a folder and its subfolders, without the description of a data set."""
    texts = [file for ending in TEXTS for file in _visible(path, f"**/*{ending}")]
    return sorted(
        file for file in texts if file.suffix.lower() == ".txt" or not CARD.match(file.name)
    )


def _some(path: Path, files: Sequence[Path]) -> str:
    """Return the first file names of a folder, and the number of others."""
    names = [Path(os.path.relpath(file, path)).as_posix() for file in files]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
