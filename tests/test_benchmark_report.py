# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""The report of a benchmark, from cells as the harness leaves them."""

import base64
import io
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import rankdata
from sklearn.metrics import auc, f1_score, roc_auc_score, roc_curve

from anomalib_dskd.benchmark.config import SCHEMA
from anomalib_dskd.benchmark.report import write_report
from anomalib_dskd.benchmark.report_cells import read_results
from anomalib_dskd.benchmark.report_difference import interval
from anomalib_dskd.benchmark.report_gallery import choose, judge
from anomalib_dskd.benchmark.report_growth import growth
from anomalib_dskd.benchmark.report_means import means
from anomalib_dskd.benchmark.report_plots import GRID, Style, _on_grid, pareto_front
from anomalib_dskd.benchmark.report_tables import growth_table
from anomalib_dskd.benchmark.report_training import time_to_accuracy, training
from anomalib_dskd.errors import DskdError

from .conftest import run

COMMAND = "anomalib-dskd benchmark --config 'a b.yaml' --out <here>"
TRACEBACK = 'Traceback (most recent call last):\n  File "padim.py"\nRuntimeError: <b>4 GiB</b> | too much'
REFUSAL = "ReverseDistillation knows ResNets only"
MODELS = {"Dskd": 1.5, "Patchcore": 3.0, "Padim": 0.5, "Stfpm": 1.0, "ReverseDistillation": 0.0}
DATA = {"parts": ["bolt", "nut"], "cloth": ["linen"]}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def areas(labels, scores):
    """Return the AUROC of each row, as the Mann-Whitney statistic."""
    ranks, normal, anomalous = rankdata(scores, axis=-1), (labels == 0).sum(-1), (labels == 1).sum(-1)
    return ((ranks * labels).sum(-1) - anomalous * (anomalous + 1) / 2) / (normal * anomalous)


def bootstrap(scores_a, scores_b, labels, metric="image_AUROC", rounds=1000, seed=0, groups=None):
    """A stand-in with the harness's signature."""
    random = np.random.default_rng(seed)
    kinds = [np.flatnonzero(labels == label) for label in (0, 1)]
    index = np.concatenate([random.choice(kind, (rounds, len(kind))) for kind in kinds], axis=1)
    drawn = areas(labels[index], scores_a[index]) - areas(labels[index], scores_b[index])
    return roc_auc_score(labels, scores_a) - roc_auc_score(labels, scores_b), *np.quantile(drawn, [0.025, 0.975])


@pytest.fixture(autouse=True, scope="module")
def _a_bootstrap():
    name = "anomalib_dskd.benchmark.bootstrap"
    with pytest.MonkeyPatch.context() as patch:
        if find_spec(name) is None:
            module = ModuleType(name)
            module.paired_bootstrap = bootstrap
            patch.setitem(sys.modules, name, module)
        yield


def write_images(root: Path, number: int = 12) -> list[tuple[Path, int, str]]:
    """Write test images, half of them with a white square and a mask, in MVTec AD's layout."""
    random = np.random.default_rng(0)
    rows = []
    for index in range(number):
        label = index % 2
        pixels = random.integers(90, 110, (48, 64)).astype(np.uint8)
        mask = np.zeros_like(pixels)
        if label:
            mask[20:28, 30:38] = 255
            place = mask_of(root / f"test/hole/{index:03}.png")
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(place)
        path = root / f"test/{'hole' if label else 'good'}/{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.maximum(pixels, mask)).convert("RGB").save(path)
        rows.append((path, label, "hole" if label else "good"))
    return rows


def mask_of(path: Path) -> Path:
    return path.parents[2] / f"ground_truth/hole/{path.stem}_mask.png"


