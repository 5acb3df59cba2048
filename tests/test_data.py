# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Data modules, and what happens with images that cannot be used."""

import csv
import shutil
from pathlib import Path
from urllib.error import URLError

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from anomalib.data import BTech, Folder, MVTec3D, MVTecAD, PredictDataset
from PIL import Image

from anomalib_dskd.data import DataError, DemoTextures, MagneticTile, MVTec, check_images
from anomalib_dskd.data.check import check_samples
from anomalib_dskd.data.demo import make_category
from anomalib_dskd.data.demo_defects import DEFECTS
from anomalib_dskd.data.magnetic_tile import CLASSES, make_magnetic_tile_dataset
from anomalib_dskd.data.magnetic_tile_splits import DEV_TILES, TEST_TILES
from anomalib_dskd.errors import DskdError
from anomalib_dskd.inspector import ImageError, decode

from .conftest import REPO, SHARED, anomalib, needs_shared
from .test_training import dskd, engine


def write(path: Path, shape=(80, 96), mode: str = "RGB", value: int = 128) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if mode == "I;16":
        image = Image.fromarray(np.full(shape, value * 256, np.uint16))
    else:
        image = Image.new("RGB", shape[::-1], (value,) * 3).convert(mode)
    image.save(path)
    return path


@pytest.fixture
def category(mvtec_root, tmp_path) -> Path:
    """A category that a test may spoil."""
    return Path(shutil.copytree(mvtec_root / "stripes", tmp_path / "data/stripes"))


def train(category: Path, out: Path, **kwargs) -> None:
    data = MVTec(category.parent, category.name, num_workers=0, **kwargs)
    engine(out).train(dskd(training_steps=1), datamodule=data)


# Images that work


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "LA", "1"])
def test_other_modes_are_trained_on(category, tmp_path, mode):
    for path in category.glob("t*/*/00[01].png"):
        Image.open(path).convert(mode).save(path)
    train(category, tmp_path)


def test_a_smaller_mask_of_the_same_proportions_works(category, tmp_path):
    for path in category.glob("ground_truth/hole/*.png"):
        Image.open(path).resize((48, 40), Image.Resampling.NEAREST).save(path)
    train(category, tmp_path)


def test_masks_that_are_named_for_normal_images_need_not_exist(category, tmp_path):
    """As in BTech, whose table has one for each training image."""
    for ours, theirs in {"train/good": "train/ok", "test/good": "test/ok", "test/hole": "test/ko"}.items():
        shutil.copytree(category / ours, tmp_path / "btech/01" / theirs)
    for path in category.glob("ground_truth/hole/*.png"):
        mask = tmp_path / f"btech/01/ground_truth/ko/{path.name.replace('_mask', '')}"
        mask.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, mask)
    data = BTech(tmp_path / "btech", "01", num_workers=0)
    engine(tmp_path).train(dskd(training_steps=1), datamodule=data)
    named = data.train_data.samples.mask_path
    assert all(named)
    assert not any(Path(path).exists() for path in named)


def test_an_image_may_have_a_mask_for_each_defect(tmp_path):
    """As in MVTec LOCO, whose lists of masks anomalib merges itself."""
    image = str(write(tmp_path / "a.png"))
    masks = [str(write(tmp_path / f"{i}.png")) for i in range(2)]
    check_samples(pd.DataFrame({"image_path": [image, image], "mask_path": [masks, None]}))
    Path(masks[1]).write_bytes(b"")
    with pytest.raises(DskdError, match=r"1\.png: it is empty"):
        check_samples(pd.DataFrame({"image_path": [image], "mask_path": [masks]}))


# Images that do not


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


SPOILED = {
    "truncated": (truncate, "Restore the file or take it away"),
    "empty": (lambda path: path.write_bytes(b""), "it is empty"),
    "text": (lambda path: path.write_text("no image"), "cannot identify image file"),
    "16 bit": (lambda path: write(path, mode="I;16"), "16-bit or float levels"),
}


