"""Train one adapter or a whole model on an objective; a resumed training is bit-identical."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from math import gcd
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, set_seed
from transformers.integrations.integration_utils import TensorBoardCallback

from mergeforget.console import quiet, say
from mergeforget.data.schema import Row
from mergeforget.data.templating import RAW, PromptTemplate
from mergeforget.data.tokens import Encoded, check_token_ids
from mergeforget.data.twins import stands_in
from mergeforget.distributed import on_main, world_size
from mergeforget.files import explained, read_jsonl, reading, replacing, write_json, write_jsonl
from mergeforget.outputs import ANSWER
from mergeforget.recipe import Memorise, Term, Training
from mergeforget.run import Run
from mergeforget.train.alternates import alternate_rows
from mergeforget.train.arguments import arguments, callbacks_of, order_of, steps_per_epoch
from mergeforget.train.callbacks import Checkpoints, DualWeight, last_checkpoint, save_adapter
from mergeforget.train.checks import MeasuredSets, rows_per_pass
from mergeforget.train.dataset import PairedRows, collate_of
from mergeforget.train.early_stopping import PROXIES
from mergeforget.train.forward import as_reference, compiled_layers, output_matrix, unwrapped
from mergeforget.train.lora_targets import lora_config
from mergeforget.train.memory import CPU_TOKENS, Passes, fit_passes
from mergeforget.train.ngdiff_trainer import NGDiffTrainer
from mergeforget.train.objective import any_needs, mask_of
from mergeforget.train.precision import tensor_cores
from mergeforget.train.prompt_forms import other_forms, retain_variants
from mergeforget.train.reference import Reference, reference_of, reinforce
from mergeforget.train.samplers import ChunkedSampler
from mergeforget.train.together import Partners
from mergeforget.train.tokenize import (
    encode_sets,
    pad_id,
    places_of,
    row_per_example,
    twin_places,
    within_positions,
)
from mergeforget.train.trainer import UnlearningTrainer
from mergeforget.train.until import UntilController
from mergeforget.train.weighting import TokenScorer, entanglement_of
from mergeforget.train_config import Scorer, Until

MEASURED = ("holdout", "selected", "unseen", "imitations")  # sets that are only measured
CHECKPOINT_SECONDS = 60.0
REPEATED = 0.25  # share of repeated twins above which they are no substitute for unseen rows


@dataclass
class TrainingJob:
    """The run folder and stage that the files of a training belong to, and whether it resumes."""

    run: Run
    stage: str
    resume: bool = False
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    partners: Partners | None = None  # joins passes with those of another training

    @property
    def checkpoints(self) -> Path:
        """Folder of the trainer's checkpoints."""
        return self.run.root / "checkpoints" / self.stage