def write_cell(out, data, category, model, seed, images=(), fraction=1.0, status="done", reason=None, **more) -> Path:
    """Write a cell as the harness does; without images, one without scores."""
    name = model if fraction == 1 else f"{model}-{fraction}"
    folder = out / f"cells/{data}/{category}/{name}/seed{seed}"
    folder.mkdir(parents=True)
    metrics = {}
    if images:
        random = np.random.default_rng([seed, *map(ord, category + model), int(8 * fraction)])
        labels = np.array([label for _, label, _ in images])
        maps = random.normal(size=(len(images), 64, 64)).astype(np.float16)
        maps[labels == 1, 27:38, 30:38] += MODELS[model]
        scores = maps.astype(float).mean((1, 2)) + random.normal(0, 0.05, len(images))
        table = {"path": [path for path, _, _ in images], "label": labels, "class": [kind for *_, kind in images]}
        table["mask"] = [mask_of(path) if label else "" for path, label, _ in images]
        pd.DataFrame({**table, "score": scores}).to_csv(folder / "scores.csv", index=False)
        np.savez(folder / "maps.npz", maps=maps)
        x = np.linspace(0, 1, 50)
        np.savez(folder / "curves.npz", pro_fpr=x, pro=x**0.4, pixel_fpr=x, pixel_tpr=x**0.2)
        metrics = {
            "image_AUROC": roc_auc_score(labels, scores),
            "image_FPR95": float(random.uniform()),
            "pixel_AUROC": float(random.uniform(0.5, 1)),
            "core_recall": None,
        }
    cell = {
        "schema": SCHEMA,
        "digest": f"{model} {seed}",
        "cell": {"data": data, "category": category, "model": model, "fraction": fraction, "seed": seed},
        "config": {
            "model": {"class_path": model, "init_args": {}, "batch_size": 7},
            "image_size": [64, 64],
            "teacher": {"backbone": "resnet18", "weights": "t.pth"},
        },
        "status": status,
        "reason": reason,
        "converged": True if images else None,
        "training": {"epochs": 3, "steps": 9, "images": 80 * fraction, "seconds": 20 * fraction, "peak_memory_mib": 100}
        if images
        else {},
        "metrics": metrics,
        "anomalib_metrics": {"image_AUROC": metrics["image_AUROC"] - 0.125} if images else {},
        "size": {"parameters": 2e6, "gmacs": 1.5, "checkpoint_mb": 8 * fraction, "bank_mb": None},
        "environment": {"torch": "2.9", "load": seed},
        **more,
    }
    (folder / "cell.json").write_text(json.dumps(cell))
    return folder


