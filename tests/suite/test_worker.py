import pytest

from vpeft.config import ConfigError
from vpeft.suite import plan, worker
from vpeft.suite.folder import SuiteFolder


@pytest.fixture
def planned(write, ask):
    """A suite of two tuning members and one final, all of them still to be run."""
    request = ask(write("lora"), "--sweep", "lr=0.02,0.01")
    members = plan.build(request)
    folder = SuiteFolder(request.output)
    folder.add(members, plan.items(members, 1))
    return folder


def run(folder, index):
    return worker.main([str(folder.path), str(index)])


def test_a_final_member_waits_for_its_choice_and_says_so(planned, capfd):
    assert run(planned, 2) == worker.WAITING
    assert "lora on colors are not chosen yet: 2 of 2 tuning runs" in capfd.readouterr().err
    assert [run(planned, index) for index in (0, 1, 2)] == [0, 0, 0]
    assert len(planned.rows("tuning")) == 2
    assert run(planned, 2) == 0
    assert len(planned.rows("final")) == 1, "what is done is not done again"


def test_a_member_that_another_process_has_is_left_alone(planned):
    (key,) = planned.item(0).members
    with planned.holding(key):
        assert run(planned, 0) == worker.BUSY


def test_an_item_that_is_not_there_is_one_sentence(planned, tmp_path):
    with pytest.raises(ConfigError, match="has 3 items, counted from 0; there is no item 7"):
        run(planned, 7)
    with pytest.raises(ConfigError, match=r"has no items.jsonl; there is no item 0"):
        worker.main([str(tmp_path / "none"), "0"])
    with pytest.raises(ConfigError, match="give INDEX, or --serve"):
        worker.main([str(planned.path)])