@pytest.mark.parametrize("spoiled", SPOILED)
@pytest.mark.parametrize("name", ["train/good/003.png", "test/hole/002.png"])
def test_bad_images_are_named_before_training(category, tmp_path, name, spoiled):
    spoil, message = SPOILED[spoiled]
    spoil(category / name)
    with pytest.raises(DskdError, match=f"(?s)^1 of 16 images cannot be used:.*{name}.*{message}"):
        train(category, tmp_path)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_truncated_jpeg_is_found(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(path)
    check_images([path])
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DskdError, match="truncated"):
        check_images([path])


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.ppm"])
def test_sixteen_bit_colour_is_refused_as_on_the_line(tmp_path, name):
    """Pillow gives it as 8 bits, so that a line would refuse what was trained on without a word."""
    levels = np.full((8, 8, 3), 100 * 257, np.uint16)
    tifffile.imwrite(tmp_path / name, levels) if name == "a.tif" else cv2.imwrite(str(tmp_path / name), levels)
    with pytest.raises(DskdError, match=f"{name}: 16-bit"):
        check_images([tmp_path / name])
    with pytest.raises(ImageError, match="16-bit"):
        decode((tmp_path / name).read_bytes(), max_pixels=64)


@pytest.mark.filterwarnings("error")
def test_a_damaged_header_is_a_damaged_image(tmp_path):
    """One of so many pixels that Pillow takes it for an attack."""
    path = write(tmp_path / "a.bmp")
    header = path.read_bytes()
    path.write_bytes(header[:18] + (60_000).to_bytes(4, "little") * 2 + header[26:])
    with pytest.raises(DskdError, match=r"a\.bmp: Image size \(3600000000 pixels\) exceeds limit.*Restore the file"):
        check_images([path])


def test_many_bad_images_are_counted(tmp_path):
    paths = [tmp_path / f"{index:02}.png" for index in range(13)]
    for path in paths:
        path.touch()
    with pytest.raises(DskdError, match=r"(?s)^13 of 13 images.*09\.png.*and 3 more$"):
        check_images(paths)


def test_a_mask_of_other_proportions_is_refused(category, tmp_path):
    write(category / "ground_truth/hole/001_mask.png", (80, 40), "L")
    with pytest.raises(DskdError, match=r"hole/001_mask\.png: the mask is 40x80, its image 96x80"):
        train(category, tmp_path)


def test_bad_images_are_named_before_prediction(tmp_path, mvtec_root):
    model = dskd(training_steps=1)
    engine(tmp_path).fit(model, datamodule=MVTecAD(mvtec_root, "stripes", num_workers=0))
    write(tmp_path / "parts/a.png")
    truncate(write(tmp_path / "parts/b.png"))
    with pytest.raises(DskdError, match=r"1 of 2 images.*\n.*parts/b\.png"):
        engine(tmp_path).predict(model, dataset=PredictDataset(tmp_path / "parts"))


# Categories


@pytest.mark.parametrize("kind", [MVTec, MVTecAD])
def test_a_typo_lists_what_is_there(mvtec_root, kind):
    with pytest.raises(DataError, match=r"There is no category 'strips': .* has stripes\.$"):
        kind(mvtec_root, "strips").prepare_data()


def test_a_typo_lists_the_published_ones_where_nothing_is_there(tmp_path):
    with pytest.raises(DataError, match=r"bottle, cable, .* zipper\.$"):
        MVTec(tmp_path / "none", "bottel").prepare_data()


@pytest.mark.parametrize(("kind", "category"), [(MVTec, "bottle"), (MVTecAD, "bottle"), (MVTec3D, "bagel")])
def test_offline_without_data(tmp_path, monkeypatch, kind, category):
    def no_network(*args, **kwargs):
        raise URLError("no network")  # noqa: EM101, TRY003

    monkeypatch.setattr("anomalib.data.utils.download.urlretrieve", no_network)
    root = tmp_path / "absent"
    with pytest.raises(
        DataError, match=rf"{category} does not exist.*no network.*https://www\.mvtec\.com.*--data\.root"
    ):
        kind(root, category).prepare_data()
    assert not root.exists()


def test_an_empty_category(tmp_path):
    (tmp_path / "bottle/train/good").mkdir(parents=True)
    with pytest.raises(DataError, match=r"bottle has no \.png images.*--data Folder"):
        MVTec(tmp_path, "bottle").prepare_data()


def test_no_normal_images(category, tmp_path):
    shutil.rmtree(category / "train")
    with pytest.raises(DataError, match=r"stripes/train/good has no \.png images"):
        train(category, tmp_path)


def test_a_folder_without_normal_images(mvtec_root, tmp_path):
    (tmp_path / "good").mkdir()
    for kind in (RuntimeError, DataError):
        with pytest.raises(kind, match=rf"Found 0 .* images in {tmp_path}/good.* Good parts belong into normal_dir"):
            Folder("mine", root=tmp_path, normal_dir="good").setup()


