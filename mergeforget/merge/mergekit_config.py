"""Translate mergekit configurations into merges of this engine, and merges into configurations.

This engine runs a configuration if it has the method and the options: streamed, threaded, with
random numbers that depend only on the seed and the tensor. ``mergekit_bridge`` runs all others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergeforget.candidate import Candidate
from mergeforget.console import say
from mergeforget.errors import InputError, UsageError
from mergeforget.merge.methods import MERGE_METHODS
from mergeforget.merge.request import canonical
from mergeforget.parsing import parse_yaml, read_text

TASK = {"normalize": "normalize", "lambda": "scale"}
VOTED = {"normalize": "divide", "lambda": "scale"}
RANDOM = {"rescale": "rescale", "density": "density"}


@dataclass(frozen=True)
class Method:
    """A mergekit method in terms of a method of this engine.

    Attributes:
        name: Our method.
        parameters: Our argument by mergekit's parameter.
        defaults: mergekit's defaults that differ from ours.
        fixed: Arguments that mergekit's method implies.
    """

    name: str
    parameters: Mapping[str, str]
    defaults: Mapping[str, Any]
    fixed: Mapping[str, Any]


DIVIDE = {True: "weights", False: "none"}
RESCALE = {True: "l1", False: "none"}
WEIGHTED = {"vote": "weighted"}
METHODS = {
    "linear": Method("linear", {"normalize": "normalize"}, {"normalize": True}, {}),
    "task_arithmetic": Method("task_arithmetic", TASK, {}, {}),
    "ties": Method("ties", VOTED | {"density": "density"}, {"normalize": True}, WEIGHTED),
    "dare_ties": Method(
        "dare_ties", VOTED | RANDOM, {"normalize": False, "rescale": True}, WEIGHTED
    ),
    "dare_linear": Method("dare_linear", TASK | RANDOM, {"rescale": True}, {}),
    "breadcrumbs": Method("breadcrumbs", TASK | {"density": "density", "gamma": "gamma"}, {}, {}),
    "breadcrumbs_ties": Method(
        "breadcrumbs_ties",
        VOTED | {"density": "density", "gamma": "gamma"},
        {"normalize": False},
        WEIGHTED,
    ),
    "della": Method(
        "della",
        VOTED | RANDOM | {"epsilon": "epsilon"},
        {"normalize": True, "rescale": True},
        WEIGHTED,
    ),
    "della_linear": Method(
        "della_linear", TASK | RANDOM | {"epsilon": "epsilon"}, {"rescale": True}, {}
    ),
    "sce": Method("sce", {"select_topk": "select_topk"}, {}, {}),
    "slerp": Method("slerp", {"t": "t"}, {}, {}),
    "karcher": Method("karcher", {"max_iter": "max_iter", "tol": "tol"}, {}, {}),
    "model_stock": Method("model_stock", {}, {}, {}),
    "multislerp": Method(
        "multislerp", {"normalize_weights": "normalize_weights", "eps": "eps"}, {}, {}
    ),
    "nearswap": Method("nearswap", {"t": "t"}, {}, {}),
    "passthrough": Method("passthrough", {"scale": "scale"}, {}, {}),
    "arcee_fusion": Method("arcee_fusion", {}, {}, {}),
    "ram": Method("ram", {"epsilon": "epsilon"}, {}, {}),
}
ON_MODELS = {
    "linear",
    "slerp",
    "karcher",
    "passthrough",
}  # methods that act on models, not on differences
UNWEIGHTED = {
    "sce",
    "slerp",
    "karcher",
    "model_stock",
    "ram",
    "nearswap",
    "passthrough",
    "arcee_fusion",
}  # methods without weights in mergekit
PER_MODEL = {"weight", "density", "gamma", "epsilon"}
BOOLEANS = {"normalize", "rescale", "normalize_weights", "int8_mask"}
YES_OR_NO = {"yes": True, "on": True, "no": False, "off": False}  # booleans of YAML 1.1
NUMBERS = {"weight", "density", "gamma", "epsilon", "lambda", "t", "scale", "select_topk", "eps"}
KNOWN_KEYS = {"merge_method", "models", "base_model", "parameters", "dtype", "out_dtype"}
DTYPES = {"float32", "float16", "bfloat16"}


@dataclass(frozen=True)
class Request:
    """A configuration that this engine can run.

    Attributes:
        dtype: Dtype of the output, or ``auto``.
    """

    models: list[str]
    base: str | None
    candidate: Candidate
    dtype: str


class _TheirsOnlyError(Exception):
    """The configuration needs a feature that this engine lacks; the message names it."""


def read_config(path: Path) -> Request | str:
    """Return a configuration as a merge request, or the reason why only mergekit can run it.

    Raises:
        InputError: The file is not a mergekit configuration.
    """
    config = parse_yaml(read_text(path), path)
    if not isinstance(config, dict) or "merge_method" not in config:
        raise InputError(f"{path} is not a mergekit configuration: it has no merge_method.")
    _read_booleans(config)
    for fault in _wrong_types(config):
        raise InputError(f"{path} is not a mergekit configuration: {fault}.")
    try:
        return _request(config)
    except _TheirsOnlyError as reason:
        return str(reason)


def _holders(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the configuration and its models, each of which may have parameters."""
    models = config.get("models")
    rows = models if isinstance(models, list) else []
    return [config, *(row for row in rows if isinstance(row, dict))]


