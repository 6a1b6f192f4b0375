"""``python -m forecast export``: write a checkpoint as an ONNX file that runs without torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from forecast.errors import UsageError

ARGUMENTS = {
    "model": "checkpoint to export, for example model.pt",
    "exported": "file to write, for example model.onnx",
}
"""The command's arguments, in order."""

EXAMPLES = """\
examples:
  python -m forecast export artifacts/best_pareto_lstm.pt model.onnx
  python -m forecast infer --checkpoint model.onnx
"""


class ExportOptions(BaseModel):
    """The check of the file before it is written."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    check_windows: int = Field(
        200,
        ge=1,
        description="number of random windows on which the file must give the same forecasts as the checkpoint in "
        "torch",
    )


def export_command(options: ExportOptions, model: Path, exported: Path) -> int:
    """Write the model at ``model`` to ``exported``, which is unchanged if that fails.

    Raises:
        UsageError: when ``exported`` does not end in ``.onnx``.
        ForecastError: when the checkpoint cannot be used or exported.
        OSError: when the file cannot be written.
    """
    from forecast.model.exported import SUFFIX, is_exported

    if not is_exported(exported):
        raise UsageError(
            f"{exported} does not end in {SUFFIX}, the suffix of exported models; choose a name that does"
        )
    if exported.is_dir():
        raise UsageError(f"{exported} is a directory; give the path of a file")
    from forecast.atomic import require_writable, write_atomically
    from forecast.inference.agreement import exported_and_checked
    from forecast.model.checkpoint import load_checkpoint

    require_writable(exported.parent)
    data, difference = exported_and_checked(load_checkpoint(model), exported, options.check_windows)
    write_atomically(exported, lambda stream: stream.write(data))
    print(
        f"{exported}: {len(data) / 1e3:,.0f} kB, within {difference:.0e} of {model} on {options.check_windows} random "
        "windows"
    )
    return 0
