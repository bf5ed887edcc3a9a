from vpeft.suite import plan, settings
from vpeft.suite.folder import SuiteFolder


def test_status_needs_nothing_but_the_folder(tool, tmp_path):
    request = settings.parse(["configs/debug/tiny.yaml", "--tasks", "digits,fashion", "--seeds", "2"])
    assert isinstance(request, settings.Request)
    members = plan.build(request)
    SuiteFolder(tmp_path).add(members, plan.items(members, 1))
    ended = tool("suite", "--status", tmp_path)
    assert ended.code == 0, ended.err
    assert "4 waiting" in ended.out
    assert ["tiny", "2W", "2W"] in [line.split() for line in ended.out.splitlines()]


def test_wrong_input_is_one_sentence(tool, tmp_path):
    ended = tool("suite", "--status", tmp_path)
    assert (ended.code, ended.err) == (
        2,
        f"error: {tmp_path} holds no suite: it has no members.jsonl; give the --output of a suite\n",
    )
    ended = tool("suite", "configs/vtab/lora.yaml", "--tasks", "none")
    assert ended.code == 2
    assert ended.err.startswith("error: command line: there is no embedded task 'none'; ")


def test_help_is_short(tool):
    ended = tool("suite", "--help")
    assert ended.code == 0
    assert "--sweep" in ended.out