def write_run(out: Path) -> Path:
    """Two data sets, five models, two seeds, shares of the images, a failure, refusals, one not converged."""
    out.mkdir()
    for data, categories in DATA.items():
        rows = []
        for category in categories:
            images = write_images(out.parent / f"images/{data}/{category}")
            for model in MODELS:
                for seed in (0, 1):
                    place = (out, data, category, model, seed)
                    if model == "ReverseDistillation":
                        write_cell(*place, status="no_teacher", reason=REFUSAL)
                    elif (category, model) == ("nut", "Padim"):
                        write_cell(*place, status="failed", reason=TRACEBACK)
                    elif (model, seed) == ("Stfpm", 1):
                        write_cell(*place, images, converged=False)
                    else:
                        write_cell(*place, images)
                if data == "cloth" and model in ("Dskd", "Patchcore"):
                    write_cell(out, data, category, model, 0, images, fraction=0.125)
        for index, model in enumerate(MODELS):
            for engine in ("torch", "openvino"):
                row = {"data": data, "category": categories[0], "model": model, "fraction": 1.0, "engine": engine}
                row |= {
                    "precision": "f32",
                    "batch": 1,
                    "median_ms": 10.0 + index,
                    "q1_ms": 9,
                    "q3_ms": 20,
                    "p99_ms": 30,
                }
                row |= {"images_per_second": 80, "file_to_verdict_ms": 25, "random_weights": index == 4, "error": None}
                rows.append(row)
        rows.append({**rows[0], "precision": "int8", "median_ms": None, "error": "RuntimeError: no INT8 here"})
        rows.append({**rows[0], "fraction": 0.125, "median_ms": 5.0})
        (out / "costs").mkdir(exist_ok=True)
        (out / f"costs/{data}.json").write_text(json.dumps({"environment": {"cpu": "a CPU"}, "rows": rows}))
    times = {"started": "2026-01-01 10:00", "finished": "2026-01-01 11:00"}
    (out / "run.json").write_text(json.dumps({"command": "-", **times}))
    return out


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> Path:
    out = write_run(tmp_path_factory.mktemp("benchmark") / "out")
    write_report(out, COMMAND)
    return out


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def markdown_tables(out: Path, data: str = "parts") -> list[pd.DataFrame]:
    """Return the tables on a data set in the Markdown file, with their marks of bold."""
    section = (out / "report.md").read_text().split(f"\n## {data}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"(?:^\|.*\|\n)+", section, re.MULTILINE)
    tables = []
    for block in blocks:
        rows = [[entry.strip() for entry in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
        assert len({len(row) for row in rows}) == 1, block
        tables.append(pd.DataFrame(rows[2:], columns=rows[0]).set_index(rows[0][0]))
    return tables


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the PATH")
def test_browser_opens_the_page_without_an_error(report, tmp_path):
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
    flags += ["--disable-sync", f"--user-data-dir={tmp_path}", "--enable-logging=stderr", "--virtual-time-budget=5000"]
    result = run([CHROMIUM, "--headless", *flags, "--dump-dom", (report / "report.html").as_uri()], timeout=120)
    assert "CONSOLE" not in result.stderr
    page = Page(result.stdout)
    assert not page.open
    assert len(page.of("table")) > 10
    for model in MODELS:
        assert re.search(rf'<th scope="row">{model}\b', result.stdout)


def test_page_holds_all_it_shows(report):
    text = (report / "report.html").read_text()
    page = Page(text)
    assert not page.open
    assert not page.of("script")
    assert all(link["href"].startswith(("#", "data:")) for link in page.of("a") + page.of("link"))
    assert not re.search(r"url\(|@import|https?:", text)
    pictures = page.of("img")
    assert all(picture["alt"] for picture in pictures)
    for picture in pictures:
        content = base64.b64decode(picture["src"].split(";base64,")[1])
        Image.open(io.BytesIO(content)).load()
    anchors = {"#" + heading["id"] for heading in page.of("h2")}
    assert {link["href"] for link in page.of("a")} == anchors
    assert len(text) < 3e6


def test_a_model_that_cannot_take_the_teacher_says_why(report):
    for name in ("report.md", "report.html"):
        assert f"cannot take the teacher: {REFUSAL}" in (report / name).read_text()
    detection = markdown_tables(report)[0]
    assert list(detection.loc["ReverseDistillation"][1:]) == [""] * (detection.shape[1] - 1)
    assert any("ReverseDistillation *(random weights)*" in table.index for table in markdown_tables(report))


def test_errors_are_shown_as_text(report):
    page = (report / "report.html").read_text()
    assert "<b>4 GiB" not in page
    assert "&lt;b&gt;4 GiB&lt;/b&gt; | too much" in page
    assert "--out &lt;here&gt;" in page
    text = (report / "report.md").read_text()
    assert "failed: RuntimeError: \\<b>4 GiB\\</b> \\| too much" in text
    assert "    RuntimeError: <b>4 GiB</b> | too much" in text
    assert f"    {COMMAND}" in text


def image_auroc(out: Path, category: str, model: str, seed: int) -> float:
    cell = json.loads((out / f"cells/parts/{category}/{model}/seed{seed}/cell.json").read_text())
    return cell["metrics"]["image_AUROC"]


def test_headline_figures_are_means_over_categories_and_spreads_over_seeds(report):
    """Against the cells' own files, averaged by hand."""
    detection = markdown_tables(report)[0]
    values = {}
    for model in ("Dskd", "Patchcore"):
        grid = np.array(
            [[image_auroc(report, category, model, seed) for seed in (0, 1)] for category in ("bolt", "nut")]
        )
        values[model] = grid.mean()
        spread = np.std(grid.mean(axis=0), ddof=1)
        assert detection.loc[model, "AUROC"].strip("*") == f"{grid.mean():.3f} ± {spread:.3f}"
    assert values["Patchcore"] > values["Dskd"]
    assert detection.loc["Patchcore", "AUROC"].startswith("**")
    assert not detection.loc["Dskd", "AUROC"].startswith("**")
    assert "Stfpm *(not converged: 2 of 4)*" in detection.index


def test_fewer_categories_do_not_compete(report):
    detection = markdown_tables(report)[0]
    assert detection.loc["Padim", "AUROC"].endswith("(1 of 2)")
    assert "**" not in " ".join(detection.loc["Padim"])
    assert detection.loc["Padim", "cells done"] == "2 of 4"


def test_low_false_alarms_are_the_best(report):
    rates = markdown_tables(report)[0]["false alarms at 95 % recall"]
    rates = rates[rates.str.contains("±") & ~rates.str.contains("of")]
    numbers = rates.str.strip("*").str.split().str[0].astype(float)
    assert [rates.index[i] for i in np.flatnonzero(rates.str.startswith("**"))] == [numbers.idxmin()]


def test_anomalibs_figures_stand_beside_ours(report):
    (table, *_) = [table for table in markdown_tables(report) if "anomalib's metric" in table]
    assert set(table["ours minus anomalib"]) == {"+0.125"}


def test_csv_has_a_row_a_cell(report):
    table = pd.read_csv(report / "results.csv")
    files = {path.parent.relative_to(report).as_posix(): path for path in report.glob("cells/*/*/*/*/cell.json")}
    assert set(table["folder"]) == set(files)
    assert len(table) == len(files) == 32
    for row in table.itertuples():
        content = json.loads(files[row.folder].read_text())
        assert (row.data, row.category, row.model, row.fraction, row.seed) == tuple(content["cell"].values())
        assert row.status == content["status"]
        assert row.image_AUROC == pytest.approx(content["metrics"].get("image_AUROC", np.nan), nan_ok=True)
    assert set(table.loc[table["status"] == "failed", "reason"]) == {TRACEBACK}
    assert table["core_recall"].isna().all()


def test_figures_are_files_of_modest_size(report):
    named = re.findall(r"!\[.+\]\((.+)\)", (report / "report.md").read_text())
    assert sorted(named) == sorted(path.relative_to(report).as_posix() for path in report.glob("figures/*"))
    kinds = {f"{data}_{kind}" for data in DATA for kind in ("curves", "pareto")}
    assert {Path(name).stem for name in named} == {*kinds, "cloth_growth"}
    for name in named:
        assert (report / name).stat().st_size < 200_000
        Image.open(report / name).verify()


def test_training_curves_tell_the_time_to_the_best_other_model(tmp_path):
    """Dskd is as good as Stfpm ends after its second test; the mean is over both seeds, test by test."""
    out = write_run(tmp_path / "out")
    assert training(read_results(out), "parts").empty
    rise = {"Dskd": (0.6, 0.8, 0.9), "Stfpm": (0.5, 0.6, 0.8), "Padim": (0.5, 0.6, 0.7)}
    for category in DATA["parts"]:
        for model, accuracies in rise.items():
            for seed in (0, 1):
                folder = out / f"cells/parts/{category}/{model}/seed{seed}"
                seconds = [60 * (1 + seed) * step for step in (1, 2, 3)]
                curve = pd.DataFrame({"step": [1, 2, 3], "seconds": seconds, "image_AUROC": accuracies})
                curve.to_csv(folder / "training_curve.csv", index=False)
    write_report(out, COMMAND)
    points = training(read_results(out), "parts")
    assert points[points.model == "Dskd"].seconds.tolist() == [90, 180, 270]
    (table,) = [table for table in markdown_tables(out) if "minutes to 0.800" in table]
    assert table["minutes to 0.800"].to_dict() == {"Dskd": "3.0", "Stfpm": "4.5", "Padim": "not reached"}
    assert "figures/parts_training.png" in (out / "report.md").read_text()
    assert time_to_accuracy(points[points.model == "Dskd"], "Dskd") is None


def test_growth_compares_the_same_cells(report):
    table = growth(read_results(report), "cloth").set_index(["model", "fraction"])
    assert set(table.index) == {(model, share) for model in ("Dskd", "Patchcore") for share in (0.125, 1.0)}
    whole = json.loads((report / "cells/cloth/linen/Dskd/seed0/cell.json").read_text())
    assert table.loc[("Dskd", 1.0), "image_AUROC"] == pytest.approx(whole["metrics"]["image_AUROC"])  # of seed 0 alone
    assert table.loc[("Dskd", 0.125), "latency_ms"] == 5.0
    assert table.loc[("Dskd", 1.0), "latency_ms"] == 10.0
    assert list(table["checkpoint_mb"]) == [1, 8, 1, 8]
    assert growth(read_results(report), "parts").empty


def test_growth_names_what_was_measured(report):
    table = growth(read_results(report), "cloth")
    assert "latency (ms)" in growth_table(table).columns
    assert "latency (ms)" not in growth_table(table.assign(latency_ms=np.nan)).columns


def test_interval_of_one_category_is_the_bootstraps(tmp_path):
    images = write_images(tmp_path / "images")
    folders = [write_cell(tmp_path, "a", "x", model, 0, images) for model in ("Dskd", "Padim")]
    tables = [pd.read_csv(folder / "scores.csv") for folder in folders]
    shuffled = tables[0].sample(frac=1, random_state=0)  # pairs are made by path, not by place
    shuffled.to_csv(folders[0] / "scores.csv", index=False)
    found = interval(read_results(tmp_path), "a", "Padim", "Dskd", bootstrap)
    first, second = (table.set_index("path").loc[tables[1]["path"], "score"].to_numpy() for table in tables)
    expected = bootstrap(second, first, tables[1]["label"].to_numpy())
    assert found[:3] == pytest.approx(expected)
    assert interval(read_results(tmp_path), "a", "Stfpm", "Dskd", bootstrap) is None


def test_interval_of_several_categories_is_that_of_their_joint_bootstrap(tmp_path):
    """Against a bootstrap that draws all categories at once."""
    categories = [f"c{index}" for index in range(5)]
    pairs = []
    for category in categories:
        images = write_images(tmp_path / category, 40)
        folders = [write_cell(tmp_path, "a", category, model, 0, images) for model in ("Dskd", "Padim")]
        tables = [pd.read_csv(folder / "scores.csv") for folder in folders]
        pairs.append((tables[0]["label"].to_numpy(), tables[0]["score"].to_numpy(), tables[1]["score"].to_numpy()))
    found = interval(read_results(tmp_path), "a", "Padim", "Dskd", bootstrap)
    random, drawn = np.random.default_rng(1), np.zeros(4000)
    for labels, dskd, padim in pairs:
        kinds = [random.choice(np.flatnonzero(labels == kind), (4000, 20)) for kind in (0, 1)]
        index = np.concatenate(kinds, axis=1)
        drawn += (areas(labels[index], padim[index]) - areas(labels[index], dskd[index])) / len(pairs)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert found.categories == 5
    assert found.low < found.difference < found.high
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.05 * (high - low))


def test_groups_are_drawn_together_where_there_are_any(tmp_path):
    images = write_images(tmp_path / "images")
    for model in ("Dskd", "Padim"):
        path = write_cell(tmp_path, "a", "x", model, 0, images) / "scores.csv"
        table = pd.read_csv(path)
        table.assign(group=[f"tile{index // 3}" for index in range(len(table))]).to_csv(path, index=False)
    seen = []

    def remember(*arguments, groups):
        seen.append(list(groups))
        return 0.0, -1.0, 1.0

    interval(read_results(tmp_path), "a", "Padim", "Dskd", remember)
    assert seen == [[f"tile{index // 3}" for index in range(12)]]


def test_means_of_uneven_cells():
    rows = [("A", "x", 0, 0.5), ("A", "x", 1, 0.7), ("A", "y", 0, 1.0), ("B", "x", 0, 0.4), ("B", "y", 0, np.nan)]
    found = means(pd.DataFrame(rows, columns=["model", "category", "seed", "m"]), "m")
    assert found["A"].value == pytest.approx((0.6 + 1.0) / 2)
    assert np.isnan(found["A"].spread)  # one seed alone has both categories
    assert (found["A"].is_complete, found["B"].is_complete) == (True, False)
    assert found["B"].text() == "0.400 (1 of 2)"


def test_pareto_front_is_what_none_beats():
    random = np.random.default_rng(0)
    points = pd.DataFrame({"ms": random.integers(1, 12, 60), "accuracy": random.integers(0, 12, 60) / 12})
    points = points.drop_duplicates()
    expected = {
        (a.ms, a.accuracy)
        for a in points.itertuples()
        if not any(
            b.ms <= a.ms and b.accuracy >= a.accuracy and (b.ms, b.accuracy) != (a.ms, a.accuracy)
            for b in points.itertuples()
        )
    }
    assert set(pareto_front(points).itertuples(index=False, name=None)) == expected


def test_curves_on_a_grid_keep_their_area():
    random = np.random.default_rng(0)
    labels, scores = random.integers(0, 2, 3000), random.normal(size=3000)
    scores = np.round(scores + labels, 2)
    fpr, tpr, _ = roc_curve(labels, scores)
    assert auc(GRID, _on_grid(fpr, tpr, 1)) == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)
    assert _on_grid(fpr, tpr, 0.3)[-1] == pytest.approx(np.interp(0.3, fpr, tpr))


@pytest.mark.parametrize(("shift", "scale"), [(0, 1), (1000, 1), (-5, 1e-3)])
def test_verdicts_of_the_gallery_are_those_of_the_best_f1(shift, scale):
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 80)
    scores = np.round(random.normal(size=80) + labels, 1)
    table = judge(pd.DataFrame({"label": labels, "score": scale * scores + shift}))
    best = max(f1_score(labels, scores >= threshold) for threshold in scores)
    assert f1_score(labels, table["distance"] >= -1e-9) == pytest.approx(best)
    plain = judge(pd.DataFrame({"label": labels, "score": scores}))["distance"]
    np.testing.assert_allclose(table["distance"], plain, atol=1e-8)


