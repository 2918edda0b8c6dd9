"""Parts of other packages that are not documented: each one is listed here and still exists.

A failure names what moved in which package, and which of our modules uses it. Correct that module,
or lower the upper bound in pyproject.toml, which every package of this list has.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "mergeforget"
TRAINER = "transformers.Trainer"
INTERNALS: dict[str, list[str]] = {  # our module -> the undocumented interfaces that it uses
    "console.py": ["transformers.utils.logging.is_progress_bar_enabled"],
    "evaluate/decoding.py": ["transformers.cache_utils.DynamicLayer"],
    "evaluate/float32_pass.py": [
        "torch.nn.Module._parameters",
        "transformers.PretrainedConfig._attn_implementation",
    ],
    "evaluate/self_check.py": ["transformers.PretrainedConfig._attn_implementation"],
    "fsdp.py": ["transformers.distributed.configuration_utils.DistributedConfig"],
    "merge/checkpoint/adapter_deltas.py": ["transformers.pytorch_utils.Conv1D"],
    "merge/checkpoint/saved_names.py": [
        "transformers.core_model_loading.revert_weight_conversion",
        "transformers.pytorch_utils.Conv1D",
    ],
    "merge/mergekit_bridge.py": [
        "mergekit.config.MergeConfiguration",
        "mergekit.merge.run_merge",
        "mergekit.merge_methods.registry.registered_methods",
        "mergekit.options.MergeOptions",
    ],
    "models.py": ["transformers.PretrainedConfig._name_or_path"],
    "search/optuna_study.py": [
        "optuna.distributions.CategoricalDistribution",
        "optuna.distributions.IntDistribution",
        "optuna.samplers.NSGAIISampler",
        "optuna.samplers.TPESampler",
        "optuna.storages.JournalStorage",
        "optuna.storages.RDBStorage",
        "optuna.storages.journal.JournalFileBackend",
        "optuna.trial.FrozenTrial._trial_id",
    ],
    "train/callbacks.py": ["transformers.trainer_callback.ExportableState"],
    "train/fit.py": ["transformers.integrations.integration_utils.TensorBoardCallback"],
    "train/forward.py": ["transformers.PretrainedConfig._attn_implementation"],
    "train/joined_adapters.py": ["peft.tuners.lora.LoraLayer"],
    "train/lora_targets.py": [
        "peft.tuners.tuners_utils.check_target_module_exists",
        "peft.utils.transformers_weight_conversion.convert_peft_adapter_state_dict_for_transformers",
        "peft.utils.transformers_weight_conversion._MODEL_TO_CONVERSION_PATTERN",
        "peft.utils.transformers_weight_conversion._MOE_TARGET_MODULE_MAPPING",
        "transformers.pytorch_utils.Conv1D",
    ],
    "train/memory.py": [
        "torch.UntypedStorage._cdata",
        "transformers.PretrainedConfig._attn_implementation",
    ],
    "train/ngdiff_trainer.py": [
        "accelerate.state.GradientState._set_sync_gradients",
        f"{TRAINER}._load_optimizer_and_scheduler",
        f"{TRAINER}._prepare_inputs",
        f"{TRAINER}._save_optimizer_and_scheduler",
        f"{TRAINER}.get_batch_samples",
    ],
    "train/packing_check.py": ["transformers.PretrainedConfig._attn_implementation"],
    "train/perturbed.py": ["peft.tuners.lora.LoraLayer"],
    "train/plan.py": [
        "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu",
        "torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward",
        "transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS",
    ],
    "train/reference.py": ["transformers.PretrainedConfig._name_or_path"],
    "train/together.py": ["accelerate.state.GradientState", f"{TRAINER}._prepare_inputs"],
    "train/trainer.py": [
        f"{TRAINER}._get_grad_norm",
        f"{TRAINER}._get_learning_rate",
        f"{TRAINER}._load_optimizer_and_scheduler",
        f"{TRAINER}._save_optimizer_and_scheduler",
        f"{TRAINER}._maybe_log_save_evaluate",
        f"{TRAINER}._prepare_inputs",
        f"{TRAINER}._save",
        f"{TRAINER}._total_loss_scalar",
        f"{TRAINER}._track_num_input_tokens",
        f"{TRAINER}.floating_point_ops",
        f"{TRAINER}.get_batch_samples",
    ],
}
LIBRARIES = {"accelerate", "mergekit", "optuna", "peft", "torch", "transformers"}
DOCUMENTED = ("torch.distributed", "torch.nn", "torch.optim", "torch.utils")
OURS = {"_replace", "_asdict", "_fields", "_exit"}  # namedtuple and os: documented


def find(target: str) -> Any:
    """The object of a dotted name; an attribute that only instances have is looked for in code."""
    parts = target.split(".")
    found: Any = import_module(parts[0])
    for i, name in enumerate(parts[1:], 1):
        try:
            found = getattr(found, name)
        except AttributeError:
            try:
                found = import_module(".".join(parts[: i + 1]))
            except ModuleNotFoundError:
                if isinstance(found, type) and i == len(parts) - 1 and set_in(found, name):
                    return None
                raise AttributeError(f"{'.'.join(parts[:i])} has no {name}") from None
    return found


def set_in(kind: type, name: str) -> bool:
    """Whether a method of the class, or of a base, sets this attribute."""
    import inspect

    for one in kind.__mro__[:-1]:
        try:
            if f"self.{name}" in inspect.getsource(one):
                return True
        except (OSError, TypeError):
            continue
    return False


@pytest.mark.parametrize(
    ("module", "target"), [(m, t) for m, targets in INTERNALS.items() for t in targets]
)
def test_undocumented_interfaces_still_exist(module: str, target: str) -> None:
    if target.startswith("mergekit"):
        pytest.importorskip("mergekit", reason="mergekit is not installed on this Python")
    try:
        find(target)
    except AttributeError as error:
        pytest.fail(f"mergeforget/{module} uses {target}, which moved: {error}")


def reached(path: Path) -> Iterator[str]:
    """Last names of what a module imports from submodules, and of the private names it uses."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and "." in node.module:
            if node.module.split(".")[0] in LIBRARIES and not node.module.startswith(DOCUMENTED):
                yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute):
            name, holder = node.attr, ast.unparse(node.value)
            private = name.startswith("_") and not name.startswith("__") and name not in OURS
            if private and (holder != "self" or name not in own) and name not in ATTRIBUTES:
                yield name
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr"):
            name = getattr(node.args[1], "value", "")
            if isinstance(name, str) and name.startswith("_") and not name.startswith("__"):
                yield name
        elif isinstance(node, ast.ClassDef) and any(
            "Trainer" in ast.unparse(b) for b in node.bases
        ):
            from transformers import Trainer

            methods = (n.name for n in node.body if isinstance(n, ast.FunctionDef))
            hidden = (n for n in methods if n.startswith("_") and not n.startswith("__"))
            yield from (n for n in hidden if hasattr(Trainer, n))