def test_errors_on_the_command_line(mvtec_root, category, tmp_path):
    truncate(category / "train/good/003.png")
    for arguments, message in (
        (["MVTecAD", "--data.root", mvtec_root, "--data.category", "strips"], "There is no category 'strips'"),
        (["MVTec", "--data.root", category.parent, "--data.category", "stripes"], "003.png"),
        (["Folder", "--data.name", "mine", "--data.normal_dir", category / "no"], "Good parts belong into normal_dir"),
        (["MagneticTile", "--data.root", tmp_path / "mt"], "Get Magnetic Tile Defects from https://github.com/abin24"),
    ):
        result = anomalib(
            *["train", "--model", "Dskd", "--model.teacher_weights", "random", "--data", *arguments],
            cwd=tmp_path,
            check=False,
        )
        assert result.returncode != 0
        assert message in result.stderr.replace("\n", " ")
        assert "Traceback" not in result.stderr


# Magnetic Tile Defects


@pytest.fixture(scope="session")
def tiles(tmp_path_factory) -> Path:
    """The published layout with as many tiny normal images as published, and two tiles of each defect."""
    root = tmp_path_factory.mktemp("tiles")
    for name in CLASSES:
        folder = root / f"MT_{name}/Imgs"
        folder.mkdir(parents=True)
        for index in range(952 if name == "Free" else 12):
            stem = f"exp{index % 6 + 1}_num_{1000 * (index // 6) + 10 * (index % 6)}"
            Image.new("L", (64, 64), index % 256).save(folder / f"{stem}.jpg")
            Image.new("L", (64, 64), 0 if name == "Free" else 255).save(folder / f"{stem}.png")
    return root


def test_tiles_are_not_shared(tiles):
    data = MagneticTile(tiles, num_workers=0)
    data.prepare_data()
    data.setup()
    train, val, test = (set(d.samples.part) for d in (data.train_data, data.val_data, data.test_data))
    assert not train & val
    assert not (train | val) & test
    assert {t for t in test if t.startswith("Free")} == {f"Free-{n:03}" for n in TEST_TILES if n < 159}
    assert set(data.val_data.samples.label) == {"Free"}
    assert set(data.test_data.samples.label) == set(CLASSES)
    assert data.name == "MagneticTile"
    item = data.test_data[0]
    assert item.gt_mask.shape == (64, 64)
    again = MagneticTile(tiles, num_workers=0)
    again.setup()
    assert set(again.val_data.samples.part) == val


def test_halves_of_the_test_tiles(tiles):
    halves = {}
    for half in ("all", "dev", "report"):
        data = MagneticTile(tiles, half=half)
        data.setup()
        halves[half] = set(data.test_data.samples.image_path)
    assert halves["dev"] | halves["report"] == halves["all"]
    assert not halves["dev"] & halves["report"]


@pytest.mark.parametrize("mode", ["from_test", "synthetic"])
def test_every_hold_out_is_by_tile(tiles, mode):
    data = MagneticTile(tiles, val_split_mode=mode)
    data.setup()
    rest = data.test_data if mode == "from_test" else data.train_data
    if mode == "from_test":
        assert not set(data.val_data.samples.part) & set(rest.samples.part)
    else:
        assert len(data.val_data) + len(rest) == (make_magnetic_tile_dataset(tiles).split == "train").sum()


def test_differnets_list(tiles, tmp_path):
    names = sorted(path.name for path in (tiles / "MT_Free/Imgs").glob("*.jpg"))
    path = tmp_path / "mtd_train_filenames.txt"
    path.write_text("\n".join(names[:700]) + "\n")
    samples = make_magnetic_tile_dataset(tiles, "differnet", path)
    assert {Path(p).name for p in samples[samples.split == "train"].image_path} == set(names[:700])
    path.write_text("exp9_num_9.jpg")
    with pytest.raises(DataError, match=r"names 1 images that .*MT_Free/Imgs lacks, such as exp9_num_9\.jpg"):
        make_magnetic_tile_dataset(tiles, "differnet", path)
    with pytest.raises(DataError, match=r"There is no .*mtd_train_filenames\.txt"):
        MagneticTile(tiles, protocol="differnet").prepare_data()


