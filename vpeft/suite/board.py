"""TensorBoard's HParams page over a whole suite: one experiment, of which every run is a session.

The members write their sessions themselves (`vpeft.tasks.hparams`) and no experiment of their own, because
TensorBoard shows one of those that it finds.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tensorboard.compat.proto import summary_pb2
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
from torch.utils.tensorboard.writer import FileWriter

from vpeft.suite.folder import SuiteFolder
from vpeft.suite.members import Member
from vpeft.tasks.hparams import session

# Generated modules, whose types are not known.
_API: Any = api_pb2
_DATA: Any = plugin_data_pb2
_SUMMARY: Any = summary_pb2

# Tag -> name on the page; written by `vpeft.tasks.hparams.final_metrics`.
METRICS = {
    "final/accuracy": "test accuracy",
    "final/val_accuracy": "val accuracy",
    "final/trained_parameters": "trained parameters",
    "final/step_seconds": "seconds a step",
    "final/peak_memory_gib": "peak memory (GiB)",
}
ALWAYS = ("data.task", "method/name", "seed", "optim.lr", "optim.weight_decay")


def write_experiment(folder: SuiteFolder, members: Sequence[Member]) -> None:
    """Describe hyper-parameters with their domains and the measures, in place of what was described before."""
    infos = [_info(name, values) for name, values in domains(members).items()]
    metrics = [_API.MetricInfo(name=_API.MetricName(tag=tag), display_name=name) for tag, name in METRICS.items()]
    said = f"{len(members)} runs of {folder.path.name}"
    place = folder.path / "tensorboard"
    with folder.locked():
        shutil.rmtree(place, ignore_errors=True)
        writer = FileWriter(str(place))
        writer.add_summary(_summary(_API.Experiment(hparam_infos=infos, metric_infos=metrics, description=said)))
        writer.close()


def domains(members: Sequence[Member]) -> dict[str, list[float | str]]:
    """Every value of the settings in which members differ, and of those of `ALWAYS`, by its name in a session."""
    found: dict[str, dict[float | str, None]] = {}
    for one in members:
        swept = {key.replace("method.", "method/"): value for key, value in one.grid.items()}
        for key, value in session(_dotted(one.settings)).items():
            for each in swept.get(key, [value]):
                found.setdefault(key, {})[float(each) if isinstance(each, int | float) else str(each)] = None
    return {key: _ordered(values) for key, values in found.items() if len(values) > 1 or key in ALWAYS}


def _summary(experiment: Any) -> Any:
    # By hand: TensorBoard's own function for it needs TensorFlow.
    content = metadata.create_summary_metadata(_DATA.HParamsPluginData(experiment=experiment))
    value = _SUMMARY.Summary.Value(tag=metadata.EXPERIMENT_TAG, metadata=content, tensor=metadata.NULL_TENSOR)
    return _SUMMARY.Summary(value=[value])


def _dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As `vpeft.schema.values` has them."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        inner = isinstance(value, dict) and key != "method"
        found |= {f"{key}.{name}": one for name, one in value.items()} if inner else {key: value}
    return found


def _ordered(values: Iterable[float | str]) -> list[float | str]:
    return sorted(values, key=lambda value: (isinstance(value, str), value))


def _info(name: str, values: Sequence[float | str]) -> Any:
    words = any(isinstance(value, str) for value in values)
    info = _API.HParamInfo(name=name, type=_API.DATA_TYPE_STRING if words else _API.DATA_TYPE_FLOAT64)
    info.domain_discrete.extend(values)
    return info