def _read_booleans(config: dict[str, Any]) -> None:
    """Replace yes, no, on, off, 0 and 1 by booleans, which mergekit reads for them."""
    for holder in _holders(config):
        parameters = holder.get("parameters")
        if isinstance(parameters, dict):
            for key in BOOLEANS & parameters.keys():
                parameters[key] = _booleans(parameters[key])


def _booleans(setting: Any) -> Any:
    if isinstance(setting, list):
        return [_booleans(one) for one in setting]
    if isinstance(setting, dict):
        return setting | {"value": _booleans(setting.get("value"))}
    if isinstance(setting, str):  # True, TRUE and true are booleans of parse_yaml
        cases = (setting.lower(), setting.capitalize(), setting.upper())
        return YES_OR_NO.get(setting.lower(), setting) if setting in cases else setting
    return bool(setting) if setting in (0, 1) else setting


def _wrong_types(config: dict[str, Any]) -> Iterator[str]:
    """Yield the values whose type neither engine accepts."""
    if not isinstance(config["merge_method"], str):
        yield f"merge_method is {config['merge_method']!r}, but must be a name"
    for key in ("dtype", "out_dtype", "base_model"):
        if not isinstance(config.get(key), str | dict | None) or (
            key != "base_model" and isinstance(config.get(key), dict)
        ):
            yield f"{key} is {config[key]!r}, but must be a name"
    models = config.get("models")
    if not isinstance(models, list | None):
        yield f"models is {str(models)[:40]!r}, but must be a list"
    for holder in _holders(config):
        parameters = holder.get("parameters")
        if not isinstance(parameters, dict | None):
            yield f"parameters is {str(parameters)[:40]!r}, but must be a mapping"
        for key, setting in (parameters or {}).items():
            if key in NUMBERS and not _is_setting(setting):
                yield f"{key} is {setting!r}, but must be a number, or a list of numbers or filters"
            if key in BOOLEANS and not isinstance(setting, bool | list | dict | None):
                yield f"{key} is {setting!r}, but must be true or false"


def _is_setting(setting: Any) -> bool:
    """Return whether a parameter is a number, a gradient, or numbers with filters."""
    if isinstance(setting, dict):
        return _is_setting(setting.get("value")) and isinstance(setting.get("filter"), str | None)
    if isinstance(setting, list):
        return bool(setting) and all(
            isinstance(one, int | float) or (isinstance(one, dict) and _is_setting(one))
            for one in setting
        )
    return isinstance(setting, int | float)


