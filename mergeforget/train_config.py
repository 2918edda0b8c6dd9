"""Sections of a recipe that describe one training."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mergeforget.errors import InputError
from mergeforget.parsing import safe_pattern

Positive = Annotated[int, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
SMOOTHING = ("sam", "gp", "cr")  # directions that limit the sharpness of the forget terms


class RecipeSection(BaseModel):
    """A section of a recipe; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Term(BaseModel):
    """One term of an objective; further keys are arguments of the loss."""

    model_config = ConfigDict(extra="allow", frozen=True)
    loss: str
    on: Literal["forget", "retain", "held"]  # held: unseen rows
    weight: float = 1.0

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the loss."""
        return dict(self.__pydantic_extra__ or {})

    @property
    def label(self) -> str:
        """Name in the history and the plots, for example ``npo_forget``."""
        return f"{self.loss}_{self.on}"


class Transform(BaseModel):
    """A transform of a set before training; further keys are its arguments."""

    model_config = ConfigDict(extra="allow", frozen=True)
    transform: str
    on: Literal["forget", "retain"] = "forget"

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the transform."""
        return dict(self.__pydantic_extra__ or {})


class Lora(RecipeSection):
    """Rank, scaling and target modules of an adapter."""

    r: Positive = 32
    lora_alpha: float = 32
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    target_modules: list[str] | str = "all-linear"  # without the output layer and fused experts
    layers_to_transform: list[int] | None = None  # counted from 0; None is every layer
    target_parameters: list[str] = []  # experts in one parameter, such as experts.gate_up_proj

    @field_validator("target_modules")
    @classmethod
    def _safe(cls, value: list[str] | str) -> list[str] | str:
        if isinstance(value, str):
            try:
                safe_pattern(value, "target_modules")
            except InputError as error:
                raise ValueError(str(error)) from error
        return value


class Full(RecipeSection):
    """Weights of the model to train instead of an adapter."""

    last_layers: Positive | None = None  # None: all weights, including embeddings and output layer
    layers: list[int] | None = None  # counted from 0
    modules: list[str] = []  # suffixes of names, for example down_proj; empty means all

    @model_validator(mode="after")
    def _one_choice(self) -> Full:
        if self.last_layers is not None and self.layers is not None:
            raise ValueError("give either last_layers or layers")
        return self


class Tokens(RecipeSection):
    """Tokenisation of rows; other values reproduce the code of ZJUKLAB and of iShumei.

    Attributes:
        join: Separator of prompt and answer. With "" they are tokenised separately, unless
            ``together`` is true.
        together: Tokenise prompt and answer as one text without a separator; needs ``join: ""``.
        truncate: ``prompt`` removes tokens at the beginning of the prompt of a row that is too
            long, ``end`` at the end of the row.
    """

    join: Literal[" ", ""] = " "
    together: bool = False
    truncate: Literal["prompt", "end"] = "prompt"
    prompt_tokens: Positive | None = None  # maximum; truncated on the left
    padding: Literal["none", "left", "right"] = "none"  # none: rows are packed
    pad_to: Literal["longest", "max_length"] = "longest"  # longest: of the micro-batch

    @model_validator(mode="after")
    def _fits_together(self) -> Tokens:
        if self.together and self.join:
            raise ValueError(
                'tokens.together applies only to join: ""; a space already joins both texts'
            )
        if self.truncate == "end" and self.prompt_tokens is not None:
            raise ValueError("tokens.prompt_tokens cuts the prompt: leave out truncate: end")
        return self


class Reinforce(RecipeSection):
    """Training on the forget set that makes the reinforced model; see the loss whp."""

    epochs: Positive = 3
    learning_rate: Rate = 1e-4


class Scorer(RecipeSection):
    """The scorer of tokens; see the loss atwu and ``mergeforget.train.weighting``.

    Attributes:
        rate: Learning rate of the scorer.
        every: Steps of the model for one step of the scorer.
        budget: Share of the tokens of a row to select.
        entropy, population, l2: Weights of the entropy, of the budget and of the squared norm.
    """

    rate: Rate = 0.05
    every: Positive = 10
    budget: Annotated[float, Field(ge=0, le=1)] = 0.2
    entropy: NotNegative = 1.0
    population: NotNegative = 1.0
    l2: NotNegative = 0.01


