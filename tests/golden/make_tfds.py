"""The order that TensorFlow Datasets gives to the fake archives of tests/vtab1k/fakes.py, as tfds_order.json.

Run in an environment of its own: pip install tensorflow-cpu==2.21.0 tensorflow-datasets==4.9.10 scipy h5py, then
python tests/golden/make_tfds.py. TFDS's own builders read the archives; only its downloads are replaced by the
folder the fakes lie in. Writes as well, of the same builders, one prepared folder (tfds_cifar100.zip) and the
records of CLEVR and KITTI features (tfds_examples.json).
"""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

HERE = Path(__file__).parent
BUILDERS = {
    "cifar100": "cifar100:3.0.2",
    "svhn": "svhn_cropped:3.1.0",
    "dsprites": "dsprites:2.1.0",
    "smallnorb": "smallnorb:2.1.0",
    "dmlab": "dmlab:2.0.1",
}
LABELS = {
    "cifar100": ["label"],
    "svhn": ["label"],
    "dsprites": ["label_x_position", "label_orientation"],
    "smallnorb": ["label_azimuth", "label_elevation"],
    "dmlab": ["label"],
}


def fakes():
    """tests/vtab1k/fakes.py without the tests package, which needs torch."""
    spec = importlib.util.spec_from_file_location("fakes", HERE.parent / "vtab1k" / "fakes.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Run every builder on its fake archive."""
    made = fakes()
    found = {"tensorflow_datasets": tfds.__version__, "tensorflow": tf.__version__}
    for name, spec in BUILDERS.items():
        with tempfile.TemporaryDirectory() as folder:
            archives, data = Path(folder, "archives"), Path(folder, "data")
            archives.mkdir()
            getattr(made, name)(archives, made.SIZES[name])
            builder = tfds.builder(spec, data_dir=data)
            place(builder, archives, name, made)
            builder.download_and_prepare()
            found[name] = {split: rows(builder, split, name) for split in made.SIZES[name]}
            if name == "cifar100":
                pack(builder.data_path, data, HERE / "tfds_cifar100.zip")
    (HERE / "tfds_order.json").write_text(json.dumps(found) + "\n")
    (HERE / "tfds_examples.json").write_text(json.dumps(examples(), indent=1) + "\n")


def place(builder, archives: Path, name: str, made) -> None:
    """Replace the builder's downloads by what lies in the folder."""

    def local(url: str) -> str:
        base = url.split("?")[0].rsplit("/", 1)[-1]
        if base.endswith(".tar.gz"):
            target = archives / "extracted"
            import tarfile

            with tarfile.open(archives / base) as opened:
                opened.extractall(target, filter="data")
            return str(target)
        if base.endswith(".mat.gz"):
            import gzip

            (archives / base[:-3]).write_bytes(gzip.decompress((archives / base).read_bytes()))
            return str(archives / base[:-3])
        if base.endswith(".hdf5"):
            import h5py

            images, classes = made.dsprites_arrays(made.SIZES["dsprites"]["train"])
            with h5py.File(archives / base, "w") as file:
                file["imgs"] = images
                file["latents/classes"], file["latents/values"] = classes, classes.astype(np.float64)
            return str(archives / base)
        path = archives / base
        return str(path if path.exists() else archives / base.replace("extra", "test"))

    def get(self, urls):
        return tf.nest.map_structure(local, urls)

    tfds.download.DownloadManager.download = get
    tfds.download.DownloadManager.download_and_extract = get


def rows(builder, split: str, name: str) -> list:
    """Of every example in stored order: labels and the image's mean as a mark of which one it is."""
    stored = []
    for example in tfds.as_numpy(builder.as_dataset(split=split, shuffle_files=False)):
        mean = example["image"].reshape(-1, example["image"].shape[-1]).mean(0).tolist()
        stored.append([*(int(example[label]) for label in LABELS[name]), [round(value, 2) for value in mean]])
    return stored


def pack(folder: Path, root: Path, target: Path) -> None:
    """The prepared folder as a zip file."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as opened:
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                opened.writestr(zipfile.ZipInfo(str(file.relative_to(root))), file.read_bytes())


def examples() -> dict:
    """Records as TFDS serialises the features of CLEVR and KITTI, and the labels VTAB's code gives them."""
    image = np.zeros((4, 6, 3), np.uint8)
    made = {}
    rng = np.random.default_rng(0)
    kitti = tfds.builder_cls("kitti")
    clevr = tfds.builder_cls("clevr")
    for name, builder in (("clevr", clevr), ("kitti", kitti)):
        with tempfile.TemporaryDirectory() as folder:
            features = builder(data_dir=folder).info.features
        made[name] = [record(features, image, int(count), rng, name) for count in rng.integers(3, 9, 12)]
    return made


def record(features, image, count: int, rng, name: str) -> dict:
    """One serialised example with `count` objects, with VTAB's labels."""
    if name == "clevr":
        coords = rng.uniform(7.5, 12, (count, 3)).astype(np.float32)
        objects = {
            "color": ["red"] * count,
            "material": ["metal"] * count,
            "shape": ["cube"] * count,
            "size": ["small"] * count,
            "rotation": [0.0] * count,
            "3d_coords": coords,
            "pixel_coords": coords,
        }
        example = {"image": image, "file_name": "x.png", "question_answer": [], "objects": listed(objects, count)}
        thresholds = np.array([0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0])
        labels = {
            "clevr_count": count - 3,
            "clevr_dist": int(np.where(thresholds - coords[:, 2].min() < 0)[0].max()),
        }
    else:
        kinds = rng.integers(0, 8, count)
        places = rng.uniform(1, 40, (count, 3)).astype(np.float32)
        objects = {
            "type": kinds,
            "truncated": np.zeros(count, np.float32),
            "occluded": np.zeros(count, np.int64),
            "alpha": np.zeros(count, np.float32),
            "bbox": [tfds.features.BBox(0.1, 0.1, 0.5, 0.5)] * count,
            "dimensions": np.ones((count, 3), np.float32),
            "location": places,
            "rotation_y": np.zeros(count, np.float32),
        }
        example = {"image": image, "image/file_name": "0.png", "objects": listed(objects, count)}
        nearest = min([*places[kinds < 3, 2], 1000.0])
        thresholds = np.array([-100.0, 8.0, 20.0, 999.0])
        labels = {"kitti": int(np.where(thresholds - nearest < 0)[0].max())}
    data = features.serialize_example(features.encode_example(example))
    return {"labels": labels, "record": base64.b64encode(data).decode()}


def listed(objects: dict, count: int) -> list[dict]:
    """A dict of lists as a list of dicts."""
    return [{key: values[i] for key, values in objects.items()} for i in range(count)]


if __name__ == "__main__":
    sys.exit(main())
