"""Reads lists, DataFrames and data sets in memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

from mergeforget.data.fields import iso_text
from mergeforget.data.sources.common import repeated_name
from mergeforget.data.sources.files import FILE_TYPES
from mergeforget.data.sources.text_entries import kind_of_text
from mergeforget.errors import InputError

LONGEST_PATH = 250  # characters; a longer text is not the name of a file


def items_of(source: Any, name: str = "forget") -> list[str | dict[str, Any]]:
    """Return the texts or rows of a list, a DataFrame, or a data set in memory, as plain values.

    Args:
        name: Name of the set in messages.

    Raises:
        InputError: An item is neither a text nor a row, or a value has no JSON form.
    """
    if hasattr(source, "to_dicts"):  # a DataFrame of polars
        source = source.to_dicts()
    if hasattr(source, "to_dict") and hasattr(source, "columns"):  # a DataFrame of pandas
        if twice := repeated_name(map(str, source.columns)):
            raise InputError(f"The {name} rows have several columns {twice!r}. Rename them.")
        source = source.astype(object).where(source.notna(), None).to_dict("records")
    if isinstance(source, Mapping) or not hasattr(source, "__iter__"):
        raise InputError(
            f"The {name} rows are of the type {type(source).__name__}. Give a file, a list of "
            "texts, a list of rows, or a DataFrame."
        )
    items: list[str | dict[str, Any]] = []
    for i, item in enumerate(source):
        if isinstance(item, Mapping):
            items.append({str(k): _plain_value(v, f"{name}, item {i}") for k, v in item.items()})
        elif isinstance(item, str) and not _is_file_name(item):
            items.append(str(item))
        else:
            files = " Give one file, or use unlearn_sequence for several."
            what = "the name of a file" if isinstance(item, str) else "neither a text nor a row"
            raise InputError(
                f"Item {i} of {name} is {what}: {item!r}."
                + (files if isinstance(item, str | Path) else "")
            )
    return items


def _is_file_name(text: str) -> bool:
    """Return whether a text in a list is a path: an existing file, or a word with its ending."""
    if not text.strip() or len(text) > LONGEST_PATH or re.search(r"[\n\r\0]", text):
        return False
    path = Path(text.strip())
    named = path.suffix.lower() in FILE_TYPES and (
        len(text.split()) == 1 or kind_of_text(text) == "name"
    )
    return named or path.is_file() or "/" in text and path.is_dir()


def _plain_value(value: Any, place: str) -> Any:
    """Return a value as JSON has it; a missing one (NaN) is None."""
    if isinstance(value, Mapping):
        return {str(key): _plain_value(one, place) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(one, place) for one in value]
    if isinstance(value, date):
        return iso_text(value)
    if hasattr(value, "tolist"):  # a number or an array of NumPy
        return _plain_value(value.tolist(), place)
    if isinstance(value, Decimal | UUID):
        return str(value)
    if isinstance(value, float) and value != value:
        return None
    if value is None or isinstance(value, str | int | float):
        return value
    raise InputError(f"{place}: {value!r} is neither text nor a number.")
