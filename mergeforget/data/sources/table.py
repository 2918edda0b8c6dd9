"""Reads tables: comma-, semicolon- or tab-separated values, and parquet."""

from __future__ import annotations

import csv
import io
import re
import sys
from pathlib import Path

from mergeforget.console import say
from mergeforget.data.sources.common import Records, faults_in, repeated_name, text_of
from mergeforget.errors import InputError


def csv_file(path: Path) -> Records:
    """Read all fields as text: ``None`` remains a word, and codes keep leading zeros."""
    csv.field_size_limit(sys.maxsize)
    text = text_of(path)
    above = 0  # lines above the header
    if declared := re.match(r"\"?sep=(.)\"?\n", text):  # written by Excel
        text, above = text[declared.end() :], 1
    header = text.partition("\n")[0]
    usual = "\t" if path.suffix.lower() == ".tsv" else ","
    # a spreadsheet exports semicolons where the comma is decimal
    delimiter = declared[1] if declared else max((usual, ";", "\t"), key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    records, faults, line, empty = [], [], above + 2, 0
    try:
        if twice := repeated_name(reader.fieldnames or []):
            raise InputError(f"{path}: the header has several columns {twice!r}. Rename them.")
        for record in reader:
            if None not in record and not any((v or "").strip() for v in record.values()):
                empty += 1  # a row of separators, as at the end of a spreadsheet
                line = above + reader.line_num + 1
                continue
            if None in record or None in record.values():
                fields = len([v for v in record.values() if v is not None])
                faults.append(f"line {line}: {fields} fields, the header has "
                              f"{len(reader.fieldnames or [])}")  # fmt: skip
            records.append((line, dict(record)))
            line = above + reader.line_num + 1
    except csv.Error as error:
        faults.append(f"line {line}: {error}")
    if faults:
        raise InputError(faults_in(path, faults))
    if empty:
        rows = "1 row without any value is" if empty == 1 else f"{empty} rows without any value are"
        say(f"{path}: {rows} not read.")
    return records


def parquet_file(path: Path) -> Records:
    """Read a parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        return list(enumerate(pyarrow.parquet.read_table(path).to_pylist(), 1))
    except (pyarrow.ArrowException, OSError, ValueError) as error:  # ValueError: not UTF-8
        raise InputError(f"{path} cannot be read as parquet: {error}.") from error