def train_adapter(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, Sequence[Row]],
    training: Training,
    job: TrainingJob,
    template: PromptTemplate = RAW,
    under: Until | None = None,
) -> Path:
    """Train a LoRA adapter on a base model and save it as a plain PEFT folder.

    Args:
        model: The base model; the adapter is removed again, and the weights are unchanged.
        sets: ``forget`` first, then ``retain``; ``holdout`` if ``watch`` measures it; with
            ``until`` also ``held``, ``selected`` and ``unseen`` of the selection split, and
            ``imitations``, the twins of ``unseen``.
        template: Template of the prompts.
        under: Condition of the under-forgetting adapter if it is a snapshot of this training; the
            snapshot is copied to ``run.root / "under"``.

    Returns:
        The adapter's folder, ``run.root / job.stage``.

    Raises:
        NumericError: A loss is not finite, or the adapter does not change.
        Interrupted: SIGTERM was received; the step is saved.
    """
    from peft import get_peft_model

    config = lora_config(model, **training.lora.model_dump(exclude_none=True))
    reinforced = None
    if any_needs(training.objective, "reinforced"):
        training = within_positions(model, training)
        reinforced = reinforce(model, tokenizer, sets, training, job, template)
    set_seed(training.seed)  # both adapters of a pair start with the same A
    with quiet():
        policy = get_peft_model(model, config)
    try:
        training = within_positions(model, training)
        others = None
        if any_needs(training.objective, "alternate"):
            with as_reference(policy):
                others = on_main(
                    lambda: alternate_rows(
                        policy, tokenizer, sets, job.run.root, file=training.alternates,
                        template=template, seed=training.seed, resume=job.resume,
                    )
                )  # fmt: skip
        encoded = encode_sets(tokenizer, sets, training, template, others)
        controller = None
        if training.until:
            sets = row_per_example(sets, encoded, training)
            sets = other_forms(tokenizer, sets, training, template, encoded)
            retain_places: list[int] = []
            if training.until.retain_variants:
                with as_reference(policy):
                    encoded["retain"], retain_places = retain_variants(
                        policy, tokenizer, sets["retain"], training, template, encoded["retain"]
                    )
            measured = _measured(sets, encoded, retain_places)
            encoded = _levels_of(measured, policy, sets, encoded, job.stage)
            controller = UntilController(
                training,
                measured,
                stage=job.stage,
                folder=job.run.snapshots,
                history=job.run.history,
                save=lambda folder: save_adapter(policy, folder),
                under=under,
            )
        reference = reference_of(policy, encoded, training, job.run.root)
        reference.reinforced = reinforced
        fit(
            policy,
            tokenizer,
            encoded,
            training.objective,
            training,
            job,
            snapshot=lambda step: save_adapter(policy, _snapshot(job, step)),
            reference=reference,
            controller=controller,
        )
        save_adapter(policy, job.run.root / job.stage)
        if controller is not None:
            _finish(controller, job, sets)
    finally:
        policy.unload()
    on_main(lambda: shutil.rmtree(job.checkpoints, ignore_errors=True))
    return job.run.root / job.stage


def _measured(
    sets: Mapping[str, Sequence[Row]],
    encoded: Mapping[str, Sequence[Encoded]],
    retain_places: Sequence[int] = (),
) -> MeasuredSets:
    """Return the sets that the checks of a training with ``until`` measure."""
    return MeasuredSets(
        encoded,
        twins={
            of: twin_places(sets, encoded, of, on)
            for of, on in (("held", "forget"), ("imitations", "unseen"))
        },
        selected=places_of(sets, encoded, "selected"),
        retain_places=retain_places,
        forms={name: [one.form for one in encoded.get(name, ())] for name in ("forget", "unseen")},
    )


def _levels_of(
    measured: MeasuredSets,
    policy: Any,
    sets: Mapping[str, Sequence[Row]],
    encoded: dict[str, list[Encoded]],
    stage: str,
) -> dict[str, list[Encoded]]:
    """Measure the levels of the rows under the base; return the sets to train on.

    They differ from ``encoded`` where the twins of forget rows give no level of unseen rows.
    """
    with as_reference(policy):
        measured.measure_levels(policy)
    if measured.repeated > REPEATED and all(map(stands_in, sets.get("unseen", ()))):
        measured.nothing_is_guessed()
    if not measured.known_groups:
        return encoded
    say(
        f"{stage}: the base knows the wording of forget rows, so that it predicts their twins too "
        "well. Their levels follow the twins of unseen rows, which are also held instead."
    )
    return {**encoded, "held": measured.to_hold()}


def levels_by_row(
    rows: Sequence[Row], examples: Sequence[Encoded], levels: Sequence[float]
) -> dict[str, float]:
    """Return the level of each row: the mean over the answer tokens of its examples.

    Args:
        rows: The row of each example.
        levels: Level of each example, in nats per token.
    """
    sums: dict[str, tuple[float, int]] = {}
    for row, one, level in zip(rows, examples, levels, strict=True):
        total, tokens = sums.get(row.id, (0.0, 0))
        own = one.kinds.count(ANSWER)
        sums[row.id] = (total + own * level, tokens + own)
    return {name: total / tokens for name, (total, tokens) in sums.items()}