def test_equal_scores_can_be_judged():
    table = judge(pd.DataFrame({"label": [0, 0, 1, 1], "score": 3.0}))
    assert list(table["distance"]) == [0, 0, 0, 0]


def test_gallery_begins_with_the_worst_of_the_first_model():
    def scores(distances: list[float]) -> pd.DataFrame:
        return pd.DataFrame({"path": list("abcdefghijkl"), "label": [1] * 6 + [0] * 6, "distance": distances})

    first = scores([-3, 2, -1, 4, 5, 6, 3, -1, -2, 1, -4, -5])
    second = scores([-9, -8, 2, 2, 2, 2, 9, 9, 9, 8, 9, -5])
    chosen = choose({("x", "First"): first, ("x", "Second"): second}, ["First", "Second"])
    assert "".join(choice.path for choice in chosen) == "acbd" + "gjhi" + "ek"
    reasons = [choice.reason for choice in chosen]
    assert reasons[:3] == ["missed by First", "missed by First", "lowest defect of First, found"]
    assert reasons[4] == "false alarm of First"
    assert reasons[-1] == "false alarm of Second"


def test_gallery_shows_the_same_images_through_every_model(report):
    page = (report / "report.html").read_text()
    for data in DATA:
        part = page.split(f'<h2 id="{data}">')[1].split("<h2")[0]
        strips = part.split('<div class="strip">')[1:]
        assert 2 <= len(strips) <= 14
        assert re.search("(missed by|lowest defect of) Dskd", part.split("<h4>")[1])
        for strip in strips:
            headings = re.findall(r"<figcaption><b>(\w+)</b>", strip)
            assert headings[:2] == ["image", "Dskd"]
            assert set(headings[1:]) in ({"Dskd", "Padim", "Patchcore", "Stfpm"}, {"Dskd", "Patchcore", "Stfpm"})