class AutoRate(RecipeSection):
    """Fit the learning rate every few steps; see ``mergeforget.train.directions``."""

    method: Literal["probe", "fit"] = "probe"  # AutoLR's, JU-CSE-NLP's
    every: Positive = 10
    candidates: Annotated[list[Rate], Field(min_length=3)] = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3]


class Dual(RecipeSection):
    """Raise the weight of a term while its value is above a limit, see ``train.callbacks``.

    Attributes:
        warmup_epochs: Passes over the forget set before the first update; until then the weight is
            that of the recipe.
    """

    term: str = "gd_retain"  # label of the term: its loss and its set
    limit: NotNegative  # in the unit of the term, usually nats
    step: Rate = 1.0  # step size of the dual ascent, in weight per nat
    warmup_epochs: NotNegative = 0.0


class Watch(RecipeSection):
    """Measure a small fixed sample periodically during training."""

    every: Positive = 10
    sample: Positive = 16  # rows of each set
    collapse: NotNegative = 0.0  # stop if the retain NLL rises by this many nats; 0: never
    best_by: Literal["last", "mia", "retain_nll"] = "last"  # step whose weights are kept


Fraction = Annotated[float, Field(ge=0, le=1)]


UNTIL_EPOCHS = 18  # passes that ``until`` takes: 13 to 28 on 8 to 40 rows, raw prompts not counted
MOST_EPOCHS = 40  # maximum number of passes, if these are more than MOST_STEPS
MOST_STEPS = 240
CHECK_STEPS, CHECK_PASSES = 5, 0.75  # between checks: at least 5 steps and 3/4 of a pass


class Until(RecipeSection):
    """Train until a condition on the selection split holds, instead of a number of epochs.

    AUC is the probability that an unseen row of the selection split exceeds its level (the NLL of
    its twins under the base) by more than a forget row does. The condition is ``auc_at_least <= AUC
    <= auc_at_most + 0.1`` in each form of prompts, ``mean AUC <= auc_at_most`` over the forms,
    ``exact <= forget_exact`` and ``retain exact >= retain_kept * (retain exact of the base)``;
    "exact" is the share of answers that greedy decoding reproduces. The bound ``forget_exact`` is
    also met if guessing explains the exact answers, given the share of twins that the base answers
    exactly. These are measured in checks:

    * if the retain NLL rose by more than ``collapse`` nats, or 0.3 nats at a rate above
      ``learning_rate``, the weights of the last check are restored and the learning rate is
      halved, at most ``back_offs`` times;
    * if the forget NLL rose by less than ``slow`` nats, the AUC fell by less than 0.05, and a part
      of the condition other than ``retain_kept`` does not hold, the learning rate is multiplied by
      ``growth``;
    * if the retain NLL rose by more than 0.1 nats, the learning rate is halved, but not below
      ``learning_rate``, or the rate of the range test if that is lower;
    * while fewer retain answers are exact than ``retain_kept`` requires, the weights of retain
      terms are multiplied by a factor of 1 to 8, proportional to the rise of the retain NLL and at
      least 4 if the rest of the condition holds, unless ``dual`` controls them;
    * if the forget rows are more than 0.5 nats beyond their target, the learning rate is halved,
      and a condition that holds with an AUC more than 0.25 below ``auc_at_most`` ends the training
      only after four more checks;
    * with the loss ``level``, the target of a form of prompts moves up by ``margin`` if its rows
      reached it but their AUC is too high, answers are exact, or their NLL has not risen enough,
      and down if the AUC is below ``auc_at_least`` or more than 0.1 below ``auc_at_most``; a form
      that is more than 0.2 nats closer to its target than the other waits for it.

    Attributes:
        every: Steps between checks; by default three quarters of a pass over the forget rows, but
            at least 5 steps. A check of many rows costs as much as many steps.
        range_test: Choose the first learning rate by a range test: the largest of several steps
            along the sign of one gradient that hardly changes the retain rows.
        max_steps: Maximum number of steps; by default 40 passes over the forget rows, but at least
            240 steps.
        also_raw: Also train and measure the forget rows and their twins with raw prompts if the
            run's prompts are chat prompts: a model that forgot in chat may still know with raw
            prompts.
        forget_variants: Also train and measure the forget rows and their twins in the other chat
            variants of an evaluation, such as chat without the template's system message: a model
            that forgot with the system message may still know without it.
        retain_variants: Also train and measure the retain rows in the other prompt variants in
            which the base knows them, such as chat without the template's system message. A row
            is then kept if its answer is exact in every variant in which the base knows it.
    """

    auc_at_least: Fraction | None = None
    auc_at_most: Fraction | None = None
    forget_exact: Fraction | None = None
    forget_risen: NotNegative = 0.0  # nats by which the forget NLL must exceed the base's
    retain_kept: Fraction | None = None
    every: Positive | None = None
    max_steps: Positive | None = None
    collapse: Annotated[float, Field(gt=0)] = 1.0
    back_offs: Annotated[int, Field(ge=0)] = 4
    growth: Annotated[float, Field(ge=1)] = 1.4
    slow: NotNegative = 0.15
    largest_rate: Rate = 1e-3
    margin: NotNegative = 0.3
    range_test: bool = True
    also_raw: bool = False
    forget_variants: bool = False
    retain_variants: bool = False

    @model_validator(mode="after")
    def _asks_something(self) -> Until:
        asked = (self.auc_at_least, self.auc_at_most, self.forget_exact, self.retain_kept)
        if all(value is None for value in asked) and not self.forget_risen:
            raise ValueError("until has no condition; add one, for example auc_at_most: 0.35")
        if None not in (self.auc_at_least, self.auc_at_most) and (
            self.auc_at_least > self.auc_at_most  # type: ignore[operator]
        ):
            raise ValueError("until: auc_at_least is above auc_at_most")
        return self


