"""A search guided by optuna: candidates are asked for and their ranks are told.

The history lies in a journal file, or in a PostgreSQL or MySQL database that workers on many
machines share. Each candidate is drawn with a seed of its own, so a search that was killed goes on
as if it had not been.
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
from mergeforget.search.grid import build
from mergeforget.search.objective import Rank

FLOOR_MISSED = 10.0  # a missed floor weighs more than any value, which is at most about 1
CUT_OFF = "cut_off"
ABANDONED = timedelta(hours=1)  # after so long a worker that told nothing is taken for dead
DRIVERS = (
    "PostgreSQL: pip install 'psycopg[binary]'. MySQL: pip install pymysql, and write the address "
    "as mysql+pymysql://..."
)
OPENINGS = 3  # trials of opening a storage
UNWRITTEN = 10.0  # seconds after which a trial without values is a killed worker's
PAUSE = 0.2  # seconds before another look
INSTALL = "pip install 'mergeforget[search]'"


class OptunaStudy:
    """What was asked and told so far, and what to try next."""

    def __init__(self, spec: SearchSpec, storage: str | Path, name: str) -> None:
        """Open or begin a study.

        Args:
            storage: a journal file, or a URL ``postgresql://``, ``mysql://`` or ``sqlite://``.
            name: of the study; workers with the same name share it.

        Raises:
            InputError: optuna is not installed, or the storage cannot be opened.
        """
        optuna = _optuna()
        self.spec = spec
        self.axes = axes(spec)
        directions = ["maximize"] * (1 if spec.strategy == "tpe" else 2)
        for left in reversed(range(OPENINGS)):  # two workers that begin at once make one schema
            try:
                self.study = optuna.create_study(
                    study_name=name,
                    storage=_storage(storage),
                    directions=directions,
                    load_if_exists=True,
                )
                return
            except MergeforgetError:
                raise
            except ImportError as error:
                raise InputError(
                    f"The database of {storage} is reached through a package that is not "
                    f"installed ({error.__cause__ or error}). {DRIVERS}"
                ) from error
            except Exception as error:
                if not left:
                    raise InputError(f"Cannot open the study in {storage}: {error}") from error
                time.sleep(PAUSE)

    def suggest(self, first: float | None = None) -> tuple[Any, Candidate]:
        """The next trial and its candidate.

        Args:
            first: a density that the very first candidate shall have, or the nearest to it.
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
        """The candidate at the first place of every axis."""
        return self._candidate(dict.fromkeys(self.axes, 0))

    def taken(self, trial: Any) -> bool:
        """Whether an earlier trial, of this or another worker, stands for the same candidate.

        Of two workers that ask at the same time the one with the lower number has it. The values of
        a trial that was just begun may not be written yet: they are waited for.
        """
        deadline = time.monotonic() + UNWRITTEN
        while True:
            earlier = [t for t in self._alive() if t.number < trial.number]
            if any(t.params == trial.params for t in earlier):
                return True
            whole = all(t.params.keys() == self.axes.keys() for t in earlier)
            if whole or time.monotonic() > deadline:
                return False
            time.sleep(PAUSE)

    def busy(self) -> bool:
        """Whether a worker is at a candidate."""
        return any(not t.state.is_finished() for t in self._alive())

    def give_up(self, trial: Any) -> None:
        """Leave a candidate to the worker that has it."""
        self.fail(trial)

    def cut_off(self) -> None:
        """Set aside trials that a killed search left unfinished; new ones take their places."""
        states = _optuna().trial.TrialState
        for left in self.study.get_trials(deepcopy=False, states=[states.RUNNING]):
            self.study._storage.set_trial_user_attr(left._trial_id, CUT_OFF, True)
            self.study.tell(left.number, state=states.FAIL)

    def tell(self, trial: Any, rank: Rank, scores: Sequence[Score]) -> None:
        """The rank of a trial's candidate, and its scores, for whoever ends the search."""
        trial.set_user_attr("scores", [score.to_dict() for score in scores])
        value = rank.value + FLOOR_MISSED * rank.shortfall
        self.study.tell(trial, value if self.spec.strategy == "tpe" else (rank.forget, rank.retain))

    def fail(self, trial: Any) -> None:
        """The trial's candidate gives no numbers."""
        self.study.tell(trial, state=_optuna().trial.TrialState.FAIL)

    def finished(self) -> list[Any]:
        """The trials that were told a rank, by any worker."""
        complete = _optuna().trial.TrialState.COMPLETE
        return list(self.study.get_trials(deepcopy=False, states=[complete]))

    def candidate_of(self, trial: Any) -> Candidate:
        """What a trial stands for."""
        return self._candidate(trial.params)

    def _alive(self) -> list[Any]:
        """Trials that were told, and those that a worker is at."""
        states = _optuna().trial.TrialState
        trials = self.study.get_trials(deepcopy=False, states=[states.COMPLETE, states.RUNNING])
        oldest = datetime.now() - ABANDONED
        return [t for t in trials if t.state.is_finished() or t.datetime_start > oldest]

    def _enqueue(self, density: float) -> None:
        densities = self.axes["density"]
        nearest = min(range(len(densities)), key=lambda i: abs(densities[i] - density))
        self.study.enqueue_trial({key: 0 for key in self.axes} | {"density": nearest})

    def _distributions(self) -> dict[str, Any]:
        """Densities are places in a sorted list, so that near ones are known to be near."""
        from optuna.distributions import CategoricalDistribution, IntDistribution

        return {
            key: IntDistribution(0, len(values) - 1)
            if key == "density"
            else CategoricalDistribution(list(range(len(values))))
            for key, values in self.axes.items()
        }

    def _candidate(self, params: dict[str, int]) -> Candidate:
        chosen = {key: self.axes[key][place] for key, place in params.items()}
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
    """What a search varies, and the values of each."""
    return {
        "method": spec.methods,
        "density": sorted(set(spec.densities)),
        "weights": spec.weights,
        "space": spec.spaces,
        "rank": spec.ranks,
    }


def size(axes: dict[str, Sequence[Any]]) -> int:
    """How many points the axes have."""
    return math.prod(len(values) for values in axes.values())


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise InputError(
            f"The strategies tpe and nsga2 need optuna, which is not installed: {INSTALL}. "
            "--strategy grid needs nothing."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _storage(storage: str | Path) -> Any:
    """A journal for a file, a database for a URL."""
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    if isinstance(storage, str) and "://" in storage:
        return RDBStorage(storage, engine_kwargs={"pool_pre_ping": True})
    path = Path(storage)
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))