def test_outline_is_drawn_around_the_mask(report):
    page = (report / "report.html").read_text()
    strip = next(part for part in page.split("<h4>")[1:] if ", hole," in part.split("</h4>")[0])
    content = base64.b64decode(re.search(r"data:image/jpeg;base64,([^\"]+)", strip)[1])
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    assert pixels.shape == (132, 176, 3)  # the image's proportions, 48 by 64
    cyan = (pixels[..., 2] - pixels[..., 0]) > 100
    rows, columns = np.nonzero(cyan)
    scale = 176 / 64
    assert (rows.min(), rows.max()) == pytest.approx((20 * scale, 28 * scale), abs=3)
    assert (columns.min(), columns.max()) == pytest.approx((30 * scale, 38 * scale), abs=3)


def test_any_part_of_a_run_is_reported(tmp_path):
    """Nothing at all, then only a refusal, costs alone, cells whose files are broken or gone."""
    write_report(tmp_path, COMMAND)
    assert "0 cells" in (tmp_path / "report.md").read_text()
    assert len(pd.read_csv(tmp_path / "results.csv")) == 0

    write_cell(tmp_path, "parts", "bolt", "ReverseDistillation", 0, status="no_teacher", reason=REFUSAL)
    write_report(tmp_path, COMMAND)
    assert REFUSAL in (tmp_path / "report.md").read_text()

    (tmp_path / "costs").mkdir()
    row = {"data": "alone", "category": "x", "model": "Dskd", "engine": "torch", "precision": "f32", "median_ms": 7.25}
    (tmp_path / "costs/alone.json").write_text(json.dumps({"environment": {}, "rows": [row]}))
    (tmp_path / "run.json").write_text("{")
    images = write_images(tmp_path / "images")
    write_cell(tmp_path, "parts", "bolt", "Dskd", 0, images)
    for image in (tmp_path / "images").rglob("*.png"):
        image.unlink()
    broken = write_cell(tmp_path, "parts", "bolt", "Padim", 0, images)
    (broken / "cell.json").write_text("")
    (write_cell(tmp_path, "parts", "bolt", "Stfpm", 0, images) / "scores.csv").unlink()
    unfinished = write_cell(tmp_path, "parts", "bolt", "Patchcore", 0, images)
    (unfinished / "cell.json").unlink()
    infinite = write_cell(tmp_path, "parts", "nut", "Dskd", 0, images) / "scores.csv"
    infinite.write_text("path,label,class,score\na,0,good,inf\nb,1,bad,1\n")
    write_cell(tmp_path, "parts", "nut", "Padim", 0, images, schema=SCHEMA - 1)
    write_report(tmp_path, COMMAND)
    text = (tmp_path / "report.md").read_text()
    assert "4 cells" in text
    assert "4 files could not be read" in text
    for named in (
        "parts/bolt/Padim/seed0: JSONDecodeError",
        "not finite",
        f"schema {SCHEMA - 1}",
        "run.json: JSONDecodeError",
    ):
        assert named in text
    assert "| 7.2 |" in text
    assert "Patchcore" not in text