def _finish(
    controller: UntilController, job: TrainingJob, sets: Mapping[str, Sequence[Row]]
) -> None:
    """Record how the training ended, and copy the snapshot that becomes ``under``."""
    last = controller.checks[-1]
    facts = {"outcome": controller.outcome, "step": last.step, "auc": last.auc,
             "forget_exact": last.forget_exact, "retain_exact": last.retain_exact}  # fmt: skip
    write = job.run.root / "until" / f"{job.stage}.json"
    step = controller.under_step(before=last.step)
    nearest_step = controller.nearest_under(before=last.step) if step is None else None
    if nearest_step is not None:
        say(
            f"{job.stage}: no step meets the condition of under; step {nearest_step}, the last on "
            "its side of the AUC bound, is used as under."
        )
        step = nearest_step

    def keep() -> None:
        base, measured = controller.base, controller.measured.levels
        examples = controller.measured.sets
        levels = {
            name: levels_by_row(sets[name], examples[name], measured[name].tolist())
            for name in measured
            if len(sets[name]) == len(measured[name])
        }
        write_json(write, facts | {"base": None if base is None else asdict(base),
                                   "under_step": step, "under_met": nearest_step is None,
                                   "levels": levels,
                                   "repeated_twins": controller.measured.repeated})  # fmt: skip
        if step is not None:
            with replacing(job.run.under) as temporary:
                shutil.copytree(controller.snapshot(step), temporary)

    on_main(keep)


def fit(
    model: Any,
    tokenizer: Any,
    sets: Mapping[str, Sequence[Encoded]],
    terms: Sequence[Term],
    training: Training | Memorise,
    job: TrainingJob,
    snapshot: Callable[[int], None] | None = None,
    reference: Reference | None = None,
    controller: UntilController | None = None,
) -> None:
    """Run the Trainer on tokenised sets; resume from the last checkpoint if ``job.resume``."""
    for every in sets.values():
        check_token_ids(model, [one.ids for one in every])
    plan = training if isinstance(training, Training) else None
    rows = _paired_rows(sets, plan, training.seed)
    # without a plan, a step is divided into one micro-batch per rank
    accumulation = plan.accumulation(len(rows)) if plan else gcd(training.batch_size, world_size())
    order = order_of(training, rows, accumulation)
    epoch_steps = steps_per_epoch(order, accumulation)
    dual = DualWeight.of(plan.dual, terms, epoch_steps) if plan is not None and plan.dual else None
    callbacks = callbacks_of(training, sets, rows, order, job, dual, controller, snapshot)
    passes = _passes(model, sets, plan, job)
    steering = plan is not None and plan.direction != "sum"
    more: dict[str, Any] = {"training": plan} if steering else {}
    one_pass = {"num_train_epochs": 1} if isinstance(order, ChunkedSampler) else {}
    if plan is not None and plan.until is not None:
        most = plan.most_steps(rows_per_pass(sets["forget"]))
        say(f"{job.stage}: at most {most} steps")
        one_pass = {"max_steps": most}
    trainer = (NGDiffTrainer if steering else UnlearningTrainer)(
        terms=terms,
        stage=job.stage,
        history=job.run.history,
        reference=reference or Reference(head=output_matrix(model)),
        order=order,
        accumulation=accumulation,
        budget=passes.tokens,
        robust=plan.robust if plan is not None else None,
        model=model,
        args=arguments(
            training,
            job.checkpoints,
            steps_per_epoch=epoch_steps,
            accumulation=-(-accumulation // world_size()),
            gradient_checkpointing=passes.checkpointing,
            save_total_limit=2,  # a spare one, in case the newest is damaged
            run_name=f"{job.run.name}-{job.stage}",
            project="mergeforget",
            **one_pass,
        ),
        train_dataset=rows,
        data_collator=collate_of(mask_of(terms), plan, pad_id(tokenizer)),
        callbacks=callbacks,
        **more,
    )
    if dual is not None:
        dual.trainer = trainer
    if controller is not None:
        controller.trainer = trainer
    trainer.partners = job.partners
    if plan is not None:
        _add_weights(trainer, model, sets, plan)
    with compiled_layers(model) if plan is not None and plan.compile else nullcontext():
        _run(trainer, job, controller)


def _paired_rows(
    sets: Mapping[str, Sequence[Encoded]], plan: Training | None, seed: int
) -> PairedRows:
    """Return the forget rows with their partners from the other sets that are trained on."""
    return PairedRows(
        {name: rows for name, rows in sets.items() if name not in MEASURED},
        seed=seed,
        same_index=plan is not None and plan.retain_rows == "same_index",
        partners=plan.retain_per_forget if plan else 1,
        cyclic=bool(plan and plan.chunk_rows),
        staged=bool(plan and plan.folds),
    )


def _passes(
    model: Any, sets: Mapping[str, Sequence[Encoded]], plan: Training | None, job: TrainingJob
) -> Passes:
    """Return the size of a pass; a training that needs checkpointing leaves its partners."""
    if plan is None:
        return Passes(CPU_TOKENS, False)
    partners = job.partners
    trainings = 2 if partners is not None and partners.joined else 1
    passes = fit_passes(model, sets, plan, job.stage, trainings=trainings)
    if partners is not None and passes.checkpointing:
        partners.separate(f"{job.stage} needs gradient checkpointing")
    return passes


def _add_weights(
    trainer: UnlearningTrainer, model: Any, sets: Mapping[str, Sequence[Encoded]], plan: Training
) -> None:
    """Give the trainer the scorer of atwu and the efforts of egup, where the objective has them."""
    scored = [t for t in plan.objective if any_needs([t], "scores")]
    if scored:
        config = unwrapped(model).config.get_text_config()
        device = next(model.parameters()).device
        spec = plan.scorer or Scorer()
        trainer.scorer = TokenScorer(int(config.hidden_size), spec, scored[0], device)
    if any_needs(plan.objective, "efforts"):
        trainer.entanglement = entanglement_of(model, sets, folds=plan.folds or 0)


def _run(trainer: UnlearningTrainer, job: TrainingJob, controller: UntilController | None) -> None:
    """Train from the beginning or from the last checkpoint."""
    trainer.remove_callback(PrinterCallback)
    for callback in trainer.callback_handler.callbacks:
        if isinstance(
            callback, TensorBoardCallback
        ):  # its default is the checkpoint folder, which is deleted
            callback.logging_dir = str(job.run.root / "tensorboard" / job.stage)
    start = on_main(lambda: _start(job))
    step = step_of(start)
    if controller is not None and start is not None:
        if on_main(lambda: controller.ended_with(step)):
            controller.take_end(trainer.model, step, start)
            return
    try:
        with explained(job.checkpoints), quiet(), tensor_cores():
            trainer.train(resume_from_checkpoint=str(start) if start else None)
    finally:
        _close_reports()
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, Checkpoints):
                callback.restore()
    trainer.accelerator.free_memory()


