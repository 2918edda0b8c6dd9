"""Let an Optuna study suggest the candidates of a search.

The trials are stored in a journal file, or in a PostgreSQL or MySQL database that workers on many
machines share. Each trial is sampled with its own seed, so a search that was killed resumes with
the same suggestions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from mergeforget.candidate import Candidate
from mergeforget.errors import InputError, MergeforgetError
from mergeforget.recipe import SearchSpec
from mergeforget.score import Score
from mergeforget.search.grid import build, grid
from mergeforget.search.objective import Rank

FLOOR_MISSED = 10.0  # a missed floor weighs more than any value, which is at most about 1
CUT_OFF = "cut_off"
NOT_FINITE = "not_finite"
RENEWED = "renewed"
ABANDONED = timedelta(hours=1)  # a trial that runs longer belongs to a worker that died
DRIVERS = (
    "PostgreSQL: pip install 'psycopg[binary]'. MySQL: pip install pymysql, and write the address "
    "as mysql+pymysql://..."
)
OPENINGS = 3  # attempts to open a storage
UNWRITTEN = 10.0  # seconds to wait for the parameters of a trial that has just begun
PAUSE = 0.2  # seconds between two polls of the storage
INSTALL = "pip install 'mergeforget[search]'"


class OptunaStudy:
    """The trials of a search: suggests candidates and records their ranks."""

    def __init__(
        self, spec: SearchSpec, storage: str | Path, name: str, *, renew: bool = False
    ) -> None:
        """Open or create a study.

        Args:
            storage: Journal file, or a URL ``postgresql://``, ``mysql://`` or ``sqlite://``.
            name: Name of the study; workers that use the same name share it.
            renew: Begin a study without trials, which replaces the one with this name for everyone
                who opens it later.

        Raises:
            InputError: Optuna is not installed, or the storage cannot be opened.
        """
        self.spec = spec
        self.axes = axes(spec)
        self.study = self._open(storage, name)
        renewed = int(self.study.user_attrs.get(RENEWED, 0))
        if renew and self.study.get_trials(deepcopy=False):
            renewed += 1
            self.study.set_user_attr(RENEWED, renewed)
        if renewed:
            self.study = self._open(storage, f"{name}-{renewed}")

    def _open(self, storage: str | Path, name: str) -> Any:
        optuna = _optuna()
        directions = ["maximize"] * (1 if self.spec.strategy == "tpe" else 2)
        left = OPENINGS  # two workers may create the schema at once
        while True:
            left -= 1
            try:
                return optuna.create_study(
                    study_name=name,
                    storage=_storage(storage),
                    directions=directions,
                    load_if_exists=True,
                )
            except MergeforgetError:
                raise
            except ImportError as error:
                raise InputError(
                    f"Cannot connect to {storage}: its database driver is not "
                    f"installed ({error.__cause__ or error}). {DRIVERS}"
                ) from error
            except Exception as error:
                if not left:
                    raise InputError(f"Cannot open the study in {storage}: {error}") from error
                time.sleep(PAUSE)

    def suggest(self, first: float | None = None) -> tuple[Any, Candidate]:
        """Return the next trial and its candidate.

        Args:
            first: Density of the first trial; the nearest density of the grid is used.
        """
        trials = self.study.get_trials(deepcopy=False)
        number = len([t for t in trials if CUT_OFF not in t.user_attrs])
        self.study.sampler = self._sampler(number)
        if number == 0 and first is not None:
            self._enqueue(first)
        trial = self.study.ask(self._distributions())
        return trial, self._candidate(trial.params)

    @property
    def first(self) -> Candidate:
        """Candidate with the first value of every axis."""
        return self._candidate(dict.fromkeys(self.axes, 0))

    def is_taken(self, trial: Any) -> bool:
        """Return whether an earlier trial of this or another worker has the same candidate.

        A candidate without finite scores stays taken. If two workers ask at the same time, the
        trial with the lower number keeps the candidate. The parameters of a trial that has just
        begun may not be written yet, so this method waits for them.
        """
        deadline = time.monotonic() + UNWRITTEN
        while True:
            others = [*self._alive(), *self._not_finite()]
            earlier = [t for t in others if t.number < trial.number]
            if any(t.params == trial.params for t in earlier):
                return True
            whole = all(t.params.keys() == self.axes.keys() for t in earlier)
            if whole or time.monotonic() > deadline:
                return False
            time.sleep(PAUSE)

    def busy(self) -> bool:
        """Return whether a worker is evaluating a candidate."""
        return any(not t.state.is_finished() for t in self._alive())

    def skip(self, trial: Any) -> None:
        """Leave a candidate to the trial that has it already."""
        self._fail(trial)

    def abandon_running(self) -> None:
        """Mark trials that a killed search left running as failed, and do not count them."""
        states = _optuna().trial.TrialState
        for left in self.study.get_trials(deepcopy=False, states=[states.RUNNING]):
            self.study._storage.set_trial_user_attr(left._trial_id, CUT_OFF, True)
            self.study.tell(left.number, state=states.FAIL)

    def tell(self, trial: Any, rank: Rank, scores: Sequence[Score]) -> None:
        """Record the rank of a trial's candidate, and its scores for the other workers."""
        trial.set_user_attr("scores", [score.to_dict() for score in scores])
        value = rank.value + FLOOR_MISSED * rank.shortfall
        self.study.tell(trial, value if self.spec.strategy == "tpe" else (rank.forget, rank.retain))

    def fail(self, trial: Any) -> None:
        """Record that the candidate of a trial has no finite scores."""
        trial.set_user_attr(NOT_FINITE, True)
        self._fail(trial)

    def _fail(self, trial: Any) -> None:
        self.study.tell(trial, state=_optuna().trial.TrialState.FAIL)

    def failed(self) -> set[str]:
        """Names of the candidates without finite scores, from any worker."""
        return {self.candidate_of(trial).name for trial in self._not_finite()}

    def _not_finite(self) -> list[Any]:
        states = [_optuna().trial.TrialState.FAIL]
        trials = self.study.get_trials(deepcopy=False, states=states)
        return [trial for trial in trials if NOT_FINITE in trial.user_attrs]

    def finished(self) -> list[Any]:
        """Trials that have a rank, from any worker."""
        complete = _optuna().trial.TrialState.COMPLETE
        return list(self.study.get_trials(deepcopy=False, states=[complete]))

    def candidate_of(self, trial: Any) -> Candidate:
        """Candidate of a trial."""
        return self._candidate(trial.params)

    def _alive(self) -> list[Any]:
        """Finished trials, and running ones that are not abandoned."""
        states = _optuna().trial.TrialState
        trials = self.study.get_trials(deepcopy=False, states=[states.COMPLETE, states.RUNNING])
        oldest = datetime.now() - ABANDONED
        return [t for t in trials if t.state.is_finished() or t.datetime_start > oldest]

    def _enqueue(self, density: float) -> None:
        densities = self.axes["density"]
        nearest = min(range(len(densities)), key=lambda i: abs(densities[i] - density))
        self.study.enqueue_trial({key: 0 for key in self.axes} | {"density": nearest})

    def _distributions(self) -> dict[str, Any]:
        """Distributions of the axes; densities are ordered, all other axes are categorical."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        return {
            key: IntDistribution(0, len(values) - 1)
            if key == "density"
            else CategoricalDistribution(list(range(len(values))))
            for key, values in self.axes.items()
        }

    def _candidate(self, params: dict[str, int]) -> Candidate:
        chosen = {key: self.axes[key][index] for key, index in params.items()}
        return build(
            chosen["method"],
            chosen["density"],
            tuple(chosen["weights"]),
            chosen["space"],
            self.spec.seed,
            chosen["rank"],
        )

    def _sampler(self, number: int) -> Any:
        from optuna.samplers import NSGAIISampler, TPESampler

        seed = self.spec.seed * 100_003 + number
        if self.spec.strategy == "nsga2":
            return NSGAIISampler(population_size=max(4, min(20, size(self.axes) // 4)), seed=seed)
        startup = max(3, math.isqrt(size(self.axes)))
        return TPESampler(n_startup_trials=startup, multivariate=True, seed=seed)


def axes(spec: SearchSpec) -> dict[str, Sequence[Any]]:
    """Values of each axis of the search space; densities that no method can use are left out."""
    used = {c.density for c in grid(spec)}
    densities = sorted(set(spec.densities))
    return {
        "method": spec.methods,
        "density": [d for d in densities if d in used] or densities,
        "weights": spec.weights,
        "space": spec.spaces,
        "rank": spec.ranks,
    }


def size(axes: dict[str, Sequence[Any]]) -> int:
    """Return the number of points of the search space."""
    return math.prod(len(values) for values in axes.values())


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            f"The strategies tpe and nsga2 need Optuna, which is not installed: {INSTALL}. "
            "--strategy grid and refine work without it."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _storage(storage: str | Path) -> Any:
    """Journal storage for a file, database storage for a URL."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if isinstance(storage, str) and "://" in storage:
        return RDBStorage(storage, engine_kwargs={"pool_pre_ping": True})
    path = Path(storage)
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))
