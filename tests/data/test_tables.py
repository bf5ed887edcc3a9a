import pytest

from vpeft.data.recipes import RECIPES
from vpeft.data.tables import EMBEDDED, VTAB, find_task

# From the specification of VTAB-1k (google-research/task_adaptation d7630d3): classes, test images, group.
SPECIFICATION = """
caltech101 102 6084 n; cifar100 100 10000 n; dtd 47 1880 n; oxford_flowers102 102 6149 n; oxford_iiit_pet 37 3669 n;
sun397 397 21750 n; svhn 10 26032 n; patch_camelyon 2 32768 sp; eurosat 10 5400 sp; resisc45 45 6300 sp;
diabetic_retinopathy 5 42670 sp; clevr_count 8 15000 st; clevr_dist 6 15000 st; dmlab 6 22735 st; kitti 4 711 st;
dsprites_loc 16 73728 st; dsprites_ori 16 73728 st; smallnorb_azi 18 12150 st; smallnorb_ele 9 12150 st
"""


def test_the_table_is_the_specification_of_vtab() -> None:
    groups = {"n": "natural", "sp": "specialized", "st": "structured"}
    rows = [row.split() for row in SPECIFICATION.split(";")]
    specified = {name: (int(classes), int(test), groups[group]) for name, classes, test, group in rows}
    assert {name: (len(task.classes), task.test, task.group) for name, task in VTAB.items()} == specified
    assert sum(task.test for task in VTAB.values()) == 387_904


@pytest.mark.parametrize("name", [*VTAB, *EMBEDDED])
def test_class_names_are_distinct(name: str) -> None:
    classes = find_task(name)[1].classes
    assert len(set(classes)) == len(classes) > 1


def test_every_embedded_task_has_a_recipe_and_every_group_a_task() -> None:
    assert set(EMBEDDED) == set(RECIPES)
    assert {task.group for task in EMBEDDED.values()} == {"natural", "specialized", "structured"}


def test_the_community_name_of_cifar_finds_it() -> None:
    assert find_task("cifar")[0] == "cifar100"


def test_an_unknown_task_names_the_near_one() -> None:
    with pytest.raises(ValueError, match=r"data.task 'eurosta' is not known; did you mean 'eurosat'\?"):
        find_task("eurosta")


def test_a_task_like_no_other_names_all() -> None:
    with pytest.raises(ValueError, match=r"there is digits, .*smallnorb_ele .*data.root to a folder"):
        find_task("zzzz")