def _close_reports() -> None:
    """Finish the run at Weights & Biases, which the Trainer leaves open for the next stage."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None:
        wandb.finish()


def _start(job: TrainingJob) -> Path | None:
    """Return the checkpoint to resume from; later lines of the history are removed."""
    start = last_checkpoint(job.checkpoints) if job.resume else None
    step = step_of(start)
    for file in (job.run.history, job.run.root / PROXIES):
        _forget_lines(file, job.stage, step)
    if start is not None:
        say(f"{job.stage}: resuming from {start.name.replace('-', ' ')}")
    else:
        shutil.rmtree(job.checkpoints, ignore_errors=True)
    return start


def step_of(checkpoint: Path | None) -> int:
    """Return the step of a checkpoint; -1 without one, since checks are recorded from step 0."""
    return int(checkpoint.name.split("-")[1]) if checkpoint else -1


def _snapshot(job: TrainingJob, step: int) -> Path:
    return job.run.snapshots / f"{job.stage}-step{step:05d}"


def _forget_lines(path: Path, stage: str, step: int) -> None:
    """Remove the lines of a stage after ``step``; the resumed training writes them again."""
    lines = read_jsonl(path)
    with reading(path):
        remaining = [x for x in lines if x.get("stage") != stage or x.get("step", 0) <= step]
    if len(remaining) < len(lines):
        write_jsonl(path, remaining)