def to_config(
    candidate: Candidate, models: list[str], base: str | None, dtype: str = "auto"
) -> dict[str, Any]:
    """Return a merge of models as a mergekit configuration.

    Raises:
        UsageError: mergekit has no such method, or does not support these arguments.
    """
    candidate = canonical(candidate)
    name = "linear" if candidate.method == "linear" and base is None else candidate.method
    name = "task_arithmetic" if name == "linear" and base else name
    if name not in METHODS:
        raise UsageError(f"mergekit has no {name}. It has: {', '.join(METHODS)}.")
    _check_expressible(candidate)
    if name in ON_MODELS and base is not None:
        raise UsageError(
            f"mergekit's {name} merges the models themselves, not their differences from a base: "
            "leave --base out."
        )
    shared = {ours: theirs for theirs, ours in METHODS[name].parameters.items()}
    parameters: dict[str, Any] = {}
    arguments = _defaults(candidate) | candidate.arguments
    for ours, value in arguments.items():
        if ours in shared and shared[ours] not in PER_MODEL:
            parameters[shared[ours]] = _theirs(ours, value)
    for ours, setting in candidate.by_module.items():
        if ours in shared and shared[ours] not in PER_MODEL:
            parameters[shared[ours]] = setting
    if name == "linear" and not candidate.arguments.get("normalize"):
        parameters["normalize"] = False
    config: dict[str, Any] = {"merge_method": name}
    if base is not None or name == "slerp":
        config["base_model"] = base or models[0]
    settings = {k: v for k, v in arguments.items() if shared.get(k) in PER_MODEL}
    config["models"] = [
        {"model": model, "parameters": _of_model(candidate, i, settings)}
        for i, model in enumerate(models)
    ]
    if parameters:
        config["parameters"] = parameters
    return config | ({} if dtype == "auto" else {"dtype": dtype})


def _request(config: dict[str, Any]) -> Request:
    name = str(config["merge_method"])
    if name not in METHODS:
        raise _TheirsOnlyError(f"this engine has no method {name}")
    for key in sorted(set(config) - KNOWN_KEYS):
        raise _TheirsOnlyError(f"this engine does not support {key}")
    dtype = config.get("out_dtype") or config.get("dtype") or "auto"
    if dtype not in DTYPES | {"auto"}:
        raise _TheirsOnlyError(f"this engine does not write {dtype}")
    base = config.get("base_model")
    rows = [_model(row) for row in config.get("models") or []]
    if name in ON_MODELS:
        if base is not None and all(row[0] != base for row in rows):
            if name == "linear" and "weight" not in (config.get("parameters") or {}):
                raise _TheirsOnlyError("linear merges base_model, too, but it has no weight")
            rows.append((base, {}))  # mergekit merges the base, too
        if name == "slerp":
            rows.sort(key=lambda row: row[0] != base)  # t = 0 is the base
        base = None
    else:
        rows = [row for row in rows if row[0] != base]
    if not rows:
        raise _TheirsOnlyError("no model is listed under models")
    return Request([row[0] for row in rows], base, _candidate(name, config, rows), str(dtype))


def _model(row: Any) -> tuple[str, dict[str, Any]]:
    if not isinstance(row, dict) or not isinstance(row.get("model"), str) or "+" in row["model"]:
        raise _TheirsOnlyError("a model is not given as a plain name")
    return row["model"], dict(row.get("parameters") or {})


def _candidate(
    name: str, config: dict[str, Any], rows: list[tuple[str, dict[str, Any]]]
) -> Candidate:
    method, shared = METHODS[name], dict(config.get("parameters") or {})
    arguments: dict[str, Any] = dict(method.fixed)
    by_module: dict[str, Any] = {}
    known = {*method.parameters, "weight", "int8_mask"}
    for key in {*shared, *(k for _, row in rows for k in row)} - known:
        raise _TheirsOnlyError(f"our {method.name} takes no {key}")
    for their_name, ours in method.parameters.items():
        setting = _common(their_name, shared, rows, method.defaults.get(their_name))
        if setting is None:
            continue
        if isinstance(setting, list | dict):
            if their_name in ("normalize", "rescale"):
                raise _TheirsOnlyError(f"{their_name} differs by tensor")
            by_module[ours] = setting
        else:
            arguments[ours] = _ours(ours, setting)
    weights = _weights(name, shared, rows)
    plain = tuple(float(w) if isinstance(w, int | float) else 1.0 for w in weights)
    if any(isinstance(w, list | dict) for w in weights):
        by_module["weights"] = weights
    density = arguments.pop("density", None)
    if "density" in method.parameters and density is None:
        density = 1.0
    defaults = {key: one.default for key, one in MERGE_METHODS.get(method.name).parameters.items()}
    changed = {key: value for key, value in arguments.items() if defaults[key] != value}
    return Candidate(method.name, density, plain, "delta", arguments=changed, by_module=by_module)