def test_cells_of_other_configurations_are_left_out(tmp_path):
    images = write_images(tmp_path / "images")
    for model in ("Dskd", "Padim"):
        write_cell(tmp_path, "parts", "bolt", model, 0, images)
    (tmp_path / "costs").mkdir()
    row = {"data": "parts", "category": "bolt", "engine": "torch", "precision": "f32", "median_ms": 7.25}
    rows = [{**row, "model": model, "cell": f"{model} 0"} for model in ("Dskd", "Padim")]
    (tmp_path / "costs/parts.json").write_text(json.dumps({"environment": {}, "rows": rows}))
    write_report(tmp_path, COMMAND, {"Dskd 0", "Stfpm 0"})
    text = (tmp_path / "report.md").read_text()
    assert "1 cells of other configurations lie in the folder and are left out" in text
    assert "1 more are not there yet; the command goes on where it was stopped" in text  # Stfpm
    assert "Padim" not in text
    assert list(pd.read_csv(tmp_path / "results.csv").model) == ["Dskd"]


def test_a_share_of_the_images_alone_is_reported(tmp_path):
    """To sort out by a quarter of the images."""
    images = write_images(tmp_path / "images")
    for model in ("Dskd", "Padim"):
        write_cell(tmp_path, "parts", "bolt", model, 0, images, fraction=0.25)
    write_report(tmp_path, COMMAND)
    text = (tmp_path / "report.md").read_text()
    assert "All tables are of models trained on 25.0% of the training images" in text
    assert markdown_tables(tmp_path)[0].index.tolist() == ["Dskd", "Padim"]


