"""Sources of records: files by their ending, folders, the Hub, and objects in memory."""

from __future__ import annotations

from pathlib import Path

from mergeforget.data.sources.common import Records
from mergeforget.data.sources.files import FILE_TYPES, read_file
from mergeforget.data.sources.folders import data_files, hub_name, read_folder, read_hub
from mergeforget.parsing import usable_path


def read_records(path: Path) -> Records:
    """Read the records of a file, of a folder of texts, or of a data set on the Hub.

    JSON in a text file is read as in a ``.jsonl`` file; see ``file_of_set`` for other folders.
    """
    if usable_path(path).is_dir():
        return read_folder(path)
    if path.suffix.lower() not in FILE_TYPES and not path.is_file():
        within = path.parent != Path() and path.parent.is_dir() and not path.suffix
        if within and data_files(path.parent):
            return read_hub(path, {"name": str(path.parent), "config": None, "split": path.name})
        if hub := hub_name(path):
            return read_hub(path, hub)
    return read_file(path)
