"""What TensorFlow Datasets makes of the fake archives of tests/vtab1k/readers/fakes.py, as tfds_files.json.

Run in an environment of its own:

    pip install tensorflow-cpu==2.21.0 tensorflow-datasets==4.9.10 opencv-python-headless==5.0.0.93 pillow scipy h5py \\
        importlib_resources six
    git clone https://github.com/google-research/task_adaptation      (d7630d3, Apache-2.0)
    python tests/golden/make_tfds_files.py task_adaptation

TFDS's own builders read the archives; only its downloads are replaced by the folder the fakes lie in, and for
Caltech 101 its listing of folders by a sorted one. Keys and their order are what its hasher was given and gave. The
labels of CLEVR and KITTI are those of VTAB's own functions. A row is key, label, height, width and the start of the
sha256 of the pixels: TensorFlow's decoding of what TFDS stored, JPEG by its accurate transform and not by the fast one
that is its default.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import sys
import tempfile
import types
from collections import defaultdict
from functools import partial
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from etils import epath
from tensorflow_datasets.core import hashing

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
sys.modules["vpeft"] = types.ModuleType("vpeft")  # tests/__init__ imports it for torchvision's sake
from tests.vtab1k.readers import fakes  # noqa: E402

sys.path.insert(0, sys.argv[1])
from task_adaptation.data import clevr, kitti  # noqa: E402

BUILDERS = {
    "caltech101": "caltech101:3.0.2",
    "dtd": "dtd:3.0.1",
    "oxford_flowers102": "oxford_flowers102:2.1.1",
    "oxford_iiit_pet": "oxford_iiit_pet:4.0.0",
    "sun397": "sun397/tfds:4.0.0",
    "patch_camelyon": "patch_camelyon:2.0.0",
    "eurosat": "eurosat/rgb:2.0.0",
    "resisc45": "resisc45:3.0.0",
    "diabetic_retinopathy": "diabetic_retinopathy_detection/btgraham-300:3.0.0",
    "clevr_count": "clevr:3.1.0",
    "clevr_dist": "clevr:3.1.0",
    "kitti": "kitti:3.3.0",
}
LABELS = {
    "clevr_count": clevr._count_preprocess_fn,
    "clevr_dist": clevr._closest_object_preprocess_fn,
    "kitti": kitti._closest_vehicle_distance_pp,
}
NOT_READ = {"diabetic_retinopathy": ("sample",), "clevr_count": ("test",), "clevr_dist": ("test",)}
ROWS = 40


def main() -> None:
    """Run every builder on its fake archives."""
    hashed = record_keys()
    found = {"tensorflow_datasets": tfds.__version__, "tensorflow": tf.__version__}
    for task, spec in BUILDERS.items():
        with tempfile.TemporaryDirectory() as folder:
            archives = Path(folder, "archives")
            archives.mkdir()
            getattr(fakes, task.split("_")[0] if task.startswith("clevr") else task)(archives)
            place(archives)
            hashed.clear()
            found[task] = made(task, spec, archives, Path(folder), hashed)
            print(task, {split: rows["count"] for split, rows in found[task].items()}, flush=True)
    (HERE / "tfds_files.json").write_text(json.dumps(found, indent=0) + "\n")


def record_keys() -> dict[bytes, dict[int, str]]:
    """Split -> hash -> key, filled as TFDS hashes."""
    hashed = defaultdict(dict)
    start, hash_key = hashing.Hasher.__init__, hashing.Hasher.hash_key

    def init(self, salt):
        self.salt = salt
        start(self, salt)

    def recorded(self, key):
        value = hash_key(self, key)
        hashed[self.salt][value] = key
        return value

    hashing.Hasher.__init__, hashing.Hasher.hash_key = init, recorded
    return hashed


def place(archives: Path) -> None:
    """Replace TFDS's downloads by what lies in the folder."""

    def local(resource, extract: bool):
        url = getattr(resource, "url", resource)
        path = archives / url.split("?")[0].rsplit("/", 1)[-1]
        if not extract or path.suffix in (".mat", ".csv") or getattr(resource, "extract_method", None):
            return epath.Path(path)
        return unpacked(path)

    def get(self, urls, extract):
        return tf.nest.map_structure(partial(local, extract=extract), urls)

    manager = tfds.download.DownloadManager
    manager.download = lambda self, urls: get(self, urls, False)
    manager.download_and_extract = lambda self, urls: get(self, urls, True)
    manager.extract = lambda self, path: unpacked(Path(path))
    manager.manual_dir = property(lambda self: epath.Path(archives))


def unpacked(path: Path) -> epath.Path:
    target = path.with_name(f"{path.name}.unpacked")
    if path.name == "Partitions.zip":  # of SUN397's other configurations
        target.mkdir(exist_ok=True)
    elif path.name.endswith(".h5.gz"):
        target.write_bytes(gzip.decompress(path.read_bytes()))
    else:
        kind = "zip" if path.suffix == ".zip" else "tar" if path.name.startswith("dtd") else "gztar"
        shutil.unpack_archive(path, target, kind, **({} if kind == "zip" else {"filter": "data"}))
    return epath.Path(target)


def made(task: str, spec: str, archives: Path, folder: Path, hashed: dict) -> dict:
    """Split -> its rows in stored order: the first ones, and a hash of all keys and labels."""
    more = {}
    if task == "sun397":
        more["tfds_split_files"] = {name: archives / f"{name}.txt" for name in ("tr", "va", "te")}
        for name, keys in fakes.sun397_lists().items():
            (archives / f"{name}.txt").write_text("".join(f"{key}\n" for key in keys))
    if task == "diabetic_retinopathy":
        (archives / "sample").mkdir()
        shutil.copy(archives / "train" / "1_left.jpeg", archives / "sample")
    gfile = tf.io.gfile
    kept = gfile.listdir, gfile.walk
    if task == "caltech101":
        gfile.listdir = lambda path: sorted(kept[0](path))
        gfile.walk = lambda path: ((top, sorted(below), sorted(files)) for top, below, files in kept[1](path))
    builder = tfds.builder(spec, data_dir=folder / "data", **more)
    builder.download_and_prepare()
    gfile.listdir, gfile.walk = kept
    return {
        split: rows(builder, task, split, hashed)
        for split in builder.info.splits
        if split not in NOT_READ.get(task, ())
    }


def rows(builder, task: str, split: str, hashed: dict) -> dict:
    """The rows of one split."""
    keys = [hashed[split][value] for value in sorted(hashed[split])]
    label = LABELS.get(task, lambda example: example)
    plain = builder.as_dataset(split=split)
    raw = builder.as_dataset(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    listed = []
    for key, example, stored in zip(keys, plain, raw, strict=True):
        pixels = decode(stored["image"].numpy())
        assert pixels.shape == example["image"].shape
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()[:16]
        listed.append([key, int(label(example)["label"]), *pixels.shape[:2], digest])
    everything = "".join(f"{key} {label}\n" for key, label, *_ in listed)
    return {"count": len(listed), "sha256": hashlib.sha256(everything.encode()).hexdigest(), "rows": listed[:ROWS]}


def decode(data: bytes) -> np.ndarray:
    if data.startswith(b"\xff\xd8"):
        return tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE").numpy()
    return tf.io.decode_image(data, channels=3, expand_animations=False).numpy()


if __name__ == "__main__":
    main()