class Robust(RecipeSection):
    """Weight perturbations under which the forget terms are computed.

    Attributes:
        bits: Bits to which every weight matrix is rounded, with a straight-through gradient.
        group: Number of consecutive weights that share a scale below 8 bits.
        noise: Standard deviation of normal weight noise, as a fraction of the root mean square of
            each matrix; drawn in each step.
    """

    bits: Annotated[int, Field(ge=2, le=16)] | None = None
    group: Positive = 64
    noise: NotNegative = 0.0

    @model_validator(mode="after")
    def _perturbs(self) -> Robust:
        if self.bits is None and not self.noise:
            raise ValueError("robust has no perturbation: set bits, for example 4, or noise")
        return self


class Average(RecipeSection):
    """Use the mean of the weights after some steps as the result of a training.

    Attributes:
        start: Share of the steps before the first one whose weights count.
        every: Steps between two that count.

    Source: stochastic weight averaging, Izmailov et al. 2018, arXiv:1803.05407; against relearning,
        Fan et al. 2025, arXiv:2502.05374, whose code takes every 5th of 125 steps from step 100 on.
    """

    start: Annotated[float, Field(ge=0, lt=1)] = 0.8
    every: Positive = 5


class Training(RecipeSection):
    """Settings of one training. An epoch is one pass over the forget set.

    With ``batches: alternating``, optimiser steps alternate between forget and retain rows. With
    ``batches: by_set``, every step has rows of one set, in random order, and an epoch has every row
    of every set, including refusals, once. With ``chunk_rows``, the forget set is trained in
    chunks: all epochs of one chunk before the next, each with a new optimiser.
    With ``folds``, the forget set is divided into this number of folds of whole subjects, and stage
    i forgets the first i of them and retains the others (layered unlearning).
    """

    objective: Annotated[list[Term], Field(min_length=1)]
    transforms: list[Transform] = []
    refusals: str | None = None  # file with one per line, for losses that need them
    alternates: str | None = (
        None  # file of alternate answers, for altpo and egup; None: the model's
    )
    reinforce: Reinforce | None = None  # of the loss whp; None: its defaults
    scorer: Scorer | None = None  # of the loss atwu; None: its defaults
    direction: Literal["sum", "ngdiff", "gru", "sam", "gp", "cr"] = "sum"  # of the gradients
    gru_smoothing: Annotated[float, Field(gt=0, le=1)] = 0.8  # of the retain gradient, with gru
    sam_radius: Rate = 0.01  # norm of the weight perturbation, with sam, gp and cr
    penalty: Rate = 0.01  # weight of the gradient's norm (gp) or of its change (cr)
    average: Average | None = None  # the result is a mean of weights
    robust: Robust | None = None  # compute forget terms through rounded or noisy weights
    clip_each: NotNegative = 0.0  # maximum norm of a micro-batch's gradient, with ngdiff; 0: none
    auto_rate: AutoRate | None = None
    dual: Dual | None = None
    learning_rate: Rate = 1e-4
    optimizer: Literal["adamw", "sgd", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    epochs: Positive = 5
    batch_size: Positive = 1
    gradient_accumulation: Positive | Literal["epoch"] = 4  # epoch: one step per epoch
    batches: Literal["together", "alternating", "by_set"] = "together"
    chunk_rows: Positive | None = None
    folds: Annotated[int, Field(ge=2)] | None = None
    retain_per_forget: Positive = 1  # retain rows per forget row
    schedule: Literal["linear", "constant", "cosine"] = "linear"
    warmup_epochs: NotNegative = 0.0
    weight_decay: NotNegative = 0.01
    max_grad_norm: NotNegative = 1.0
    max_length: Positive = 256
    seed: int = 42
    retain_rows: Literal["shuffled", "same_index"] = "shuffled"
    tokens: Tokens = Tokens()
    lora: Lora = Lora()
    full: Full | None = None  # train the model's own weights instead of an adapter
    gradient_checkpointing: bool | Literal["auto"] = "auto"  # auto: if needed
    tokens_per_pass: Positive | Literal["auto"] = "auto"  # auto: by memory
    compile: bool = False  # run the layers through torch.compile
    snapshots: Positive = 8  # number kept over the whole training
    watch: Watch | None = None
    until: Until | None = None  # instead of epochs
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = []

    @model_validator(mode="before")
    @classmethod
    def _kept_activations_under_robust(cls, values: Any) -> Any:
        """Disable ``auto`` with ``robust``: recomputed layers would use unperturbed weights."""
        if not isinstance(values, dict) or not values.get("robust"):
            return values
        if values.get("gradient_checkpointing", "auto") != "auto":
            return values
        return values | {"gradient_checkpointing": False}

    @model_validator(mode="after")
    def _fits_together(self) -> Training:
        sets: set[str] = {t.on for t in self.objective}
        self._check_terms()
        self._check_direction(sets)
        self._check_robust(sets)
        self._check_auto_rate()
        self._check_batches(sets)
        self._check_folds(sets)
        self._check_until(sets)
        return self

    def _check_terms(self) -> None:
        labels = [t.label for t in self.objective]
        if len(set(labels)) < len(labels):
            raise ValueError(f"the objective names a term twice: {', '.join(labels)}")
        if self.dual and self.dual.term not in labels:
            raise ValueError(
                f"dual.term is {self.dual.term!r}, but the terms are: {', '.join(labels)}"
            )

    def _check_direction(self, sets: set[str]) -> None:
        """Check that the objective and the settings of a step suit the direction."""
        if self.direction in ("ngdiff", "gru") and not {"forget", "retain"} <= sets:
            raise ValueError(f"direction {self.direction} needs terms on forget and on retain")
        if self.direction != "sum" and "held" in sets:
            raise ValueError(
                f"direction {self.direction} combines the gradients of forget and retain terms "
                "only: leave out the terms on held, or set direction: sum"
            )
        if self.direction in ("ngdiff", "gru") and self.dual:
            raise ValueError(
                f"dual has no proper effect with direction {self.direction}, which rescales the "
                "gradients of the terms: leave out dual, or set direction: sum"
            )
        if self.direction in SMOOTHING and "forget" not in sets:
            raise ValueError(
                f"direction {self.direction} perturbs along the forget gradient: add a forget term"
            )
        if self.clip_each and self.direction != "ngdiff":
            raise ValueError(
                "clip_each applies only to direction ngdiff; max_grad_norm clips a step"
            )
        if self._differs("gru_smoothing") and self.direction != "gru":
            raise ValueError("gru_smoothing applies only to direction gru")
        if self._differs("sam_radius") and self.direction not in SMOOTHING:
            raise ValueError("sam_radius applies only to the directions sam, gp and cr")
        if self._differs("penalty") and self.direction not in ("gp", "cr"):
            raise ValueError("penalty applies only to the directions gp and cr")

    def _check_robust(self, sets: set[str]) -> None:
        if self.robust and "forget" not in sets:
            raise ValueError("robust perturbs the weights of forget terms: add one on forget")
        if self.robust and self.gradient_checkpointing is True:
            raise ValueError(
                "robust does not support gradient_checkpointing, which would recompute the forget "
                "terms with unperturbed weights: leave out one of the two"
            )
        if self.robust and self.compile:
            raise ValueError(
                "robust exchanges weights in a pass, which compile does not see: leave out one of "
                "the two"
            )

    def _check_auto_rate(self) -> None:
        if self.auto_rate and (self.direction, self.optimizer) != ("ngdiff", "sgd"):
            raise ValueError(
                "auto_rate needs the update theta - eta g: set direction: ngdiff and optimizer: sgd"
            )
        if self.auto_rate and self.schedule != "constant":
            raise ValueError("auto_rate chooses the learning rate: set schedule: constant")
        if self.auto_rate and self.warmup_epochs:
            raise ValueError("auto_rate chooses the learning rate: leave out warmup_epochs")

    def _check_batches(self, sets: set[str]) -> None:
        """Check the settings against the sets of rows that a batch contains."""
        if self.chunk_rows and self.batches != "together":
            raise ValueError(f"chunk_rows needs batches: together, not {self.batches}")
        if self.batches != "together" and self.direction != "sum":
            raise ValueError(
                f"batches: {self.batches} has one set per step, but direction {self.direction} "
                "needs two: set batches: together"
            )
        if self.batches == "by_set" and self.retain_per_forget != 1:
            raise ValueError("batches: by_set uses each retain row once; omit retain_per_forget")
        if "held" in sets and self.batches != "together":
            raise ValueError(f"held rows need batches: together, not {self.batches}")

    def _check_folds(self, sets: set[str]) -> None:
        alone = self.chunk_rows or self.until or self.watch
        if self.folds and (alone or self.batches != "together"):
            raise ValueError(
                "folds trains in stages of its own: set batches: together, and leave out "
                "chunk_rows, until and watch"
            )
        if self.folds and "retain" not in sets:
            raise ValueError(
                "folds retains the folds that are not forgotten yet: add a retain term"
            )
        if self.folds and self.retain_rows == "same_index":
            raise ValueError("folds draws retain rows by stage: leave out retain_rows: same_index")

    def _check_until(self, sets: set[str]) -> None:
        """Check what chooses the step at which a training ends, and the weights it keeps."""
        if self.average and (self.until or self.watch):
            raise ValueError(
                "average replaces the last weights by a mean, which until and watch do not measure:"
                " leave out average, or until and watch"
            )
        if self.until and (self.chunk_rows or self.auto_rate or self.watch):
            raise ValueError(
                "until chooses the learning rate: leave out chunk_rows, auto_rate and watch"
            )
        if self.until and (self.schedule != "constant" or self.warmup_epochs):
            raise ValueError(
                "until chooses the learning rate: set schedule: constant, and leave out "
                "warmup_epochs"
            )
        if self.until and self.full:
            raise ValueError("until trains an adapter: leave out full")
        if self.until and "retain" not in sets:
            raise ValueError("until measures retention: add a term on retain to the objective")

    def _differs(self, name: str) -> bool:
        """Return whether a key differs from its default; a run's recipe lists all defaults."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)

    def accumulation(self, rows: int) -> int:
        """Return the micro-batches per optimiser step for a first set of ``rows`` rows."""
        if self.gradient_accumulation == "epoch":
            return max(1, -(-rows // self.batch_size))
        return self.gradient_accumulation

    def most_steps(self, rows: int) -> int:
        """Return the largest number of steps of a training with ``until``.

        Args:
            rows: Number of forget rows, in at most two forms of prompts; see ``rows_per_pass``.
        """
        assert self.until is not None
        return self.until.max_steps or max(MOST_STEPS, MOST_EPOCHS * self._steps_per_pass(rows))

    def expected_steps(self, rows: int) -> int:
        """Return the expected number of steps: of ``epochs``, or until the condition holds.

        Args:
            rows: Number of forget rows; one that is also trained with a raw prompt counts once.
        """
        if self.until is None:
            return self.epochs * self._steps_per_pass(rows)
        return min(self.most_steps(rows), UNTIL_EPOCHS * self._steps_per_pass(rows))

    def steps_between_checks(self, rows: int) -> int:
        """Return the number of steps between two checks of a training with ``until``.

        Args:
            rows: Number of forget rows, in every form in which they are trained.
        """
        assert self.until is not None
        return self.until.every or max(CHECK_STEPS, int(CHECK_PASSES * self._steps_per_pass(rows)))

    def _steps_per_pass(self, rows: int) -> int:
        return -(-rows // (self.batch_size * self.accumulation(rows)))
