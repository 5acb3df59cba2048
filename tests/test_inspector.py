# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The inspector, run as on the line: a bundle that was copied away, in processes of its own."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import psutil
import pytest
from PIL import Image
from scipy import ndimage

from anomalib_dskd import inspector

from .conftest import run

GONE = 1e6


@pytest.fixture(scope="module")
def bundle(small_bundle, tmp_path_factory) -> Path:
    return shutil.copytree(small_bundle, tmp_path_factory.mktemp("factory") / "bundle")


@pytest.fixture(scope="module")
def images(mvtec_root, tmp_path_factory) -> Path:
    """The eight test images, in two folders."""
    return shutil.copytree(mvtec_root / "stripes/test", tmp_path_factory.mktemp("line") / "images")


def command(bundle: Path, *arguments: object) -> list[str]:
    return [sys.executable, "-I", str(bundle / "inspector.py"), *map(str, arguments)]


def inspect(bundle: Path, *arguments: object, **kwargs) -> subprocess.CompletedProcess:
    return run(command(bundle, *arguments), check=False, timeout=100, **kwargs)


def records(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def parts(log: Path) -> list[dict]:
    return [record for record in records(log.read_text()) if record["event"] == "part"]


def middle(bundle: Path, images: Path) -> float:
    """A threshold that some parts exceed and some do not."""
    scores = [record["score"] for record in records(inspect(bundle, images, "--json").stdout)]
    return float(np.median(scores))


@pytest.fixture(scope="module")
def threshold(bundle, images) -> float:
    return middle(bundle, images)


def wait_for(condition, process: subprocess.Popen | None = None, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Watching:
    """The inspector watching a folder, until the block ends with SIGTERM."""

    def __init__(self, bundle: Path, folder: Path, *arguments: object, **kwargs) -> None:
        self.folder, self.log = folder, folder.with_name("log.jsonl")
        self.arguments = command(bundle, folder, "--watch", "--log", self.log, *arguments)
        self.kwargs = kwargs

    def __enter__(self):
        self.process = subprocess.Popen(
            self.arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **self.kwargs
        )
        started = self.log.read_text().count('"start"') if self.log.is_file() else 0
        wait_for(lambda: self.log.is_file() and self.log.read_text().count('"start"') > started, self.process)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.stdout, self.stderr = self.process.communicate(timeout=60)

    def logged(self, number: int) -> list[dict]:
        wait_for(lambda: len(parts(self.log)) >= number, self.process)
        return parts(self.log)


# Verdicts


def test_neither_torch_nor_anomalib_is_imported(bundle, images, tmp_path):
    """Nor is anything written into the working directory or the bundle."""
    script = f"""
import runpy, sys
sys.argv = [{str(bundle / "inspector.py")!r}, {str(images)!r}]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print(sorted({{name.split(".")[0] for name in sys.modules}} & {{"torch", "anomalib", "anomalib_dskd", "scipy"}}))
"""
    before = sorted(bundle.iterdir())
    result = run([sys.executable, "-c", script], cwd=tmp_path, check=False)
    assert result.stdout.splitlines()[-1] == "[]"
    assert result.returncode in {0, 3}
    assert not list(tmp_path.iterdir())
    assert sorted(bundle.iterdir()) == before


def test_exit_codes_and_summary(bundle, images, threshold, tmp_path):
    assert inspect(bundle, images, "--threshold", GONE).returncode == 0
    found = inspect(bundle, images, "--threshold", threshold)
    assert found.returncode == 3
    assert [line.split()[0] for line in found.stdout.splitlines()].count("NG") == 4
    assert "8 parts: 4 OK, 4 NG, 0 ERROR; p50 " in found.stderr
    assert "changed from" in found.stderr
    mixed = shutil.copytree(images, tmp_path / "images")
    (mixed / "broken.png").write_bytes(b"no image")
    broken = inspect(bundle, mixed, "--threshold", threshold)
    assert broken.returncode == 4
    assert "ERROR" in broken.stdout
    assert "4 OK, 4 NG, 1 ERROR" in broken.stderr
    alone = inspect(bundle, images / "good/000.png", "--json", "--threshold", GONE)
    assert alone.returncode == 0
    assert records(alone.stdout)[0]["file"] == str(images / "good/000.png")
    assert inspect(bundle, tmp_path / "absent").returncode == 2
    (tmp_path / "empty").mkdir()
    assert "has no images" in (nothing := inspect(bundle, tmp_path / "empty")).stderr
    assert nothing.returncode == 1


def test_regions_are_those_of_scipy():
    generator = np.random.default_rng(0)
    for density in (0.05, 0.3, 0.5, 0.9, 0.0, 1.0):
        mask = generator.random((40, 57)) < density
        labels, number = ndimage.label(mask, np.ones((3, 3)))
        found = inspector.label_regions(mask)
        assert len(np.unique(found[found > 0])) == number
        assert len(np.unique(np.stack([labels, found]).reshape(2, -1), axis=1).T) == number + (not mask.all())
        values = generator.random(mask.shape) + 1
        regions = inspector.find_regions(np.where(mask, values, 0), 0.5, (114, 80))
        boxes = ndimage.find_objects(labels)
        expected = [
            ([2 * x.start, 2 * y.start, 2 * x.stop, 2 * y.stop], 4 * int((labels == n + 1).sum()))
            for n, (y, x) in enumerate(boxes)
        ]
        assert all((region["box"], region["area"]) in expected for region in regions)
        assert len(regions) == min(20, number)
        if number:
            assert regions[0]["score"] == np.where(mask, values, 0).max()


def test_regions_pictures_and_maps(bundle, images, threshold, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log.jsonl"
    inspect(bundle, images, "--threshold", threshold, "--out", out, "--maps", "all", "--log", log)
    for record in parts(log):
        if record["verdict"] == "OK":
            assert "regions" not in record
            assert "picture" not in record
            continue
        maps = np.load(record["maps"])
        assert set(maps) == {"map", "encoder_map", "decoder_map"}
        (top, *_), regions = record["regions"], record["regions"]
        assert top["score"] == pytest.approx(maps["map"].max())
        rows, columns = np.unravel_index(maps["map"].argmax(), maps["map"].shape)
        left, upper, right, lower = top["box"]
        assert left <= columns / 96 * 96 <= right
        assert upper <= rows / 64 * 80 <= lower
        assert all(0 < region["area"] <= 96 * 80 for region in regions)
        picture = np.asarray(Image.open(record["picture"]).convert("RGB")).astype(int)
        assert picture.shape == (333, 2 * 400, 3)
        original = np.asarray(Image.open(record["file"]).convert("RGB").resize((400, 333))).astype(int)
        assert np.abs(picture[:, :400] - original).mean() < 5
        assert (picture[:, 400:, 0] > picture[:, 400:, 1] + 100).any(), "red frames"
    assert len(list(out.glob("*.jpg"))) == len(list(out.glob("*.npz"))) == 4
    maps = ["--out", tmp_path / "maps", "--maps", "fused", "--pictures", "none", "--threshold", threshold]
    assert inspect(bundle, images, *maps).returncode == 3
    assert {path.suffix for path in (tmp_path / "maps").iterdir()} == {".npz"}


def test_regions_are_of_the_whole_image_where_it_is_cropped(bundle, images, threshold, tmp_path):
    contract = json.loads((bundle / "metadata.json").read_text())["input"]
    with_margin = shutil.copytree(bundle, tmp_path / "bundle")
    edit(with_margin, input={**contract, "cropped": [24, 16, 8, 0]})  # so that the map is of 80x128 pixels in all
    logs = [tmp_path / "whole.jsonl", tmp_path / "cropped.jsonl"]
    for each, log in zip((bundle, with_margin), logs, strict=True):
        inspect(each, images, "--threshold", threshold, "--out", log.with_suffix(""), "--maps", "fused", "--log", log)
    compared = 0
    for whole, with_crop in zip(*map(parts, logs), strict=True):
        assert whole["score"] == with_crop["score"]
        for before, after in zip(whole.get("regions", []), with_crop.get("regions", []), strict=True):
            left, top, right, bottom = before["box"]
            expected = [(left + 24) * 96 / 128, top * 64 / 80 + 16, (right + 24) * 96 / 128, bottom * 64 / 80 + 16]
            np.testing.assert_allclose(after["box"], expected, atol=1.1)
            assert after["area"] == pytest.approx(before["area"] * (96 / 128) * (64 / 80), abs=2)
            compared += 1
        if with_crop["verdict"] == "NG":
            assert np.load(with_crop["maps"])["map"].shape == (64, 96), "the raw map is the graph's"
            drawn = np.asarray(Image.open(with_crop["picture"]).convert("RGB")).astype(int)[:, 400:]
            margin = drawn[8:50, 8:60]  # of 66 rows and 75 columns
            assert (margin[..., 2] > margin[..., 0]).all(), "cold"
    assert compared


@pytest.mark.parametrize(
    ("arguments", "reason"), [(["--maps", "all"], "--maps needs --out"), (["--out"], "judged too")]
)
def test_options_that_contradict_each_other(bundle, images, arguments, reason):
    result = inspect(bundle, images, *arguments, *([images] if arguments == ["--out"] else []))
    assert result.returncode == 2
    assert reason in result.stderr


def test_threshold_is_data(bundle, images, threshold, tmp_path):
    """Changed in metadata.json: the same bundle, other verdicts, and both logged."""
    moved, log = shutil.copytree(bundle, tmp_path / "bundle"), tmp_path / "log.jsonl"
    metadata = json.loads((moved / "metadata.json").read_text())
    exported = metadata["threshold"]["image"]
    metadata["threshold"]["image"] = threshold
    metadata["threshold"]["pixel"] *= 2
    (moved / "metadata.json").write_text(json.dumps(metadata))
    before, after = (inspect(folder, images, "--log", log).stderr for folder in (bundle, moved))
    assert "changed from" not in before
    assert "warning: the threshold is" in after
    assert "warning: the pixel threshold is" in after
    starts = [record for record in records(log.read_text()) if record["event"] == "start"]
    assert [start["threshold"] for start in starts] == [exported, threshold]
    assert [start["threshold_at_export"] for start in starts] == [exported, exported]
    assert starts[1]["pixel_threshold"] == 2 * starts[1]["pixel_threshold_at_export"]
    assert starts[0]["bundle"] == starts[1]["bundle"]
    first, second = parts(log)[:8], parts(log)[8:]
    assert [part["score"] for part in first] == pytest.approx([part["score"] for part in second], rel=1e-5)
    assert [part["normalised"] for part in first] == pytest.approx([part["normalised"] for part in second], rel=1e-5)
    assert {part["threshold"] for part in second} == {threshold}
    assert sum(part["verdict"] == "NG" for part in second) == 4


# Images that cannot be judged


def test_what_cannot_be_judged_is_an_error_and_never_ok(bundle, images, tmp_path):
    source = tmp_path / "images"
    source.mkdir()
    good = images / "good/000.png"
    data = good.read_bytes()
    picture = Image.open(good)
    picture.save(source / "whole.jpg")
    jpeg = (source / "whole.jpg").read_bytes()
    noise = np.random.default_rng(0).integers(0, 65536, (80, 96), dtype=np.uint16)
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    broken = {
        "cut.png": data[: len(data) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "empty.png": b"",
        "text.bmp": b"hello",
        "flipped_bit.png": bytes(flipped),
        "zeros.tif": bytes(10_000),
    }
    for name, content in broken.items():
        (source / name).write_bytes(content)
    Image.fromarray(noise).save(source / "16_bit.png")
    Image.fromarray(noise.astype(np.float32)).save(source / "float.tif")
    for name in ("16_bit_colour.png", "16_bit_colour.tif"):
        cv2.imwrite(str(source / name), np.stack([noise] * 3, axis=-1))
    os.mkfifo(source / "pipe.png")
    with (source / "large.bmp").open("wb") as large:
        large.truncate(8 * 5_000_000 + 1)
    Image.new("L", (3000, 2000)).save(source / "huge.png")
    Image.new("L", (96, 80)).save(source / "bomb.png")
    bomb = (source / "bomb.png").read_bytes()
    header = b"IHDR" + (200_000).to_bytes(4, "big") * 2 + bomb[24:29]
    (source / "bomb.png").write_bytes(bomb[:12] + header + zlib.crc32(header).to_bytes(4, "big") + bomb[33:])
    (source / "directory.png").mkdir()
    (source / "dangling.png").symlink_to(tmp_path / "absent.png")
    Image.open(good).convert("P").save(source / "fine_palette.png")
    picture.convert("L").save(source / "fine_grey.bmp")
    past = time.time() - 100
    for path in source.iterdir():
        if path.exists():
            os.utime(path, (past, past))
    begun = time.monotonic()
    result = inspect(bundle, source, "--json", "--max-pixels", 5_000_000, "--threshold", GONE, "--patience", 20)
    assert time.monotonic() - begun < 20, "old files are not waited for"
    verdicts = {Path(record["file"]).name: record for record in records(result.stdout)}
    fine = {name for name, record in verdicts.items() if record["verdict"] == "OK"}
    assert fine == {"whole.jpg", "fine_palette.png", "fine_grey.bmp"}
    named = {
        "16_bit.png": "16-bit",
        "16_bit_colour.png": "16-bit",
        "16_bit_colour.tif": "16-bit",
        "float.tif": "16-bit or float",
        "pipe.png": "no file",
        "large.bmp": "40000001 bytes, more than 8 for each of --max-pixels",
        "dangling.png": "No such file",
        "huge.png": "3000x2000 pixels, more than --max-pixels 5000000",
        "bomb.png": "200000x200000",
        "empty.png": "it is empty",
        "cut.jpg": "truncated",
    }
    assert set(verdicts) == fine | set(broken) | set(named)
    for name, reason in named.items():
        assert reason in verdicts[name]["error"]
        assert verdicts[name]["score"] is None
    assert result.returncode == 4


def test_images_of_another_size_than_the_bundles(bundle, images, tmp_path):
    fixed = shutil.copytree(bundle, tmp_path / "bundle")
    metadata = json.loads((fixed / "metadata.json").read_text())
    metadata["input"].update(width=96, height=80)
    (fixed / "metadata.json").write_text(json.dumps(metadata))
    source = tmp_path / "images"
    source.mkdir()
    shutil.copy(images / "good/000.png", source / "right.png")
    Image.open(images / "good/000.png").resize((80, 96)).save(source / "turned.png")
    any_size, one_size = (records(inspect(folder, source, "--json").stdout) for folder in (bundle, fixed))
    assert any_size[0]["score"] == pytest.approx(one_size[0]["score"], rel=1e-5)
    assert any_size[1]["verdict"] != "ERROR"
    assert one_size[1]["verdict"] == "ERROR"
    assert one_size[1]["error"] == "it has 80x96 pixels, the bundle was made for 96x80"


# A line that does not stop


def test_a_burst_does_not_make_the_watch_blind(tmp_path):
    """The time in which parts are judged is none that the folder was listed in."""
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(b"early")
    judged: dict[str, tuple[int, int] | None] = {}
    ends, came = time.monotonic() + 30, None
    for file in inspector.watch(tmp_path, None, judged, 0.05, lambda: time.monotonic() > ends, print):
        if file is None:
            if len(judged) == 10 and came is None:
                (tmp_path / "late.png").write_bytes(b"late")
                came = time.monotonic()
            time.sleep(0.02)
            continue
        judged[str(file[0])] = inspector.status_of(file[0])
        if file[0].name == "late.png":
            break
        time.sleep(0.3)
    assert time.monotonic() - came < 1.5, "the burst took 3 s, and the folder was not looked at for as long"


def test_watched_folder(bundle, images, tmp_path):
    """New, slow, renamed, replaced and hopeless files, in a folder whose subfolder is written to; then once more."""
    folder = tmp_path / "line"
    (folder / "shift").mkdir(parents=True)
    data = (images / "hole/000.png").read_bytes()
    whole = records(inspect(bundle, images / "hole/000.png", "--json").stdout)[0]["score"]
    (folder / "early.png").write_bytes(data)
    arguments = ["--threshold", 1e-9, "--json", "--out", folder / "found", "--patience", 1.5, "--settle", 0.2]
    with Watching(bundle, folder, *arguments) as watching:
        watching.logged(1)
        (folder / "shift/new.png").write_bytes(data)
        watching.logged(2)
        with (folder / "slow.png").open("wb") as slow:
            for chunk in np.array_split(np.frombuffer(data, np.uint8), 4):
                slow.write(chunk)
                slow.flush()
                time.sleep(0.6)
        watching.logged(3)
        (folder / "x.tmp").write_bytes(data)
        (folder / "x.tmp").replace(folder / "renamed.png")
        watching.logged(4)
        (folder / "hopeless.png").write_bytes(data[:-100])
        (folder / "behind.png").write_bytes(data)
        logged = watching.logged(6)
        (folder / "hopeless.png").write_bytes(data)
        watching.logged(7)
    names = [Path(record["file"]).name for record in logged]
    assert names == ["early.png", "new.png", "slow.png", "renamed.png", "behind.png", "hopeless.png"]
    assert [record["verdict"] for record in parts(watching.log)] == ["NG"] * 5 + ["ERROR", "NG"]
    assert [record["score"] for record in logged[:5]] == pytest.approx([whole] * 5, rel=1e-5)
    assert len(list((folder / "found").iterdir())) == 6
    assert watching.process.returncode == 4
    assert [record["event"] for record in records(watching.log.read_text())] == ["start", *["part"] * 7, "summary"]
    assert parts(watching.log) == records(watching.stdout)

    # while it was off, one came and one was replaced
    (folder / "later.png").write_bytes(data)
    (folder / "early.png").write_bytes((images / "good/000.png").read_bytes())
    with Watching(bundle, folder, *arguments) as again:
        again.logged(9)
        time.sleep(1)
    assert sorted(Path(record["file"]).name for record in parts(again.log)[7:]) == ["early.png", "later.png"]
    assert again.process.returncode == 3


def test_a_lost_share_stops_nothing_and_is_not_judged_again(bundle, images, tmp_path):
    """The folder vanishes, is an empty one for a while, as a mount point is, and comes back with one file more."""
    folder, away = tmp_path / "line", tmp_path / "away"
    folder.mkdir()
    for index in range(3):
        shutil.copy(images / "good/000.png", folder / f"{index}.png")
    with Watching(bundle, folder, "--threshold", GONE, "--settle", 0.1) as watching:
        watching.logged(3)
        folder.replace(away)
        time.sleep(1)
        folder.mkdir()
        time.sleep(1)
        folder.rmdir()
        shutil.copy(images / "good/000.png", away / "new.png")
        away.replace(folder)
        watching.logged(4)
        time.sleep(1)
    assert sorted(Path(record["file"]).name for record in parts(watching.log)) == ["0.png", "1.png", "2.png", "new.png"]
    assert watching.process.returncode == 0
    assert watching.stderr.count("it is tried again") in {1, 2}


def test_a_fresh_file_is_waited_for_whatever_its_clock_says(bundle, images, tmp_path):
    folder = tmp_path / "line"
    folder.mkdir()
    data = (images / "good/000.png").read_bytes()
    with Watching(bundle, folder, "--threshold", GONE, "--settle", 0.1, "--patience", 20) as watching:
        shutil.copy(images / "good/000.png", folder / "first.png")
        watching.logged(1)
        (tmp_path / "half.png").write_bytes(data[: len(data) // 2])
        os.utime(tmp_path / "half.png", (0, 0))
        (tmp_path / "half.png").replace(folder / "half.png")
        time.sleep(1)
        (folder / "half.png").write_bytes(data)
        watching.logged(2)
    assert [record["verdict"] for record in parts(watching.log)] == ["OK", "OK"]


def test_a_folder_that_cannot_be_listed_is_no_empty_one(tmp_path):
    problems: list[OSError] = []
    assert inspector.list_images(tmp_path / "absent", None, problems.append) == []
    assert [error.filename for error in problems] == [str(tmp_path / "absent")]


def test_folders_that_links_lead_to_are_listed_once(images, tmp_path):
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    shutil.copytree(images / "good", source / "good")
    shutil.copytree(images / "good", elsewhere / "deep")
    (source / "day1").symlink_to(elsewhere)
    (source / "latest").symlink_to(source / "good")
    (source / "all").symlink_to(tmp_path)
    (elsewhere / "loop").symlink_to(elsewhere)
    number = len(list((images / "good").iterdir()))
    listed = inspector.list_images(source, None)
    assert {path.parent for path in listed} == {source / "good", source / "day1/deep"}
    assert len(listed) == 2 * number
    assert inspector.list_images(source, elsewhere) == sorted((source / "good").iterdir())


def many(images: Path, folder: Path, number: int) -> Path:
    folder.mkdir()
    for index in range(number):
        os.link(images / f"good/00{index % 4}.png", folder / f"{index:05}.png")
    return folder


def test_sigterm_finishes_the_parts_in_hand(bundle, images, tmp_path):
    source, log = many(images, tmp_path / "images", 3000), tmp_path / "log.jsonl"
    process = subprocess.Popen(
        command(bundle, source, "--log", log, "--json", "--threshold", GONE), stdout=subprocess.PIPE, text=True
    )
    printed = [process.stdout.readline() for _ in range(20)]
    process.send_signal(signal.SIGTERM)
    rest = process.stdout.read()  # communicate() would lose what readline() has read ahead
    assert process.wait(timeout=60) == 4, "not all were judged"
    told = records("".join(printed) + rest)
    assert told == parts(log)
    assert 20 <= len(told) < 3000
    assert [record["part"] for record in told] == list(range(1, len(told) + 1))
    assert records(log.read_text())[-1]["event"] == "summary"
    assert records(log.read_text())[-1]["parts"] == len(told)
    assert records(log.read_text())[-1]["stopped_early"]


def test_log_survives_a_kill_and_is_continued(bundle, images, tmp_path):
    """What was printed is in the log, though the process had no time to close it; a torn line harms no other."""
    source, log = many(images, tmp_path / "images", 3000), tmp_path / "log.jsonl"
    process = subprocess.Popen(
        command(bundle, source, "--log", log, "--json", "--threshold", GONE), stdout=subprocess.PIPE, text=True
    )
    printed = [process.stdout.readline() for _ in range(30)]
    process.kill()
    process.communicate()
    with log.open("rb+") as file:  # as if power had failed in the middle of a line
        before = log.read_text().splitlines()
        file.truncate(log.stat().st_size - 20)
    inspect(bundle, images, "--log", log, "--threshold", GONE)
    lines = log.read_text().splitlines()
    assert lines[: len(before) - 1] == before[:-1]
    with pytest.raises(json.JSONDecodeError):
        json.loads(lines[len(before) - 1])
    continued = records("\n".join(lines[len(before) :]))
    assert [record["event"] for record in continued] == ["start", *["part"] * 8, "summary"]
    for line in printed[:-1]:
        assert line.strip() in lines[: len(before) - 1]


def parsed(line: str) -> dict | None:
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None


def test_full_disk(bundle, images, tmp_path):
    """A disk that is full from the start, and one that fills up and has room again."""
    result = inspect(bundle, images, "--log", "/dev/full", "--json", "--threshold", GONE)
    assert result.returncode == 0
    assert len(records(result.stdout)) == 8
    assert "warning: log not written: [Errno 28]" in result.stderr

    with Path("/dev/full").open("w") as full:
        inspected = subprocess.run(
            command(bundle, images, "--json", "--log", tmp_path / "printed.jsonl", "--threshold", GONE),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert inspected.returncode == 0
    assert "verdict not written to standard output: [Errno 28]" in inspected.stderr
    assert len(parts(tmp_path / "printed.jsonl")) == 8

    folder = tmp_path / "line"
    folder.mkdir()
    limits = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))}
    arguments = ["--threshold", 1e-9, "--out", tmp_path / "out", "--json"]
    with Watching(bundle, folder, *arguments, **limits) as watching:
        for index in range(6):
            shutil.copy(images / "hole/000.png", folder / f"{index}.png")
        told = [json.loads(watching.process.stdout.readline()) for _ in range(6)]
        assert watching.log.stat().st_size == 2000
        resource.prlimit(watching.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        shutil.copy(images / "hole/000.png", folder / "room.png")
        told.append(json.loads(watching.process.stdout.readline()))
    lines = watching.log.read_text().splitlines()
    whole = [record for line in lines if (record := parsed(line)) is not None]
    assert len(lines) == len(whole) + 1, "the torn line"
    assert sorted(record["part"] for record in whole if record["event"] == "part") == list(range(1, 8))
    assert [record["verdict"] for record in told] == ["NG"] * 7
    assert "picture" not in told[0]
    assert "picture" in told[-1]
    assert len(list((tmp_path / "out").iterdir())) == 1
    assert "warning: picture not saved" in watching.stderr
    assert "warning: log not written" in watching.stderr


def test_nobody_reads_the_verdicts(bundle, images, tmp_path):
    source, log = many(images, tmp_path / "images", 200), tmp_path / "log.jsonl"
    process = subprocess.Popen(
        command(bundle, source, "--log", log, "--json", "--threshold", GONE),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.readline()
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(parts(log)) == 200
    assert errors.count("nobody reads the verdicts") == 1


def test_log_rotation(bundle, images, tmp_path):
    source, log = many(images, tmp_path / "images", 60), tmp_path / "log.jsonl"
    inspect(bundle, source, "--log", log, "--log-size", 0.004, "--log-files", 3)
    names = sorted(path.name for path in tmp_path.glob("log*"))
    assert names == ["log.jsonl", "log.jsonl.1", "log.jsonl.2", "log.jsonl.3"]
    numbers = [record["part"] for name in reversed(names) for record in parts(tmp_path / name)]
    assert numbers == list(range(numbers[0], 61))
    assert all((tmp_path / name).stat().st_size < 20_000 for name in names)


def test_log_rotation_that_was_interrupted_loses_no_older_file(tmp_path):
    """Where somebody reads the newest file it may not be renamed, time and again."""
    for number in (2, 3):
        (tmp_path / f"log.{number}").write_text(f"{number}\n")
    (tmp_path / "log").write_text("0\n")
    log = inspector.Log(tmp_path / "log", size=1, files=3)
    log.write([{"event": "start"}])
    log.close()
    assert [(tmp_path / f"log.{number}").read_text() for number in (1, 2, 3)] == ["0\n", "2\n", "3\n"]


def test_quota_of_pictures(bundle, images, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.jpg").write_bytes(bytes(100_000))
    source = many(images, tmp_path / "images", 30)
    arguments = [source, "--threshold", 1e-9, "--out", out, "--quota", 0.4, "--maps", "fused"]
    for _ in range(2):
        inspect(bundle, *arguments)
        own = sorted(path for path in out.iterdir() if path.name != "mine.jpg")
        assert sum(path.stat().st_size for path in own) <= 400_000
        assert "00029" in own[-1].name
    assert (out / "mine.jpg").is_file()


def test_cache_lies_where_the_user_says(bundle, images, tmp_path):
    cache, cwd = tmp_path / "cache", tmp_path / "cwd"
    cwd.mkdir()
    scores = [
        records(inspect(bundle, images, "--json", "--cache", cache, cwd=cwd).stdout)[0]["score"] for _ in range(2)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-6)
    assert list(cache.iterdir())
    assert not list(cwd.iterdir())


# Bundles that must not be used


def damage_model(bundle: Path) -> None:
    data = bytearray((bundle / "model.bin").read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / "model.bin").write_bytes(data)


def edit(bundle: Path, **changes: object) -> None:
    metadata = json.loads((bundle / "metadata.json").read_text())
    (bundle / "metadata.json").write_text(json.dumps({**metadata, **changes}))


DAMAGES = {
    "model.bin is not the file that was exported": damage_model,
    "model.xml is missing": lambda bundle: (bundle / "model.xml").unlink(),
    "it has no metadata.json": lambda bundle: (bundle / "metadata.json").unlink(),
    "metadata.json cannot be read": lambda bundle: (bundle / "metadata.json").write_text('{"schema": '),
    "version 2, this inspector reads": lambda bundle: edit(bundle, schema_version=2),
    "The list of files in": lambda bundle: edit(bundle, files={}),
    "is damaged": lambda bundle: edit(bundle, threshold=None),
    "damaged: ValueError": lambda bundle: edit(
        bundle,
        input={"width": None, "height": None, "network_size": [64, 96], "cropped": [0, -1, 0, 0]},
    ),
    "A threshold of nan is no score": lambda bundle: edit(
        bundle, threshold={"image": float("nan"), "pixel": 1.0, "image_at_export": 1.0}
    ),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_damaged_bundles_are_refused(bundle, images, tmp_path, reason):
    damaged = shutil.copytree(bundle, tmp_path / "bundle")
    DAMAGES[reason](damaged)
    result = inspect(bundle, images, "--bundle", damaged)
    assert result.returncode == 1
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("inspector: error: ")
    assert reason in line


def test_unknown_device(bundle, images):
    result = inspect(bundle, images, "--device", "TPU")
    assert result.returncode == 1
    assert "--device TPU" in result.stderr
    assert "CPU" in result.stderr


def test_images_are_let_go_once_they_are_judged(bundle, tmp_path):
    """300 of 3 MB; a few of them are in hand at a time."""
    Image.new("RGB", (1000, 1000), "grey").save(tmp_path / "part.png")
    source, log = tmp_path / "images", tmp_path / "log.jsonl"
    source.mkdir()
    for number in range(300):
        os.link(tmp_path / "part.png", source / f"{number}.png")
    process = subprocess.Popen(command(bundle, source, "--log", log, "--threshold", GONE), stdout=subprocess.DEVNULL)
    memory = {}
    while process.poll() is None:
        if log.is_file():
            with suppress(psutil.NoSuchProcess):
                memory[log.read_bytes().count(b'"part"')] = psutil.Process(process.pid).memory_info().rss
        time.sleep(0.02)
    assert process.returncode == 0
    assert len(parts(log)) == 300
    early, late = (max(rss for told, rss in memory.items() if told in range(*span)) for span in ((50, 100), (200, 300)))
    assert late < early + 150e6, memory


# Long


@pytest.mark.long
def test_memory_stays_flat_over_ten_thousand_images(bundle, images, tmp_path):
    source, log = many(images, tmp_path / "images", 10_000), tmp_path / "log.jsonl"
    process = subprocess.Popen(
        command(bundle, source, "--log", log, "--threshold", 1e-9, "--out", tmp_path / "out", "--quota", 5),
        stdout=subprocess.DEVNULL,
    )
    memory: dict[int, int] = {}
    while process.poll() is None:
        if log.is_file():
            number = log.read_bytes().count(b"\n")
            memory.setdefault(number // 1000, psutil.Process(process.pid).memory_info().rss)
        time.sleep(0.5)
    assert process.returncode == 3
    assert len(parts(log)) == 10_000
    assert memory[9] < 1.05 * memory[2], memory
