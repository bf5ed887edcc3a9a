"""TensorBoard's own backend reads one experiment and a session for every run."""

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.hparams import api_pb2, backend_context, get_experiment, list_session_groups

from vpeft.suite import board, plan, work
from vpeft.suite.folder import SuiteFolder
from vpeft.suite.members import Member


@pytest.fixture
def suite(write, ask):
    request = ask(write("lora", epochs=1), write("bitfit", "bitfit", epochs=1), "--sweep", "lr=0.02,0.01")
    members = plan.build(request)
    folder = SuiteFolder(request.output)
    for item in folder.add(members, plan.items(members, 1)):
        assert work.work(folder, item, lambda *_: None) == ["done"]
    board.write_experiment(folder, members)
    board.write_experiment(folder, members)
    return folder


@pytest.fixture
def page(suite):
    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(suite.path))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(suite.path))
    context = backend_context.Context(TBContext(data_provider=provider))
    ctx = RequestContext()
    metadata = context.hparams_metadata(ctx, "")
    experiment = get_experiment.Handler(ctx, context, "", api_pb2.GetExperimentRequest()).run()
    columns = [api_pb2.ColParams(metric=metric.name, order=0) for metric in experiment.metric_infos]
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=100, col_params=columns, allowed_statuses=[api_pb2.STATUS_SUCCESS]
    )
    groups = list_session_groups.Handler(ctx, context, "", request).run()
    return metadata, experiment, groups


def test_there_is_one_experiment_with_domains_and_measures(page):
    metadata, experiment, _ = page
    assert [run for run, tags in metadata.items() if "_hparams_/experiment" in tags] == ["tensorboard"]
    domains = {info.name: list(info.domain_discrete) for info in experiment.hparam_infos}
    assert domains["method/name"] == ["bitfit", "lora"]
    assert domains["optim.lr"] == [0.01, 0.02]
    assert domains["data.split"] == ["train800", "train800val200"]
    assert "data.batch_size" not in domains, "the same in all of them"
    assert [info.display_name for info in experiment.metric_infos] == list(board.METRICS.values())


def test_every_run_is_one_session_with_its_settings_and_measures(suite, page):
    _, _, groups = page
    assert groups.total_size == 6
    rows = {row["id"]: row for phase in ("tuning", "final") for row in suite.rows(phase)}
    named = {f"{row['folder'].removeprefix(str(suite.path)).strip('/')}/tensorboard": row for row in rows.values()}
    for group in groups.session_groups:
        (session,) = group.sessions
        row = named[session.name]
        assert group.hparams["optim.lr"].number_value == row["optim"]["lr"]
        assert group.hparams["method/name"].string_value == row["method"][0]["name"]
        measured = {value.name.tag: value.value for value in session.metric_values}
        assert measured["final/trained_parameters"] == row["parameters"]["total"] - row["parameters"]["frozen"]
        if row["test"]:
            assert measured["final/accuracy"] == pytest.approx(row["test"]["accuracy"])
        else:
            assert "final/accuracy" not in measured
            assert measured["final/val_accuracy"] == pytest.approx(row["val"]["accuracy"])


def test_a_swept_option_that_is_a_list_is_a_word_of_the_page():
    settings = {"method": {"name": "lora", "targets": ["q"]}, "optim": {"lr": 0.1}}
    grid = {"method.targets": [["q"], ["q", "v"]], "optim.lr": [0.1, 0.2]}
    found = board.domains([Member("a", "lora", "digits", 0, "final", settings, grid=grid)])
    assert found["method/targets"] == ["['q', 'v']", "['q']"]
    assert found["optim.lr"] == [0.1, 0.2]