def test_ratios_name_what_they_are_of(tmp_path):
    """Though its cell is of another configuration by now."""
    images = write_images(tmp_path / "images")
    write_cell(tmp_path, "parts", "bolt", "Padim", 0, images)
    (tmp_path / "costs").mkdir()
    row = {"data": "parts", "category": "bolt", "engine": "torch", "precision": "f32", "median_ms": 7.25, "ratio": 2.0}
    row |= {"model": "Padim", "cell": "Padim 0", "reference": "Dskd"}
    (tmp_path / "costs/parts.json").write_text(json.dumps({"environment": {}, "rows": [row]}))
    write_report(tmp_path, COMMAND)
    assert "its ratio to Dskd's and to the same model's" in (tmp_path / "report.md").read_text()


def test_figures_stay_in_their_folder(tmp_path):
    images = write_images(tmp_path / "images")
    out = tmp_path / "a/b/out"
    folder = write_cell(out, "parts", "bolt", "Dskd", 0, images)
    cell = json.loads((folder / "cell.json").read_text())
    cell["cell"]["data"] = "Folder ../../../data/a"
    (folder / "cell.json").write_text(json.dumps(cell))
    before = {*tmp_path.rglob("*")}
    write_report(out, COMMAND)
    assert all(path.is_relative_to(out) for path in {*tmp_path.rglob("*")} - before)
    assert list((out / "figures").iterdir())