def _weights(
    name: str, shared: dict[str, Any], rows: list[tuple[str, dict[str, Any]]]
) -> list[Any]:
    """Return one setting per model; 1 if mergekit's method ignores weights."""
    if name not in UNWEIGHTED:
        weights = [_setting("weight", row, shared, None) for _, row in rows]
        if any(_has_gap(weight) for weight in weights):
            raise _TheirsOnlyError("a weight is missing where none of its filters matches")
        return [1.0 if weight is None else weight for weight in weights]
    if any("weight" in parameters for parameters in (shared, *(row for _, row in rows))):
        say(f"Weights are ignored, as in mergekit, whose {name} has none.")
    return [1.0] * len(rows)


def _common(
    key: str, shared: dict[str, Any], rows: list[tuple[str, dict[str, Any]]], default: Any
) -> Any:
    """Return the setting that all models share."""
    settings = [_setting(key, row, shared, default) for _, row in rows]
    if any(one != settings[0] for one in settings):
        raise _TheirsOnlyError(f"{key} differs between the models")
    return settings[0]


def _setting(key: str, row: dict[str, Any], shared: dict[str, Any], default: Any) -> Any:
    """Return the setting of one model: its own, and the shared one where no filter matches."""
    found = default
    for level in (shared, row):
        if key in level:
            outer, found = found, level[key]
            if _has_gap(found) and outer is not None:
                rest = (
                    outer if isinstance(outer, list) and _by_filter(outer) else [{"value": outer}]
                )
                found = [*(found if isinstance(found, list) else [found]), *rest]
    return found


def _by_filter(setting: Any) -> bool:
    return isinstance(setting, dict) or (
        isinstance(setting, list) and any(isinstance(one, dict) for one in setting)
    )


def _has_gap(setting: Any) -> bool:
    """Return whether a setting has filters only, so that none may match a name."""
    filters = setting if isinstance(setting, list) else [setting]
    return _by_filter(setting) and all(
        isinstance(one, dict) and one.get("filter") not in (None, "*") for one in filters
    )


def _ours(argument: str, value: Any) -> Any:
    if argument == "divide":
        return DIVIDE[value]
    return RESCALE[value] if argument == "rescale" else value


def _theirs(argument: str, value: Any) -> Any:
    if argument == "divide":
        return value == "weights"
    return value == "l1" if argument == "rescale" else value


def _defaults(candidate: Candidate) -> dict[str, Any]:
    """Return the defaults of our method that differ from mergekit's."""
    takes = MERGE_METHODS.get(candidate.method).parameters
    return {key: takes[key].default for key in ("divide", "rescale", "normalize") if key in takes}


def _check_expressible(candidate: Candidate) -> None:
    takes = MERGE_METHODS.get(candidate.method).parameters
    given = {key: takes[key].default for key in takes} | candidate.arguments
    wanted = {"vote": ("weighted",), "divide": ("weights", "none"), "rescale": ("l1", "none")}
    for key, allowed in wanted.items():
        if key in takes and given[key] not in allowed:
            raise UsageError(
                f"mergekit's {candidate.method} does not support {key}={given[key]}; it supports "
                f"--set {key}={allowed[0]}."
            )
    if given.get("sign", "total") != "total":
        raise UsageError("mergekit elects signs by total only.")
    if candidate.method in UNWEIGHTED:
        weights = set(candidate.weights)
        alike = len(weights) == 1 if candidate.method == "karcher" else weights == {1.0}
        if not alike or "weights" in candidate.by_module:
            raise UsageError(
                f"mergekit's {candidate.method} has no weights; leave --weights and --weights-by "
                "out."
            )


def _of_model(candidate: Candidate, i: int, settings: dict[str, Any]) -> dict[str, Any]:
    weights = candidate.by_module.get("weights")
    unweighted = candidate.method in UNWEIGHTED
    found: dict[str, Any] = {} if unweighted else {"weight": candidate.weights[i]}
    if weights:
        found["weight"] = _with_rest(weights[i], candidate.weights[i])
    if candidate.density is not None:
        by_module = candidate.by_module.get("density")
        plain = candidate.density
        found["density"] = _with_rest(by_module, plain) if by_module else plain
    return found | settings


def _with_rest(setting: Any, rest: float) -> Any:
    """Return a setting by filters, with a value for names that no filter matches."""
    if isinstance(setting, list) and isinstance(setting[0], dict):
        return [*setting, {"value": rest}]
    return setting