def attributes() -> set[str]:
    """Private names that our own code defines: methods, functions, and attributes that it sets."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            for one in [x for t in targets for x in (t.elts if isinstance(t, ast.Tuple) else [t])]:
                found.add(getattr(one, "attr", getattr(one, "id", "")))
    return {name for name in found if name.startswith("_") and name not in LISTED}


LISTED = {target.split(".")[-1] for targets in INTERNALS.values() for target in targets}
ATTRIBUTES = attributes()
EXEMPT = {  # guarded by the code itself, which works without
    "fsdp.py": {"_sync_replicated_trainable_parameters"},
    "console.py": {"logging"},
    "train/lora_targets.py": {"transformers_weight_conversion"},
}


def test_every_undocumented_interface_is_listed() -> None:
    missing = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        listed = {t.split(".")[-1] for t in INTERNALS.get(name, [])} | EXEMPT.get(name, set())
        missing += [f"{name}: {one}" for one in sorted(set(reached(path)) - listed)]
    assert not missing, "list these in INTERNALS, or use a documented name"


def test_packages_whose_internals_are_used_have_an_upper_bound() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    used = {target.split(".")[0] for targets in INTERNALS.values() for target in targets}
    assert used == LIBRARIES
    for library in sorted(used):
        (requirement,) = [r for r in declared if r.split(">")[0] == library]
        assert "<" in requirement.split(";")[0], f"{requirement} has no upper bound"


def test_a_name_that_moved_is_named() -> None:
    with pytest.raises(AttributeError, match=r"transformers\.Trainer has no _gone"):
        find("transformers.Trainer._gone")
    with pytest.raises(AttributeError, match=r"transformers\.trainer_callback has no Nothing"):
        find("transformers.trainer_callback.Nothing")