def test_how_and_where_cells_ran(report):
    text = (report / "report.md").read_text()
    row = next(line for line in text.splitlines() if "Dskd" in line and "parts" in line and "resnet18" in line)
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [
        *("parts", "3", "9", "80", "7", "64x64", "resnet18 t.pth")
    ]
    assert re.search(r"\|\s+\| cells \| timing of cloth \| timing of parts \|", text)  # one place, however busy
    assert re.search(r"\| torch \| 2\.9 \|", text)


def test_figures_in_bins_say_how_far_off_they_can_be(tmp_path):
    images = write_images(tmp_path / "images")
    write_cell(tmp_path, "parts", "bolt", "Dskd", 0, images, metric_errors={"pixel_AUROC": 2e-6, "core_recall": None})
    write_report(tmp_path, COMMAND)
    assert "off by 2.0e-06 at most" in (tmp_path / "report.md").read_text()
    assert pd.read_csv(tmp_path / "results.csv")["error.pixel_AUROC"].item() == 2e-6


def test_no_two_models_look_alike():
    models = [str(number) for number in range(50)]
    style = Style(models)
    assert len({(style.colour(model), style.shape(model)) for model in models}) == len(models)
    assert len({(style.colour(model), style.line(model)) for model in models[:32]}) == 32


def test_no_folder_is_an_error(tmp_path):
    with pytest.raises(DskdError, match="is not a folder"):
        write_report(tmp_path / "absent", COMMAND)


def test_nothing_is_unpickled(report, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(report, out)
    folder = out / "cells/cloth/linen/Dskd/seed0"
    np.savez(folder / "maps.npz", maps=np.array([print], dtype=object))
    with pytest.raises(DskdError, match=r"maps.npz cannot be read: .*allow_pickle=False.* repeats that cell"):
        write_report(out, COMMAND)


def test_wheel_holds_the_templates(installed_wheel):
    names = {path.name for path in (installed_wheel / "anomalib_dskd/benchmark/templates").iterdir()}
    assert names == {"report.html", "report.md"}
