# Copyright (C) 2026 The anomalib-dskd authors
# SPDX-License-Identifier: Apache-2.0

"""Training through anomalib's engine: length, selection, seed, precision, reload."""

import copy
import logging
import pickle
import shutil
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
from anomalib.data import DepthBatch, Folder, MVTecAD, PredictDataset
from anomalib.data.utils import read_image
from anomalib.engine import Engine
from anomalib.metrics import AUPRO, Evaluator
from anomalib.pre_processing import PreProcessor
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, OnExceptionCheckpoint
from PIL import Image
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_dskd import Dskd
from anomalib_dskd.errors import DskdError
from anomalib_dskd.model.batch import DskdBatch
from anomalib_dskd.model.components import Teacher
from anomalib_dskd.model.lightning_model import one_cycle
from anomalib_dskd.model.precision import _settings
from anomalib_dskd.model.threshold import false_alarm_threshold
from anomalib_dskd.model.torch_model import DskdModel


@pytest.fixture
def data(mvtec_root):
    def build(**kwargs) -> MVTecAD:
        arguments = {"train_batch_size": 4, "eval_batch_size": 4, "num_workers": 0, **kwargs}
        return MVTecAD(mvtec_root, "stripes", **arguments)

    return build


def dskd(**kwargs) -> Dskd:
    return Dskd(**{"teacher_weights": "random", "image_size": 64, "training_steps": 4, **kwargs})


def engine(tmp_path: Path, **kwargs) -> Engine:
    return Engine(**{"default_root_dir": tmp_path, "accelerator": "cpu", "enable_progress_bar": False, **kwargs})


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


class Count(Callback):
    """Count what happens in a training."""

    def __init__(self) -> None:
        self.steps = self.validations = 0
        self.rates: list[float] = []
        self.validated_at: list[int] = []

    def on_train_batch_end(self, trainer, *args) -> None:
        self.steps = trainer.global_step
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_validation_end(self, trainer, *args) -> None:
        self.validations += 1
        self.validated_at.append(trainer.global_step)


# Loading


@pytest.mark.parametrize(("asked", "used"), [(8, 0), (1, 1)])
def test_anomalibs_default_workers_are_not_forked_on_the_cpu(tmp_path, data, asked, used):
    datamodule = data(num_workers=asked)
    engine(tmp_path).fit(dskd(training_steps=1), datamodule=datamodule)
    assert datamodule.num_workers == used


# Decision


def test_threshold_is_that_of_the_held_out_normal_images(tmp_path, data):
    datamodule = data(val_split_mode="from_train", val_split_ratio=0.5)
    model = dskd(false_alarm_rate=0.2)
    runner = engine(tmp_path)
    runner.fit(model, datamodule=datamodule)
    held_out = DataLoader(datamodule.val_data, batch_size=4, collate_fn=datamodule.val_data.collate_fn)
    model.model.predict = lambda *arguments: DskdModel.predict(model.model, *arguments[:4], held_out=True)
    scores = torch.cat([batch.raw_score for batch in runner.predict(model, dataloaders=held_out)])
    assert model.post_processor.image_threshold == pytest.approx(false_alarm_threshold(scores.numpy(), 0.2), rel=1e-5)
    assert Dskd.load_from_checkpoint(runner.best_model_path).hparams.false_alarm_rate == 0.2


