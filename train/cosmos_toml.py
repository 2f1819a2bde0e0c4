"""The keys of the Cosmos recipe's ``sft.toml``, in the words of this project's settings.

The recipe trains with another library. What means the same is taken over; what this trainer does
otherwise is reported; what would change the result in a way that cannot be followed is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from wafervlm.errors import ConfigError

Own = dict[str, Any]
Rule = Callable[[str, Any, Mapping[str, Any]], "tuple[Own, str]"]


def translate(flat: Mapping[str, Any], known: set[str]) -> tuple[Own, list[str]]:
    """Split dotted keys into this project's own and the recipe's, and translate the latter.

    Returns own keys to values, and a line for each of the recipe's keys. A key that is both, or that is
    given in both words, is an error where the values differ. Raises ConfigError.
    """
    own = {key: value for key, value in flat.items() if key in known}
    notes = []
    for key, rule in RECIPE_KEYS.items():
        if key not in flat:
            continue
        values, note = rule(key, flat[key], flat)
        for name, value in values.items():
            if name in own and own[name] != value:
                raise ConfigError(
                    f"{key} = {flat[key]!r} and {name} = {own[name]!r} contradict each other; keep one"
                )
            own[name] = value
        notes.append(f"{key} = {flat[key]!r}: {note}")
    return own, notes


def _as(name: str) -> Rule:
    return lambda key, value, _: ({name: value}, f"taken as {name}")


def _only(*allowed: Any) -> Rule:
    def rule(key: str, value: Any, _: Mapping[str, Any]) -> tuple[Own, str]:
        if value not in allowed:
            known = " or ".join(map(repr, allowed))
            raise ConfigError(f"{key} is {value!r}, and this trainer knows only {known}")
        return {}, "as it always is here"

    return rule


def _unused(why: str) -> Rule:
    return lambda key, value, _: ({}, f"not used: {why}")


def _batch(key: str, value: Any, flat: Mapping[str, Any]) -> tuple[Own, str]:
    mini = flat.get("train.train_policy.mini_batch", value)
    if not (_whole(value) and _whole(mini) and value % mini == 0):
        raise ConfigError(
            f"{key} = {value!r} must be a whole multiple of train.train_policy.mini_batch = {mini!r}"
        )
    return {"train.batch": mini, "train.accumulate": value // mini}, (
        f"taken as train.batch = {mini}, train.accumulate = {value // mini}"
    )


def _whole(value: Any) -> bool:
    return type(value) is int and value > 0


def _dataset(key: str, value: Any, flat: Mapping[str, Any]) -> tuple[Own, str]:
    path = PurePosixPath(str(value))
    folder = path.parent.parent if path.parent.name == "annotations" else path.parent
    if "custom.dataset.media_path" in flat:
        return {"data.annotations": True}, "taken as data.annotations = true"
    return {"data.dataset": str(folder), "data.annotations": True}, f"taken as data.dataset = {str(folder)!r}"


def _mini_batch(key: str, value: Any, flat: Mapping[str, Any]) -> tuple[Own, str]:
    if "train.train_batch_per_replica" in flat:
        return {}, "taken together with train.train_batch_per_replica"
    return {"train.batch": value}, "taken as train.batch"


def _system(key: str, value: Any, _: Mapping[str, Any]) -> tuple[Own, str]:
    if value:
        raise ConfigError(
            f"{key} is {value!r}, and the system message belongs to the dataset's task: name it in a task "
            "file, build the dataset with that, and leave this key empty"
        )
    return {}, "the system message is that of the dataset's task"


def _shards(key: str, value: Any, _: Mapping[str, Any]) -> tuple[Own, str]:
    return {}, "as it always is here" if value == 1 else f"not used: one device trains here, not {value}"


RECIPE_KEYS: dict[str, Rule] = {
    "custom.dataset.annotation_path": _dataset,
    "custom.dataset.media_path": _as("data.dataset"),
    "custom.dataset.system_prompt": _system,
    "train.output_dir": _as("output"),
    "train.compile": _unused("nothing is compiled"),
    "train.train_batch_per_replica": _batch,
    "train.epoch": _as("train.epochs"),
    "train.optm_lr": _as("train.learning_rate"),
    "train.optm_weight_decay": _as("train.weight_decay"),
    "train.optm_grad_norm_clip": _as("train.clip"),
    "train.train_policy.type": _only("sft"),
    "train.train_policy.mini_batch": _mini_batch,
    "train.ckpt.enable_checkpoint": _unused("checkpoints are always written"),
    "policy.model_name_or_path": _as("model.base"),
    "policy.model_max_length": _as("model.max_length"),
    "policy.lora.r": _as("lora.rank"),
    "policy.lora.lora_alpha": _as("lora.alpha"),
    "policy.lora.lora_dropout": _as("lora.dropout"),
    "policy.parallelism.tp_size": _only(1),
    "policy.parallelism.cp_size": _only(1),
    "policy.parallelism.pp_size": _only(1),
    "policy.parallelism.dp_shard_size": _shards,
    "logging.logger": _unused("the log is log.csv, and tensorboard's where train.tensorboard is true"),
    "logging.project_name": _unused("nothing is sent anywhere"),
    "logging.experiment_name": _unused("nothing is sent anywhere"),
}
