"""The warm start of a job: it first tries the configurations of an earlier job, which had other rows.

Only the hyperparameters are taken over, because objectives on other rows cannot be compared. They come from the earlier
job's summary. The earlier study stays closed, and a directory with only the summary and the checkpoints is enough.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from forecast.errors import StudyError
from forecast.job_files import SUMMARY_FILE
from tune_jobs.costs import Preference
from tune_jobs.space import SearchSpace


class _Point(BaseModel):
    trial_number: int
    objectives: dict[str, float]
    params: dict[str, Any]


class _Rows(BaseModel):
    first_date: str
    last_date: str


class _Options(BaseModel):
    weights: tuple[float, ...] | None = None


class _Summary(BaseModel):
    """The parts of a job's summary that a warm start needs."""

    pick: _Point | None
    front: list[_Point]
    strategy: str
    objectives_on: str
    persistence: dict[str, dict[str, float]]
    data: _Rows
    options: _Options


@dataclass(frozen=True)
class Configuration:
    """A configuration that an earlier job found good.

    Attributes:
        number: number of its trial in the earlier study.
        params: its hyperparameters.
    """

    number: int
    params: dict[str, Any]


@dataclass(frozen=True)
class WarmStart:
    """The result of an earlier job.

    Attributes:
        directory: its output directory.
        rows: first and last date of its rows.
        configurations: the pick's, then those of its Pareto front, best first by its strategy.
    """

    directory: Path
    rows: str
    configurations: list[Configuration]

    def fitting(self, space: SearchSpace) -> tuple[list[Configuration], list[str]]:
        """Return the configurations as ``space`` samples them, and the reason for each one that does not fit."""
        fitting, misfits = [], []
        for each in self.configurations:
            try:
                fitting.append(Configuration(each.number, space.sampled_as(each.params)))
            except ValueError as error:
                misfits.append(str(error))
        return fitting, misfits


def read_warm_start(directory: Path) -> WarmStart:
    """Read the result of the job in ``directory``.

    Raises:
        StudyError: when there is no summary of a job, it is damaged, or no trial of the job finished.
    """
    try:
        summary = _Summary.model_validate_json((directory / SUMMARY_FILE).read_bytes())
        preference = Preference(
            summary.strategy, summary.persistence[summary.objectives_on], summary.options.weights
        )
        front = sorted(summary.front, key=lambda point: preference.cost(point.objectives))
    except OSError as error:
        raise _unusable(directory, error.strerror) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise _unusable(directory, ": ".join([*map(str, first["loc"]), first["msg"]])) from None
    except (KeyError, ValueError) as error:
        raise _unusable(directory, error) from None
    picked = summary.pick
    if picked is None:
        raise StudyError(
            f"`warm_start` {directory}: no trial of that job finished; give the directory of another job"
        )
    points = [picked, *(point for point in front if point.trial_number != picked.trial_number)]
    return WarmStart(
        directory.absolute(),
        f"{summary.data.first_date} to {summary.data.last_date}",
        [Configuration(point.trial_number, point.params) for point in points],
    )


def _unusable(directory: Path, reason: object) -> StudyError:
    return StudyError(
        f"`warm_start` {directory}: its {SUMMARY_FILE} cannot be used ({reason}); give the directory of a job that has "
        "ended"
    )