def test_table_has_the_auroc_of_raw_scores(tmp_path, data):
    model, runner = dskd(training_steps=6), engine(tmp_path)
    (metrics,) = runner.train(model, datamodule=data())
    batches = runner.predict(model, datamodule=data())
    labels, masks, scores, maps = (
        torch.cat([getattr(batch, name) for batch in batches])
        for name in ("gt_label", "gt_mask", "raw_score", "raw_map")
    )
    assert metrics["image_AUROC"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert metrics["pixel_AUROC"] == pytest.approx(roc_auc_score(masks.flatten() > 0, maps.flatten()), abs=1e-6)


def test_checkpoint_of_other_metrics(tmp_path, data):
    """AUPRO keeps a buffer, which a checkpoint then holds and the default metrics lack."""
    fields = ["anomaly_map", "gt_mask"]
    evaluator = Evaluator(test_metrics=[AUPRO(fields=fields, prefix="pixel_")])
    model, runner = dskd(training_steps=1, evaluator=evaluator), engine(tmp_path)
    (metrics,) = runner.train(model, datamodule=data())
    assert set(metrics) == {"pixel_AUPRO"}
    Dskd.load_from_checkpoint(runner.best_model_path)
    plain = dskd(training_steps=1)
    assert "image_AUROC" in engine(tmp_path).test(plain, datamodule=data(), ckpt_path=runner.best_model_path)[0]
    model = dskd(training_steps=1, evaluator=Evaluator(test_metrics=[AUPRO(fields=fields, prefix="pixel_")]))
    assert engine(tmp_path).test(model, datamodule=data(), ckpt_path=runner.best_model_path)[0] == metrics


# Length


def test_budget_is_training_steps(tmp_path, data, caplog):
    count = Count()
    with caplog.at_level(logging.INFO, "lightning.pytorch.utilities.rank_zero"):
        engine(tmp_path, callbacks=[count]).fit(dskd(training_steps=5), datamodule=data())
    assert count.steps == 5
    assert count.validated_at[-1] == 5, "the last step is validated though it stands in the middle of an epoch"
    assert "Training 5 steps (3 epochs)" in caplog.text
    assert count.rates[-1] < 1e-3 < max(count.rates), "the schedule ends with the training"
    (line,) = [record for record in caplog.messages if "same_as_test" in record]
    assert "set on the test images" in line
    assert "--data.val_split_mode" in line


@pytest.mark.parametrize(
    ("typed", "steps"),
    [({"max_epochs": 1}, 2), ({"max_steps": 3}, 3), ({"max_epochs": 3, "max_steps": 5}, 5), ({"fast_dev_run": 1}, 1)],
)
def test_what_the_user_types_wins(tmp_path, data, typed, steps):
    count = Count()
    model = dskd(training_steps=100)
    runner = engine(tmp_path, callbacks=[count], **typed)
    runner.fit(model, datamodule=data())
    assert count.steps == steps
    assert not model.post_processor.image_threshold.isnan(), "thresholds belong to the last weights"
    assert count.validated_at[-1] == steps


def test_trainer_arguments_override_nothing():
    assert dskd().trainer_arguments == {}


def test_validates_a_few_times_and_at_the_end(tmp_path, data):
    count = Count()
    engine(tmp_path, callbacks=[count]).fit(dskd(training_steps=49), datamodule=data())
    assert count.validated_at == [10, 20, 30, 40, 49]


def test_users_validation_schedule_wins(tmp_path, data):
    count = Count()
    engine(tmp_path, callbacks=[count], check_val_every_n_epoch=8).fit(dskd(training_steps=40), datamodule=data())
    assert count.validated_at == [16, 32, 40]


@pytest.mark.parametrize(
    "stop",
    [
        EarlyStopping("train_loss", patience=0, stopping_threshold=100.0, check_on_train_epoch_end=True),
        EarlyStopping("val_loss", patience=0, stopping_threshold=100.0),
    ],
)
def test_early_stopping_of_the_user(tmp_path, data, stop):
    """It finds its metric after each epoch, and leaves a checkpoint with thresholds."""
    count = Count()
    runner = engine(tmp_path, callbacks=[count, stop])
    model = dskd(training_steps=100)
    runner.fit(model, datamodule=data())
    assert count.steps == 2
    assert torch.load(runner.best_model_path, weights_only=True)["global_step"] == 2
    assert not model.post_processor.image_threshold.isnan()


def test_accumulated_gradients(tmp_path, data):
    count = Count()
    engine(tmp_path, callbacks=[count], accumulate_grad_batches=2).fit(dskd(training_steps=3), datamodule=data())
    assert count.steps == 3
    assert count.validated_at == [1, 2, 3]


def test_one_cycle():
    factors = [one_cycle(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.04)
    assert factors[10] == pytest.approx(1.0)
    assert factors[100] == pytest.approx(0.0)
    assert factors == sorted(factors[:11]) + sorted(factors[11:], reverse=True)
    assert one_cycle(500, 100) == one_cycle(100, 100)


# Selection


def test_validation_loss_selects_on_a_set_of_its_own(tmp_path, data):
    """Weights, thresholds and checkpoint are those of the best validation, not of the last."""

    class Spoil(Callback):
        """Ruin the students after the best validation, so that the last weights are not the selected ones."""

        def on_train_epoch_start(self, trainer, pl_module) -> None:
            if trainer.global_step == 6:
                torch.nn.init.normal_(pl_module.model.decoder.heads[0].weight, std=100.0)
                pl_module.hparams.learning_rate = 0.0

    runner = engine(tmp_path, callbacks=[Spoil()])
    model = dskd(training_steps=8, learning_rate=1e-4)
    runner.fit(model, datamodule=data(val_split_mode="from_train", val_split_ratio=0.25))
    saved = torch.load(runner.best_model_path, weights_only=True)
    assert saved["global_step"] < 8
    assert same(weights(model), saved["state_dict"])
    assert model.model.decoder.heads[0].weight.std() < 10


@pytest.mark.parametrize("split", ["same_as_test", "from_train"])
def test_a_diverged_training_says_so(tmp_path, data, split):
    """Rather than what torch says of histograms of what is no number, or a threshold that is none."""
    model = dskd(training_steps=8, learning_rate=1e30, denoising=0.0)
    with pytest.raises(DskdError, match=r"diverged at step \d+: scores are not finite. Lower learning_rate \(1e\+30\)"):
        engine(tmp_path).fit(model, datamodule=data(val_split_mode=split))


@pytest.mark.parametrize("split", ["same_as_test", "from_test"])
def test_test_images_never_select(tmp_path, data, split):
    runner = engine(tmp_path)
    model = dskd()
    runner.fit(model, datamodule=data(val_split_mode=split))
    assert runner.checkpoint_callback.monitor is None
    saved = torch.load(runner.best_model_path, weights_only=True)
    assert saved["global_step"] == 4
    assert same(weights(model), saved["state_dict"])


def test_users_checkpoint_wins(tmp_path, data):
    mine = ModelCheckpoint(tmp_path / "mine", monitor="train_loss", filename="{step}")
    runner = engine(tmp_path, callbacks=[mine])
    model = dskd()
    runner.fit(model, datamodule=data(val_split_mode="from_train"))
    assert [checkpoint.monitor for checkpoint in runner.trainer.checkpoint_callbacks] == [None, "train_loss"]
    for path in (mine.best_model_path, runner.best_model_path):
        assert same(weights(model), torch.load(path, weights_only=True)["state_dict"])


def test_a_checkpoint_of_crashes_alone_changes_nothing(tmp_path, data):
    runner = engine(tmp_path, callbacks=[OnExceptionCheckpoint(tmp_path / "crashed")])
    runner.train(model := dskd(), datamodule=data(val_split_mode="from_train", val_split_ratio=0.25))
    assert runner.checkpoint_callback.monitor == "val_loss"
    assert same(weights(model), torch.load(runner.best_model_path, weights_only=True)["state_dict"])
    assert not (tmp_path / "crashed").exists()


def test_parts_of_which_none_is_held_out_are_too_few(tmp_path, data):
    """Rather than a training that ends with neither threshold nor checkpoint."""
    with pytest.raises(DskdError, match=r"val_split_ratio=0\.1 holds out none of 8 images"):
        engine(tmp_path).fit(dskd(), datamodule=data(val_split_mode="from_train", val_split_ratio=0.1))


def test_without_validation_the_last_weights_are_kept(tmp_path, data):
    runner = engine(tmp_path, limit_val_batches=0)
    runner.fit(model := dskd(), datamodule=data(val_split_mode="from_train", val_split_ratio=0.25))
    loaded = Dskd.load_from_checkpoint(runner.best_model_path)
    assert same(weights(model.model), weights(loaded.model))
    assert loaded.post_processor.image_threshold.isnan()


def test_validation_images_without_labels_are_good_parts(tmp_path, data, mvtec_root):
    held_out = PredictDataset(mvtec_root / "stripes/test/good")
    datamodule = data(val_split_mode="none", test_split_mode="none")
    datamodule.setup()
    model, runner = dskd(), engine(tmp_path)
    runner.fit(
        model,
        train_dataloaders=datamodule.train_dataloader(),
        val_dataloaders=DataLoader(held_out, 2, collate_fn=held_out.collate_fn),
    )
    assert model.post_processor.image_threshold.isfinite()
    assert runner.trainer.callback_metrics["val_loss"] > 0


class Spoil(Callback):
    """Make all validations after the fourth step worse."""

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if trainer.global_step >= 4:
            torch.nn.init.normal_(pl_module.model.decoder.heads[0].weight, std=100.0)


class Interrupt(Callback):
    """Interrupt after the sixth step, as Ctrl-C does."""

    def on_train_epoch_start(self, trainer, pl_module) -> None:
        if trainer.global_step == 6:
            raise KeyboardInterrupt


@pytest.fixture
def train_holding_out(data, tmp_path):
    """Train ten steps in a folder, with half of the training images held out."""

    def train(folder: str, callbacks=(), ckpt_path=None, **kwargs):
        runner = engine(tmp_path / folder, callbacks=[Spoil(), *callbacks])
        datamodule = data(val_split_mode="from_train", val_split_ratio=0.5, train_batch_size=2)
        model = dskd(training_steps=10, **kwargs)
        try:
            runner.fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        except (KeyboardInterrupt, SystemExit):
            return runner, None
        return runner, weights(model)

    return train


@pytest.mark.parametrize("denoising", [0.0, 0.5])
def test_resumed_training_remembers_the_best_validation(tmp_path, train_holding_out, denoising):
    """Also where the best one came before the interruption and all later ones are worse."""
    train = partial(train_holding_out, denoising=denoising)
    others = Evaluator(test_metrics=[AUPRO(["anomaly_map", "gt_mask"])])  # what is measured may change meanwhile
    _, whole = train("whole")
    interrupted, _ = train("two", [Interrupt()], evaluator=others)
    resumed, weights_after = train("two", ckpt_path=interrupted.best_model_path)
    assert same(whole, weights_after)
    assert resumed.best_model_path != interrupted.best_model_path
    saved = torch.load(resumed.best_model_path, weights_only=True)["state_dict"]
    assert same(whole, {name: value for name, value in saved.items() if not name.startswith("evaluator.")})


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_nothing_is_run_from_a_url_that_a_checkpoint_names(tmp_path, data):
    """Whose best checkpoint is what a resumed training may take its word for."""
    torch.save({"state_dict": {}, "trap": Trap(tmp_path / "ran")}, tmp_path / "best.ckpt")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()

        class Redirect(Callback):
            def on_train_end(self, trainer, pl_module) -> None:
                trainer.checkpoint_callback.best_model_path = f"http://127.0.0.1:{server.server_port}/best.ckpt"

        runner = engine(tmp_path / "train", callbacks=[Redirect()])
        with pytest.raises(pickle.UnpicklingError):
            runner.fit(dskd(), datamodule=data(val_split_mode="from_train", val_split_ratio=0.25))
        server.shutdown()
    assert not (tmp_path / "ran").exists()


def test_resumed_training_goes_on_where_the_best_validation_was_moved(tmp_path, train_holding_out):
    interrupted, _ = train_holding_out("two", [Interrupt()])
    moved = shutil.move(interrupted.best_model_path, tmp_path / "moved.ckpt")
    with pytest.warns(UserWarning, match="best checkpoint so far is gone"):
        resumed, weights_after = train_holding_out("two", ckpt_path=moved)
    saved = torch.load(resumed.best_model_path, weights_only=True)
    assert saved["global_step"] > torch.load(moved, weights_only=True)["global_step"]
    assert same(weights_after, saved["state_dict"])


def test_validation_loss_is_of_normal_images(tmp_path, data):
    runner = engine(tmp_path)
    model = dskd()
    datamodule = data(val_split_mode="same_as_test", eval_batch_size=8)
    runner.fit(model, datamodule=datamodule)
    normal = torch.cat([batch.image[batch.gt_label == 0] for batch in datamodule.val_dataloader()])
    with torch.no_grad():
        expected = model.loss(model.model.distances(*model.model.eval().features(model.pre_processor(normal))))
    torch.testing.assert_close(runner.trainer.callback_metrics["val_loss"], expected, rtol=1e-4, atol=1e-5)


# Sameness


def test_teacher_is_bit_identical_after_training(tmp_path, data, teacher_file, teacher_state):
    model = dskd(teacher_weights=str(teacher_file))
    engine(tmp_path).fit(model, datamodule=data())
    for name, value in model.model.teacher.network.state_dict().items():
        assert torch.equal(value, teacher_state[name]), name
    assert not model.model.teacher.training
    assert all(parameter.grad is None for parameter in model.model.teacher.parameters())


@pytest.mark.parametrize(("workers", "split"), [(0, "from_train"), (2, "from_train"), (0, "synthetic")])
def test_same_seed_same_weights(tmp_path, data, workers, split):
    def train(seed, noise) -> dict:
        torch.manual_seed(noise)  # the process's own state must not matter
        model = dskd(seed=seed)
        np.random.seed(noise)  # noqa: NPY002
        datamodule = data(val_split_mode=split, num_workers=workers)
        engine(tmp_path).fit(model, datamodule=datamodule)
        return weights(model.model)

    first = train(seed=3, noise=0)
    assert same(first, train(seed=3, noise=1))
    other = train(seed=4, noise=0)
    assert not same(first, other)


def test_students_learn_to_overlook_drawn_defects(tmp_path, data):
    engine(tmp_path).fit(plain := dskd(denoising=0.0), datamodule=data())
    engine(tmp_path).fit(denoising := dskd(denoising=0.9), datamodule=data())
    assert not same(weights(plain), weights(denoising))
    for share in (1.0, 50):
        with pytest.raises(DskdError, match=rf"denoising={share} is a share"):
            dskd(denoising=share)


def test_construction_leaves_the_process_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    Dskd(seed=1)
    assert torch.equal(torch.rand(1), expected)


def test_bf16_trains_and_predicts_in_float32_maps(tmp_path, data):
    model = dskd()
    runner = engine(tmp_path, precision="bf16-mixed")
    runner.fit(model, datamodule=data())
    loss = runner.trainer.callback_metrics["train_loss"]
    assert loss.isfinite()
    (prediction, *_) = runner.predict(model, datamodule=data())
    assert prediction.anomaly_map.dtype == torch.float32
    assert prediction.anomaly_map.unique().numel() > 1000, "a bfloat16 map has far fewer values"


def test_bf16_thresholds_are_those_of_float32_maps(tmp_path, data, monkeypatch):
    """As the bundle computes on the line: what held-out images show in bfloat16 says nothing of that."""
    judged: dict[str, torch.Tensor] = {}
    validate = Dskd.validation_step
    with monkeypatch.context() as patched:

        def remember(self, batch, *args, **kwargs):
            result = validate(self, batch, *args, **kwargs)
            judged.update(zip(result.image_path, result.anomaly_map.clone(), strict=True))
            return result

        patched.setattr(Dskd, "validation_step", remember)
        model, split = dskd(), data(val_split_mode="from_train", val_split_ratio=0.5, seed=0)
        engine(tmp_path, precision="bf16-mixed", max_steps=1).fit(model, datamodule=split)
    model.eval()
    assert judged
    for path, anomaly_map in judged.items():
        image = model.pre_processor.transform(read_image(path, as_tensor=True)[None])
        with torch.no_grad():
            teacher, students = model.model.features(image)
            anomalies = model.model.anomalies(teacher, students)
            alone = model.model.predict(teacher, anomalies, model.model.level(anomalies), image.shape[-2:])
        torch.testing.assert_close(alone.anomaly_map[0, 0], anomaly_map, rtol=1e-4, atol=1e-5)


def test_images_are_judged_by_all_bits_of_float32(tmp_path, data, monkeypatch):
    """On a GPU convolutions have 10 bits else; where there is none, what torch is told is all that is seen."""
    (convolution, name, exact), *_ = _settings()
    default = getattr(convolution, name)
    teacher, seen = Teacher.forward, {}
    assert default != exact

    def remember(self, images):
        seen.setdefault(model.trainer.state.stage, set()).add(getattr(convolution, name))
        return teacher(self, images)

    monkeypatch.setattr(Teacher, "forward", remember)
    runner, model = engine(tmp_path), dskd()
    runner.train(model, datamodule=data(val_split_mode="from_train", val_split_ratio=0.5))
    assert seen.pop("train") == {default, exact}, "the look before training, and training"
    assert seen == {"validate": {exact}, "test": {exact}}
    assert getattr(convolution, name) == default


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_precisions_without_32_bit_weights_are_refused(tmp_path, data, precision):
    with pytest.raises(DskdError, match=f"precision='{precision}' is not offered"):
        engine(tmp_path, precision=precision).fit(dskd(), datamodule=data())


@pytest.mark.parametrize(("capability", "warned"), [("AVX2", True), ("AVX512", False)])
def test_bf16_that_the_cpu_emulates_is_warned_of(tmp_path, data, monkeypatch, capability, warned):
    """Many times as slow without a word would look like a hang."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    runner = engine(tmp_path, precision="bf16-mixed", max_steps=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner.fit(dskd(), datamodule=data())
    assert any("emulated" in str(each.message) for each in caught) == warned


def test_channels_last_changes_nothing_but_time():
    model = dskd()
    assert model.model.encoder.conv1.weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        fast = model.model.eval()(images).anomaly_map
        slow = model.model.to(memory_format=torch.contiguous_format)(images).anomaly_map
    torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-5)


# Reload


def test_checkpoint_is_all_that_is_needed(tmp_path, data):
    """Another backbone, size, fusion and scale: the checkpoint knows, the typed defaults do not matter."""
    runner = engine(tmp_path / "train")
    trained = dskd(backbone="tf_efficientnet_lite0", image_size=[64, 96], students="decoder", layers=["blocks.2"])
    (expected,) = runner.train(trained, datamodule=data())
    path = runner.best_model_path

    (tested,) = engine(tmp_path / "test").test(model := Dskd(), datamodule=data(), ckpt_path=path)
    assert tested == expected
    assert model.hparams.backbone == "tf_efficientnet_lite0"
    assert model.hparams.image_size == [64, 96]
    assert model.pre_processor.transform.transforms[1].mean == [0.5, 0.5, 0.5]

    (prediction, *_) = engine(tmp_path / "predict").predict(Dskd(), datamodule=data(), ckpt_path=path)
    assert prediction.anomaly_map.shape[-2:] == (64, 96)

    loaded = Dskd.load_from_checkpoint(path)
    assert same(weights(loaded), weights(trained))
    image = torch.rand(1, 3, 120, 90)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(image).anomaly_map, trained.eval()(image).anomaly_map)


def test_weights_alone_bring_the_teacher(small_checkpoint):
    """As any module of PyTorch is loaded; training goes on with the teacher that they have."""
    trained = Dskd.load_from_checkpoint(small_checkpoint)
    model = Dskd(**{name: trained.hparams[name] for name in ("layers", "image_size")})
    model.load_state_dict(torch.load(small_checkpoint, weights_only=True)["state_dict"])
    with torch.no_grad():
        image = torch.rand(1, 3, 80, 96)
        assert torch.equal(model.eval()(image).pred_score, trained.eval()(image).pred_score)
    model.on_fit_start()
    assert torch.equal(model.model.teacher.network.conv1.weight, trained.model.teacher.network.conv1.weight)


def test_tensors_of_a_checkpoint_are_saved_as_the_cpus(monkeypatch):
    """A GPU cannot be had here: that each tensor is asked for its copy on the CPU is all that is seen."""
    asked = []
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: asked.append(tensor.data_ptr()) or tensor)
    tensors = [torch.zeros(1) for _ in range(3)]
    checkpoint = {
        "state_dict": {"a": tensors[0]},
        "optimizer_states": [{"state": {0: {"exp_avg": tensors[1]}}, "param_groups": [{"lr": 0.1}]}],
        "callbacks": {"ModelCheckpoint": {"best_model_score": tensors[2], "best_model_path": "a.ckpt"}},
        "epoch": 1,
    }
    expected = copy.copy(checkpoint)
    Dskd(teacher_weights="random").on_save_checkpoint(checkpoint)
    assert asked[-3:] == [tensor.data_ptr() for tensor in tensors]
    assert {name: checkpoint[name] for name in expected} == expected


def test_checkpoint_of_other_networks_is_refused(tmp_path, small_checkpoint):
    checkpoint = torch.load(small_checkpoint, weights_only=True)
    del checkpoint["hyper_parameters"]["decoder_blocks"]
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(DskdError, match="says nothing of decoder_blocks"):
        Dskd.load_from_checkpoint(tmp_path / "old.ckpt")


@pytest.mark.parametrize("change", ["missing", "unknown", "of another shape"])
def test_checkpoint_of_other_tensors_is_refused(tmp_path, small_checkpoint, change):
    checkpoint = torch.load(small_checkpoint, weights_only=True)
    state, name = checkpoint["state_dict"], "model.image_score.usual_contrast"
    tensor = state.pop(name)
    if change == "unknown":
        state.update({name: tensor, "model.image_score.usual_contrast_of_old": tensor})
    elif change == "of another shape":
        state[name] = torch.stack([tensor, tensor])
    torch.save(checkpoint, tmp_path / "old.ckpt")
    with pytest.raises(DskdError, match=r"1 tensors.*such as 'model\.image_score\.usual_contrast.*another version"):
        Dskd.load_from_checkpoint(tmp_path / "old.ckpt")


def test_checkpoint_with_other_descriptors_of_images_is_refused(tmp_path, small_checkpoint):
    """Their number is the training's, their length the network's."""
    checkpoint = torch.load(small_checkpoint, weights_only=True)
    name = "model.image_score.whole_image.memory_bank"
    checkpoint["state_dict"][name] = checkpoint["state_dict"][name][:, 1:]
    torch.save(checkpoint, tmp_path / "other.ckpt")
    with pytest.raises(DskdError, match=r"1 tensors.*such as 'model\.image_score\.whole_image\.memory_bank'"):
        Dskd.load_from_checkpoint(tmp_path / "other.ckpt")


def test_reload_splits_as_training_did(tmp_path, mvtec_root):
    """Folder's validation set is drawn from the test images: another draw would be another test set."""

    def folder() -> Folder:
        return Folder(
            "stripes",
            root=mvtec_root / "stripes",
            normal_dir="train/good",
            normal_test_dir="test/good",
            abnormal_dir="test/hole",
            num_workers=0,
        )

    runner = engine(tmp_path)
    (expected,) = runner.train(dskd(seed=3), datamodule=folder())
    (tested,) = engine(tmp_path).test(Dskd(), datamodule=(again := folder()), ckpt_path=runner.best_model_path)
    assert tested == expected
    assert again.seed is not None


def test_own_pre_processor_is_restored(tmp_path, data):
    transform = Compose([Resize((64, 80)), Normalize(mean=[0.5] * 3, std=[0.5] * 3)])
    runner = engine(tmp_path)
    (expected,) = runner.train(dskd(pre_processor=PreProcessor(transform)), datamodule=data())
    (tested,) = engine(tmp_path).test(Dskd(), datamodule=data(), ckpt_path=runner.best_model_path)
    assert tested == expected


def test_resumed_training_tests_what_it_trained(tmp_path, data):
    runner = engine(tmp_path)
    runner.fit(dskd(training_steps=2), datamodule=data())
    (expected,) = (again := engine(tmp_path)).train(
        model := dskd(training_steps=8), datamodule=data(), ckpt_path=runner.best_model_path
    )
    assert again.trainer.global_step == 8
    (tested,) = engine(tmp_path).test(Dskd(), datamodule=data(), ckpt_path=again.best_model_path)
    assert tested == expected
    assert same(weights(model), torch.load(again.best_model_path, weights_only=True)["state_dict"])


def test_batch_norm_of_several_processes_must_not_lose_activations():
    """What Lightning makes of sync_batchnorm=True; timm's EfficientNets have activations within their batch norm."""
    model = dskd(backbone="tf_efficientnet_lite0")
    model.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model.model)
    with pytest.raises(DskdError, match="sync_batchnorm=True leaves out the activations of tf_efficientnet_lite0"):
        model.on_fit_start()
    model = dskd()
    model.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model.model)
    model.on_fit_start()


