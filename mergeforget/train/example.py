"""The embedded example: made-up people, written once into the cache folder."""

from __future__ import annotations

from mergeforget.data.people import make_people
from mergeforget.distributed import on_main
from mergeforget.embedded_model import cache_folder
from mergeforget.files import write_jsonl

PEOPLE, SEED = 4, 0


def made_up(people: int = PEOPLE, seed: int = SEED) -> dict[str, str]:
    """The data section of a recipe for made-up people: paths of the three files.

    Args:
        people: biographies with private data, six rows each: so many to forget, so many to
            retain, and twice as many held out.
    """
    sizes = {"forget": people, "retain": people, "holdout": 2 * people}
    folder = cache_folder() / "people" / f"{people}-{seed}"

    def write() -> None:
        for split, rows in make_people(sizes, seed=seed, tasks=("Task2",)).items():
            write_jsonl(folder / f"{split}.jsonl", [row.to_dict() for row in rows])

    on_main(write)
    return {split: str(folder / f"{split}.jsonl") for split in sizes}