def test_incomplete_tiles(tiles, tmp_path):
    with pytest.raises(DataError, match=r"has no MT_Free, MT_Blowhole.*https://github\.com/abin24"):
        MagneticTile(tmp_path).prepare_data()
    root = Path(shutil.copytree(tiles, tmp_path / "tiles"))
    next((root / "MT_Break/Imgs").glob("*.png")).unlink()
    with pytest.raises(DataError, match="the mask of"):
        make_magnetic_tile_dataset(root)
    next((root / "MT_Free/Imgs").glob("*.jpg")).unlink()
    shutil.copytree(tiles / "MT_Break", root / "MT_Break", dirs_exist_ok=True)
    with pytest.raises(DataError, match="has 951 images, the published set 952"):
        make_magnetic_tile_dataset(root)
    with pytest.raises(DskdError, match="'tile_disjoint', 'differnet'"):
        MagneticTile(tiles, protocol="random")


@needs_shared
def test_splits_are_those_published_with_the_figures(tmp_path):
    root = SHARED / "data/magnetic_tile"
    with (root / "split.csv").open() as file:
        expected = {row["path"]: row for row in csv.DictReader(file)}
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(Path(p).name for p, row in expected.items() if row["differnet"] == "train"))
    for protocol in DEV_TILES:
        rebuilt = make_magnetic_tile_dataset(root, protocol, listed)
        assert len(rebuilt) == len(expected)
        for row in rebuilt.itertuples():
            right = expected[str(Path(row.image_path).relative_to(root))]
            assert (row.part, row.split, row.half) == (right["tile"], right[protocol], right[f"{protocol}_half"])


# Demo textures


def test_demo_textures_are_reproducible(tmp_path):
    for seed, folder in ((0, "a"), (0, "b"), (1, "c")):
        make_category(tmp_path / folder, "gravel", seed)
    first, again, other = (sorted((tmp_path / folder).rglob("*.png")) for folder in "abc")
    assert len(first) == len(again) == len(other)
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, again, strict=True))
    assert sum(a.read_bytes() == c.read_bytes() for a, c in zip(first, other, strict=True)) == 0


def test_defects_change_what_their_mask_says():
    generator = np.random.default_rng(0)
    image = generator.uniform(0.3, 0.7, (128, 128, 3))
    for name, draw in DEFECTS.items():
        for _ in range(20):
            drawn, mask = draw(image, generator)
            changed = (drawn != image).any(axis=2)
            assert mask.any(), name
            assert not changed[~mask].any(), name
            assert changed[mask].mean() > 0.99, name


def test_demo_textures_hold_out_another_part_of_the_photograph(tmp_path):
    data = DemoTextures(tmp_path, "brick")
    data.prepare_data()
    data.setup()
    assert [len(d) for d in (data.train_data, data.val_data, data.test_data)] == [96, 40, 78]
    assert all("held_out" in path for path in data.val_data.samples.image_path)
    assert not any("held_out" in path for path in data.train_data.samples.image_path)
    assert not list(tmp_path.glob(".*"))
    with pytest.raises(DskdError, match="'brick', 'grass', 'gravel'"):
        DemoTextures(category="wood")


# MVTec 3D-AD


@pytest.fixture(scope="session")
def mvtec_3d(tmp_path_factory) -> Path:
    """A category in MVTec 3D-AD's layout."""
    root = tmp_path_factory.mktemp("mvtec3d")
    generator = np.random.default_rng(0)
    for part, count in (("train/good", 6), ("validation/good", 2), ("test/good", 3), ("test/hole", 3)):
        for index in range(count):
            pixels = generator.integers(100, 150, (72, 72, 3), np.uint8)
            mask = np.zeros((72, 72), np.uint8)
            if part == "test/hole":
                pixels[20:40, 20:40], mask[20:40, 20:40] = 0, 255
            for kind, array in (("rgb", pixels), ("gt", mask)):
                path = root / "bagel" / part / kind / f"{index:03}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                if kind == "rgb" or part.startswith("test"):
                    Image.fromarray(array).save(path)
            path = root / "bagel" / part / "xyz" / f"{index:03}.tiff"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, generator.normal(size=(72, 72, 3)).astype(np.float32))
    return root


def test_rgb_images_of_mvtec_3d(mvtec_3d, tmp_path):
    data = MVTec3D(mvtec_3d, "bagel", num_workers=0)
    model = dskd(training_steps=2)
    metrics = engine(tmp_path).train(model, datamodule=data)
    assert set(metrics[0]) >= {"image_AUROC", "pixel_AUROC"}
    assert list(tmp_path.rglob("students/**/*.png"))


# Configurations


@pytest.mark.parametrize("path", sorted((REPO / "configs/data").glob("*.yaml")), ids=lambda path: path.stem)
def test_data_configs_are_complete(path):
    import anomalib.data  # noqa: PLC0415

    config = yaml.safe_load(path.read_text())
    getattr(anomalib.data, config["class_path"])(**config["init_args"])
