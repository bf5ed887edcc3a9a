"""CIFAR-100, SVHN, dSprites, small NORB and DMLab: labels, pixels and what is wrong with a file.

Their order is compared with TFDS's in tests/vtab1k/test_order.py.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.vtab1k import fakes
from vpeft.vtab1k.readers import READERS, cifar100, dmlab, dsprites, smallnorb, svhn


def made(name: str, folder: Path) -> Path:
    getattr(fakes, name)(folder, fakes.SIZES[name])
    return folder


def test_cifar100_takes_the_fine_label_and_puts_channels_last(tmp_path: Path) -> None:
    found = cifar100.read(made("cifar100", tmp_path), "cifar100")
    train = found["train"]
    assert [example.label for example in train] == list(range(40))
    assert [example.key for example in train] == list(range(40))
    expected = np.broadcast_to(fakes.colours(40, 0)[7], (32, 32, 3))
    assert (np.asarray(train[7].image()) == expected).all()


def test_cifar100_of_another_length_is_told(tmp_path: Path) -> None:
    fakes.write_tar(tmp_path / "cifar-100-binary.tar.gz", [("cifar-100-binary/train.bin", bytes(3073))])
    with pytest.raises(ValueError, match=r"'cifar-100-binary/train.bin' .* has 3,073 bytes, which is no multiple"):
        cifar100.read(tmp_path, "cifar100")


def test_svhn_reads_ten_as_zero(tmp_path: Path) -> None:
    test = svhn.read(made("svhn", tmp_path), "svhn")["test"]
    assert [example.label for example in test] == [i % 10 for i in range(20)]
    assert (np.asarray(test[3].image()) == fakes.colours(20, 1)[3]).all()


def test_svhn_that_is_cut_short_or_no_matlab_file_is_told(tmp_path: Path) -> None:
    made("svhn", tmp_path)
    path = tmp_path / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(ValueError, match=r"test_32x32.mat is not a whole MATLAB file .*; fetch it again\.$"):
        svhn.read(tmp_path, "svhn")
    path.write_text("<html>404</html>")
    with pytest.raises(ValueError, match=r"test_32x32.mat is not a whole MATLAB file .*; fetch it again\.$"):
        svhn.read(tmp_path, "svhn")


def test_svhn_with_other_shapes_is_told(tmp_path: Path) -> None:
    from scipy.io import savemat

    made("svhn", tmp_path)
    savemat(tmp_path / "train_32x32.mat", {"X": np.zeros((16, 16, 3, 2), np.uint8), "y": np.ones((2, 1), np.uint8)})
    with pytest.raises(ValueError, match=r"X is \(16, 16, 3, 2\), not 32 x 32 x 3 x 2"):
        svhn.read(tmp_path, "svhn")


@pytest.mark.parametrize(("task", "values", "width"), [("dsprites_loc", 32, 2), ("dsprites_ori", 40, 2.5)])
def test_dsprites_groups_the_values_into_16_bins(task: str, values: int, width: float) -> None:
    labels = [dsprites.label(value, task) for value in range(values)]
    assert labels == [int(np.floor(np.float32(value) / np.float32(width))) for value in range(values)]
    assert sorted(set(labels)) == list(range(16))


def test_dsprites_shows_black_and_white(tmp_path: Path) -> None:
    folder = made("dsprites", tmp_path)
    images, classes = fakes.dsprites_arrays(320)
    found = dsprites.read(folder, "dsprites_ori")["train"]
    for i in (319, 5, 100):
        assert (np.asarray(found[i].image()) == 255 * images[i]).all()
        assert found[i].label == int(classes[i, 3] // 2.5)


def test_dsprites_in_another_order_is_refused(tmp_path: Path) -> None:
    images, classes = fakes.dsprites_arrays(320)
    path = tmp_path / "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
    np.savez_compressed(path, imgs=images, latents_classes=classes[::-1])
    with pytest.raises(ValueError, match="latents_classes is not every combination of attributes in order"):
        dsprites.read(tmp_path, "dsprites_loc")
    np.savez_compressed(path, imgs=images[:, :32], latents_classes=classes)
    with pytest.raises(ValueError, match=r"imgs is \(320, 32, 64\) uint8, not \(320, 64, 64\) uint8"):
        dsprites.read(tmp_path, "dsprites_loc")


def test_smallnorb_takes_the_first_camera(tmp_path: Path) -> None:
    folder = made("smallnorb", tmp_path)
    azimuth, elevation = (smallnorb.read(folder, task)["test"] for task in ("smallnorb_azi", "smallnorb_ele"))
    assert [example.label for example in azimuth] == [i % 18 for i in range(20)]
    assert [example.label for example in elevation] == [i % 9 for i in range(20)]
    for i in (9, 2):
        assert (np.asarray(azimuth[i].image()) == i * 7 % 251).all()


def test_smallnorb_may_be_unpacked_and_a_wrong_magic_number_is_told(tmp_path: Path) -> None:
    folder = made("smallnorb", tmp_path)
    path = folder / smallnorb.ARCHIVES[0].name
    plain = gzip.decompress(path.read_bytes())
    path.write_bytes(plain)
    assert np.asarray(smallnorb.read(folder, "smallnorb_azi")["train"][3].image())[0, 0] == 21
    path.write_bytes(gzip.compress(b"\0" + plain[1:]))
    with pytest.raises(ValueError, match=r"is not a matrix of NORB \(its magic number is 0x1e3d4c00\)"):
        smallnorb.read(folder, "smallnorb_azi")
    path.write_bytes(gzip.compress(plain[:5000]))
    with pytest.raises(ValueError, match="is cut short"):
        smallnorb.read(folder, "smallnorb_azi")["train"][3].image()


def test_dmlab_decodes_the_frames(tmp_path: Path) -> None:
    found = dmlab.read(made("dmlab", tmp_path), "dmlab")
    assert {split: len(examples) for split, examples in found.items()} == fakes.SIZES["dmlab"]
    frame = found["validation"][13]
    assert (frame.key, frame.label) == (f"dmlab_validation_{13 * 7919:08d}.jpg", 13 % 6)
    image = frame.image()
    assert isinstance(image, Image.Image)
    assert image.size == (480, 360)
    assert np.abs(np.asarray(image).astype(int) - fakes.colours(20, 1)[13]).max() <= 2


def test_a_record_of_dmlab_without_a_label_is_told(tmp_path: Path) -> None:
    data = fakes.tfrecord([fakes.tf_example({"image": [b"x"], "filename": [b"a"]})])
    fakes.write_tar(tmp_path / "dmlab.tar.gz", [("dmlab-train.tfrecord-00000-of-00001", data)])
    with pytest.raises(ValueError, match=r"byte 12: no frame of DMLab \('label'\)"):
        dmlab.read(tmp_path, "dmlab")


@pytest.mark.parametrize("task", ["cifar100", "svhn", "dsprites_loc", "smallnorb_ele", "dmlab"])
def test_a_missing_archive_says_where_it_comes_from(task: str, tmp_path: Path) -> None:
    module = {"cifar100": cifar100, "svhn": svhn, "dsprites": dsprites, "smallnorb": smallnorb, "dmlab": dmlab}
    reader = module[READERS[task]]
    with pytest.raises(ValueError, match=r"is missing; it comes from https?://"):
        reader.read(tmp_path, task)
    # One file alone is not enough where there are two.
    if len(reader.ARCHIVES) > 1:
        made(READERS[task], tmp_path)
        (tmp_path / reader.ARCHIVES[-1].name).unlink()
        with pytest.raises(ValueError, match="is missing"):
            reader.read(tmp_path, task)
