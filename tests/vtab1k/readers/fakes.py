"""Small archives in the official layout of the data sets whose images are files, and PatchCamelyon.

NumPy, Pillow, SciPy and h5py only: tests/golden/make_tfds_files.py writes the same ones where TFDS's builders read
them. Every image is of one colour of its own. Pictures that a data set stores and a benchmark ignores are there too.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from tests.vtab1k.readers.names import CALTECH101, DTD, EUROSAT, RESISC45
from tests.vtab1k.readers.parts import Members, eye, picture, text_lines, textured, write_folder, write_tar, write_zip

PETS = ["Abyssinian", "american_bulldog", "Bombay", "great_pyrenees", "yorkshire_terrier"]
# Class folders of SUN397 with their labels.
SUN397 = {"/a/abbey": 0, "/a/airplane_cabin": 1, "/y/yard": 395, "/y/youth_hostel": 396}


def caltech101_members() -> Members:
    """102 folders of 31 or 33 images, and the file of the background that is none."""
    return _caltech101_images() | {"101_ObjectCategories/BACKGROUND_Google/tmp": b"no image"}


@cache
def _caltech101_images() -> Members:
    members = {}
    for place, name in enumerate(CALTECH101):
        for i in range(1, 32 + 2 * (place % 2)):
            file = f"101_ObjectCategories/{name}/image_{i:04d}.jpg"
            members[file] = picture(file, (8, 6), mode="L" if i == 7 else "RGB")
    return members


def caltech101(folder: Path, members: Members | None = None) -> None:
    inner = folder / "inner.tar.gz"
    write_tar(inner, caltech101_members() if members is None else members)
    data = {"caltech-101/101_ObjectCategories.tar.gz": inner.read_bytes(), "caltech-101/Annotations.tar": b"-"}
    write_zip(folder / "caltech-101.zip", data | {"__MACOSX/caltech-101/._Annotations.tar": b"-"})
    inner.unlink()


def dtd_members() -> Members:
    """Three images a texture, one for each of the lists of the first fold; a second fold cut otherwise."""
    members = {"dtd/images/waffled/.directory": b"-"}
    names = [[f"{kind}/{kind}_{i:04d}.jpg" for kind in DTD] for i in (2, 10, 33)]
    for fold, order in ((1, (0, 1, 2)), (2, (2, 0, 1))):
        for stem, place in zip(("train", "val", "test"), order, strict=True):
            members[f"dtd/labels/{stem}{fold}.txt"] = text_lines(names[place])
    return members | {f"dtd/images/{name}": picture(name, (30, 20)) for listed in names for name in listed}


def dtd(folder: Path, members: Members | None = None) -> None:
    # The official file is a plain tar in spite of its name.
    write_tar(folder / "dtd-r1.0.1.tar.gz", dtd_members() if members is None else members, "w")


def oxford_flowers102(folder: Path, labels: list[int] | None = None, sets: dict[str, list[int]] | None = None) -> None:
    """60 images in classes 1, 102 and others."""
    from scipy.io import savemat

    labels = [1, 102, *range(2, 60)] if labels is None else labels
    numbers = range(1, 61)
    sets = sets or {"trnid": [*numbers][::3], "valid": [*numbers][1::3], "tstid": [*numbers][2::3][::-1]}
    files = {f"jpg/image_{i:05d}.jpg": picture(f"flower{i}", (20 + i, 30)) for i in numbers}
    write_tar(folder / "102flowers.tgz", files)
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)}, do_compression=True)
    savemat(folder / "setid.mat", {name: np.array([row], np.uint16) for name, row in sets.items()})


def pets_members() -> Members:
    """Lists of 50 names in the five breeds 1, 2, 8, 16 and 37."""
    lists: dict[str, list[str]] = {"trainval": [], "test": []}
    for name, label in zip(PETS, (1, 2, 8, 16, 37), strict=True):
        for i in range(1, 11):
            lists["test" if i % 3 == 0 else "trainval"].append(f"{name}_{i} {label} {1 + (i % 2)} 1")
    members = {f"annotations/{name}.txt": text_lines(rows) for name, rows in lists.items()}
    listed = [row.split()[0] for rows in lists.values() for row in rows]
    for name in listed:
        members[f"annotations/trimaps/{name}.png"] = picture(name, (4, 4), "PNG", "L")
    return members | {"annotations/list.txt": text_lines(["#Image CLASS-ID SPECIES BREED ID"])}


def oxford_iiit_pet(folder: Path, annotations: Members | None = None, images: Members | None = None) -> None:
    """The two archives; some images are PNG in spite of their names, as some of the official ones are."""
    files = {
        f"images/{name}_{i}.jpg": picture(f"{name}{i}", (16, 10 + i), "PNG" if i % 5 == 1 else "JPEG")
        for name in PETS
        for i in range(1, 11)
    }
    write_tar(folder / "images.tar.gz", files if images is None else images)
    write_tar(folder / "annotations.tar.gz", pets_members() if annotations is None else annotations)


def sun397_images() -> dict[str, bytes]:
    """Key to file, eleven images a class: small and large, of all the kinds that hide behind the name .jpg there."""
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: turn right
    kinds = {1: ("JPEG", "L"), 2: ("PNG", "RGBA"), 3: ("PNG", "L"), 5: ("BMP", "RGB"), 6: ("PNG", "P")}
    # 480,000 pixels are halved, 120,062 keep their size.
    sizes = {4: (401, 480), 7: (800, 600), 8: (347, 346)}
    files = {}
    for folder in SUN397:
        for i in range(11):
            key = f"{folder}/sun_{'abcdefghijk'[i] * 16}.jpg"
            form, mode = kinds.get(i, ("JPEG", "RGB"))
            buffer = io.BytesIO()
            image = textured(key, sizes.get(i, (60 + i, 40))).convert(mode)
            image.save(buffer, form, **({"exif": turned} if i in (7, 9) else {}))
            files[key] = buffer.getvalue()
    return files


def sun397_lists() -> dict[str, list[str]]:
    """Keys of the splits tr, va and te; one image of each class is in none."""
    keys = sorted(sun397_images())
    return {"tr": keys[::3], "va": keys[1::6], "te": [key for key in keys[2::3] if not key.endswith("kkk.jpg")]}


def sun397(folder: Path, images: dict[str, bytes] | None = None) -> None:
    files = sun397_images() if images is None else images
    write_tar(folder / "SUN397.tar.gz", {f"SUN397{key}": data for key, data in files.items()})


def sun397_wheel(path: Path) -> Path:
    """The lists of the published package, cut to the fake images; invented classes fill the ranks between."""
    names = sorted({*SUN397, *(f"/m/invented_{i:03d}" for i in range(397 - len(SUN397)))})
    members = {f"tfds_{name}": keys for name, keys in sun397_lists().items()} | {"labels": names}
    folder = "tensorflow_datasets/image_classification/sun397_"
    write_zip(path, {f"{folder}{name}.txt": text_lines(rows) for name, rows in members.items()})
    return path


def patch_camelyon(folder: Path, sizes: dict[str, int] | None = None) -> None:
    """The six gzipped HDF5 files; labels are N 1 1 1."""
    import h5py

    for seed, (split, count) in enumerate((sizes or {"train": 40, "valid": 20, "test": 20}).items()):
        colours = np.random.default_rng(seed).integers(0, 256, (count, 1, 1, 3), dtype=np.uint8)
        arrays = {"x": np.tile(colours, (1, 96, 96, 1)), "y": np.arange(count, dtype=np.uint8).reshape(-1, 1, 1, 1) % 2}
        for kind, array in arrays.items():
            buffer = io.BytesIO()
            with h5py.File(buffer, "w") as file:
                file[kind] = array
            path = folder / f"camelyonpatch_level_2_split_{split}_{kind}.h5.gz"
            path.write_bytes(gzip.compress(buffer.getvalue(), 1, mtime=0))


def eurosat(folder: Path, more: Members | None = None) -> None:
    """Ten classes of six images."""
    names = [f"2750/{kind}/{kind}_{i}.jpg" for kind in EUROSAT for i in (1, 2, 3, 10, 20, 3000)]
    write_zip(folder / "EuroSAT.zip", {name: picture(name, (64, 64)) for name in names} | (more or {}))


def resisc45(folder: Path, kinds: Iterable[str] = RESISC45) -> None:
    """The unpacked folder, two images a class."""
    names = [f"{kind}/{kind}_{i:03d}.jpg" for kind in kinds for i in (1, 700)]
    write_folder(folder / "NWPU-RESISC45", {name: picture(name, (256, 256)) for name in names})


def diabetic_retinopathy(folder: Path, grades: dict[str, int] | None = None) -> None:
    """Both eyes of ten patients each in train and test; of test, two in seven rows are public."""
    grades = grades or {f"{n}_{side}": (n + (side == "left")) % 5 for n in range(1, 11) for side in ("left", "right")}
    files = {name: eye(name, (170 + i, 150)) for i, name in enumerate(grades)}
    for split in ("train", "test"):
        write_folder(folder / split, {f"{name}.jpeg": data for name, data in files.items()})
    table = [f"{name},{grade}" for name, grade in grades.items()]
    (folder / "trainLabels.csv").write_bytes(text_lines(["image,level", *table]))
    usages = [f"{row},{'Public' if i % 7 < 2 else 'Private'}" for i, row in enumerate(table)]
    (folder / "retinopathy_solution.csv").write_bytes(text_lines(["image,level,Usage", *usages]))


# Depths about the bounds of clevr_dist; the second is 8 as a float32 and above it as a double.
DEPTHS = [8.0, 8.0000000001, 8.001, 8.5, 8.6, 9.0, 9.2, 9.5, 9.7, 10.0, 10.5, 7.25]


def clevr_scenes(name: str, count: int) -> list[dict]:
    """Scenes of 3 to 10 objects, the nearest in the middle of the list."""
    scenes = []
    for i in range(count):
        nearest = DEPTHS[i % len(DEPTHS)]
        depths = [nearest + 1.5] * (i % 8 + 1) + [nearest, nearest + 2]
        objects = [
            {
                "color": "gray",
                "material": "rubber",
                "shape": "cube",
                "size": "small",
                "rotation": 12.5,
                "3d_coords": [0.5, -1.0, 0.35],
                "pixel_coords": [100, 50, depth],
            }
            for depth in depths
        ]
        scenes.append({"image_index": i, "image_filename": f"CLEVR_{name}_{i:06d}.png", "split": name})
        scenes[-1]["objects"] = objects
    return scenes


def clevr_members(change: Callable[[list[dict]], object] = lambda scenes: None) -> Members:
    """Images with an alpha channel and scenes of train and val, images alone of test."""
    members: Members = {"CLEVR_v1.0/README.txt": b"-"}
    for name, count in (("train", 48), ("val", 24), ("test", 3)):
        scenes = clevr_scenes(name, count)
        files = [scene["image_filename"] for scene in scenes]
        # Against the order of names, which decides which scene is an image's.
        members |= {f"CLEVR_v1.0/images/{name}/{file}": picture(file, (48, 32), "PNG", "RGBA") for file in files[::-1]}
        questions = {"questions": [{"image_filename": files[0], "question": "How many?"}]}
        members[f"CLEVR_v1.0/questions/CLEVR_{name}_questions.json"] = json.dumps(questions).encode()
        if name != "test":
            change(scenes)
            members[f"CLEVR_v1.0/scenes/CLEVR_{name}_scenes.json"] = json.dumps({"scenes": scenes}).encode()
    return members


def clevr(folder: Path, members: Members | None = None) -> None:
    write_zip(folder / "CLEVR_v1.0.zip", clevr_members() if members is None else members)


# Objects and depths about the bounds of kitti's label; the third is 8 as a float32.
STREETS: list[list[tuple[str, float]]] = [
    [("Car", 8.0), ("Pedestrian", 3.0)],
    [("Van", 8.01), ("Car", 30.0)],
    [("Truck", 8.0000000001)],
    [("Car", 20.0)],
    [("Car", 20.01), ("Tram", 5.0)],
    [("Pedestrian", 4.0), ("Cyclist", 6.0), ("Misc", 1.0), ("Person_sitting", 2.0)],
    [("DontCare", -1000.0), ("Car", 999.0)],
    [("Car", -0.5), ("Van", 12.0)],
    [("Tram", 40.0)],
]


def kitti_members() -> dict[str, Members]:
    """Archive to members: 90 labelled images of 30 drives in a random order, and unlabelled ones of testing."""
    order = np.random.default_rng(5).permutation(90)
    lines = [f"2011_09_{26 + i % 3} 2011_09_26_drive_{i // 3:04d}_sync {i % 3:010d}" for i in range(90)]
    devkit = {
        "mapping/train_rand.txt": ",".join(str(place + 1) for place in order).encode(),
        "mapping/train_mapping.txt": text_lines(lines),
        "readme.txt": b"-",
    }
    images = {"testing/image_2/000000.png": picture("testing", (62, 18), "PNG")}
    labels = {}
    for i in range(90):
        street = STREETS[i % len(STREETS)]
        rows = [f"{kind} 0.00 0 -1.57 2.0 3.0 30.0 12.0 1.5 1.6 3.9 1.84 1.47 {z} -1.56" for kind, z in street]
        labels[f"training/label_2/{i:06d}.txt"] = text_lines(rows)
        images[f"training/image_2/{i:06d}.png"] = picture(f"street{i}", (62, 18), "PNG")
    return {"data_object_image_2.zip": images, "data_object_label_2.zip": labels, "devkit_object.zip": devkit}


def kitti(folder: Path, archives: dict[str, Members] | None = None) -> None:
    for name, members in (archives or kitti_members()).items():
        write_zip(folder / name, members)
