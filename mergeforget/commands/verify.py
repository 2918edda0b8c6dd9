"""`mergeforget verify`: recompute the statements of an evidence file."""

from __future__ import annotations

from pathlib import Path

import click

from mergeforget.commands._options import emit, json_option


@click.command("verify")
@click.argument("evidence", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--run", type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Run folder that the evidence describes.  [default: the folder above report/]",
)  # fmt: skip
@json_option
def command(evidence: Path, run: Path | None, as_json: bool) -> None:
    """Verify EVIDENCE, the evidence.json of a report.

    Recomputes the hash of each file, the leaks, the MIA AUC, the record of each person and the
    verdict. Exits with code 7 if one of them differs.
    """
    from mergeforget.api.runs import verify
    from mergeforget.errors import VerificationError

    checks = verify(evidence, run)
    wrong = [check for check in checks if not check.ok and check.required]
    notes = [check for check in checks if not check.ok and not check.required]
    lines = [f"{sum(c.ok for c in checks)} of {len(checks)} statements hold."]
    lines += [f"Note: the {check.name} differs from the recorded one." for check in notes]
    result = {
        "holds": not wrong,
        "checks": [{"name": c.name, "ok": c.ok, "required": c.required} for c in checks],
    }
    if not wrong:
        emit(result, "\n".join([*lines, "The evidence holds."]), as_json)
        return
    if as_json:
        emit(result, "", as_json)
    differences = "; ".join(
        f"{c.name} (stated {str(c.expected)[:60]}, found {str(c.found)[:60]})" for c in wrong[:10]
    )
    raise VerificationError(
        f"The evidence does not hold: {len(wrong)} of {len(checks)} statements differ: "
        f"{differences}. Restore the run folder that it describes, or write it again with "
        "`mergeforget report`."
    )