def test_never_a_silently_random_teacher(tmp_path, data):
    model = Dskd(image_size=64)
    for use in [
        lambda: engine(tmp_path).test(model, datamodule=data()),
        lambda: engine(tmp_path).predict(model, datamodule=data()),
        lambda: engine(tmp_path).export(model, export_type="openvino", export_root=tmp_path),
        lambda: model(torch.rand(1, 3, 64, 64)),
    ]:
        with pytest.raises(DskdError, match=r"never trained.*--ckpt_path"):
            use()


# Predictions


@pytest.mark.parametrize("regions", [True, False])
def test_prediction_carries_each_students_map(tmp_path, data, regions):
    runner = engine(tmp_path)
    model = dskd(image_size=(64, 96), regions=regions)
    runner.fit(model, datamodule=data())
    (batch, *_) = runner.predict(model, datamodule=data())
    assert isinstance(batch, DskdBatch)
    summed, larger = batch.encoder_map + batch.decoder_map, torch.maximum(batch.encoder_map, batch.decoder_map)
    assert summed.shape == batch.anomaly_map.squeeze(1).shape == (4, 64, 96)
    # distances of one kind are summed over students, then the kinds as squares: less than the sum of both maps
    threshold, fused = model.post_processor.pixel_threshold, batch.anomaly_map.squeeze(1)
    of_sum, of_larger = (1 / (1 + (threshold / raw) ** 2) for raw in (summed, larger))
    assert (fused < of_sum + 1e-4).all()
    assert (fused > of_larger).all()
    if not regions:
        torch.testing.assert_close(of_sum, fused, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(model.on_fused_scale(summed / 2), of_sum, rtol=1e-3, atol=1e-4)
    assert batch.items[0].decoder_map.shape == (64, 96)
    assert batch.to_numpy().items[0].encoder_map.shape == (64, 96)


def test_depth_data_are_read_as_rgb():
    """MVTec 3D-AD's data module hands over a depth map too."""
    depth = DepthBatch(image=torch.rand(2, 3, 8, 8), depth_map=torch.rand(2, 1, 8, 8), gt_label=torch.tensor([0, 1]))
    batch = DskdBatch.from_batch(depth)
    assert torch.equal(batch.image, depth.image)
    assert batch.gt_label.tolist() == [0, 1]


def test_pictures(tmp_path, data):
    runner = engine(tmp_path)
    model = dskd()
    runner.train(model, datamodule=data())
    pictures = sorted((tmp_path / "Dskd/MVTecAD/stripes/latest/students").rglob("*.png"))
    assert len(pictures) == 8
    picture = Image.open(pictures[0])
    assert picture.width >= 6 * 256, "image, encoder's map, decoder's map, fused map, mask, predicted mask"
    assert len(list((tmp_path / "Dskd/MVTecAD/stripes/latest/images").rglob("*.png"))) == 8


@pytest.mark.parametrize("size", [63, (64, 63), (64, 64, 64), "64", 64.5])
def test_wrong_image_size(size):
    with pytest.raises((DskdError, TypeError), match="image_size" if size != 64.5 else ""):
        Dskd(image_size=size)


def test_wrong_training_steps():
    with pytest.raises(DskdError, match="training_steps=0"):
        Dskd(training_steps=0)
