"""Measuring: equal to an obvious loop, independent of batch mates, hand-made spread and consistency."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.nn import functional
from torchmetrics.functional.classification import binary_calibration_error

from sppcls import SppClassifier
from sppcls.bench.pooling import multi_view_by_crops
from sppcls.data.images import fit_image
from sppcls.data.plan import aspect_buckets, bucket_size
from sppcls.data.shapes import ShapesSource
from sppcls.data.source import Subset
from sppcls.errors import DataError, SppclsError
from sppcls.measure.answers import Answers, load_answers, surest
from sppcls.measure.evaluate import mapped
from sppcls.measure.scales import (
    Evaluation,
    ScaleResult,
    averaged,
    calibration_error,
    evaluate_scales,
    full_view,
    gap_subset,
    rows_of,
)
from sppcls.measure.views import crop_boxes, multi_view, recalibrate_bn
from sppcls.models.backbones import build_trunk
from sppcls.report.run_page import write_run_page


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SppClassifier(build_trunk("tiny", width=0.25), ShapesSource.classes, levels=(2, 1), scales=(24,))


@pytest.mark.parametrize("fit", ["keep", "crop", "warp"])
def test_accuracy_and_loss_equal_an_independent_loop(network, fit):
    source = ShapesSource("val", 24)
    rows = evaluate_scales(network, Evaluation(source, fit=fit, batch_size=5), [24, 40]).rows
    network.eval()
    for row in rows:
        right, losses = 0, []
        for index in range(24):
            image = source.read(index)
            bucket = int(aspect_buckets(source.sizes[index : index + 1], 4.0)[0])
            size = bucket_size(bucket, bucket, row.scale) if fit == "keep" else (row.scale, row.scale)
            pad = tuple(round(m * 255) for m in network.mean)
            pixels = fit_image(image, size, fit, pad)[None].float() / 255
            mean, std = (torch.tensor(v).view(3, 1, 1) for v in (network.mean, network.std))
            with torch.no_grad():
                logits = network((pixels - mean) / std)
            target = torch.tensor([source.targets[index]])
            right += int(logits.argmax() == target)
            losses.append(functional.cross_entropy(logits, target).item())
        assert row.acc1 == right / 24
        assert row.loss == pytest.approx(np.mean(losses), abs=1e-4)
        assert row.trained == (row.scale == 24)


def test_predictions_do_not_change_with_batch_mates(network):
    source = ShapesSource("val", 40)
    network.eval()
    answers = []
    for batch_size in (1, 7, 32):
        logits = torch.empty(40, len(source.classes))
        with torch.no_grad():
            for batch in Evaluation(source, batch_size=batch_size).batches(network, 32)[1]:
                logits[batch["indices"]] = network(network.normalize(batch["images"]))
        answers.append(logits)
    assert (answers[0] - answers[1]).abs().max() < 1e-5
    assert (answers[0] - answers[2]).abs().max() < 1e-5


def test_measuring_leaves_the_network_as_it_was(network):
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    evaluate_scales(network, Evaluation(ShapesSource("val", 12)), [24])
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_unreadable_images_are_left_out_and_none_at_all_is_an_error(network):
    class Torn(ShapesSource):
        torn = range(3)

        def read(self, index, min_short=None):
            if index in self.torn:
                raise DataError(f"{self.names[index]}: torn")
            return super().read(index, min_short)

    result = evaluate_scales(network, Evaluation(Torn("val", 12)), [24])
    assert result.rows[0].images == 9
    assert (result.answers.predicted[0, :3] == -1).all()
    Torn.torn = range(12)
    with pytest.raises(DataError, match="none of 12 images"):
        evaluate_scales(network, Evaluation(Torn("val", 12)), [24])


def answered(predicted, targets, scales=None, **more):
    """Return answers whose confidence is 0.5 and loss 1 everywhere."""
    answers = Answers.empty(scales or [32 * (i + 1) for i in range(len(predicted))], np.array(targets), **more)
    answers.predicted[:] = predicted
    answers.confidence[:], answers.loss[:] = 0.5, 1.0
    return answers


def test_spread_consistency_and_agreement_by_hand():
    targets = [0, 1, 2, 3]
    answers = answered([[0, 1, 3, 2], [0, 1, 2, 0], [0, 0, 1, 2]], targets)
    result = ScaleResult(rows_of(answers, (64,)), answers)
    assert [row.acc1 for row in result.rows] == [0.5, 0.75, 0.25]
    assert [row.trained for row in result.rows] == [False, True, False]
    said = result.summary()
    assert said["scale_spread"] == 0.5
    assert said["scale_consistency"] == 0.25  # the first image alone
    assert said["worst_scale"] == 96
    assert said["agreement"] == [[1, 0.5, 0.5], [0.5, 1, 0.25], [0.5, 0.25, 1]]
    # Trapezoids over log 32, 64, 96: (0.5 + 0.75) / 2 over one octave, (0.75 + 0.25) / 2 over log2(1.5) of one.
    octaves = np.log2(1.5)
    assert said["scale_area"] == pytest.approx((0.625 + 0.5 * octaves) / (1 + octaves))


def test_rows_leave_out_what_could_not_be_read():
    answers = answered([[0, -1, 1, -1]], [0, 1, 2, 3])
    row = rows_of(answers, ())[0]
    assert (row.acc1, row.images) == (0.5, 2)
    assert row.acc1_low < 0.5 < row.acc1_high
    assert row.ece == pytest.approx(0.0)  # half of the answers are right, and each is half sure
    assert ScaleResult((row,), answered([[0, -1], [0, 1]], [0, 1])).summary()["scale_consistency"] == 1.0


def test_answers_are_kept_and_a_damaged_file_is_named(tmp_path):
    answers = answered([[0, 1], [1, 1]], [0, 1], names=["a", "b"])
    answers.save(tmp_path)
    again = load_answers(tmp_path)
    assert again.images == answers.images
    assert (again.right == answers.right).all()
    (tmp_path / "answers.npz").write_bytes(b"PK torn")
    with pytest.raises(SppclsError, match=r"answers\.npz is damaged"):
        load_answers(tmp_path)
    assert load_answers(tmp_path / "elsewhere") is None


def test_fused_predictions_are_the_mean_over_scales_image_by_image(network):
    source = ShapesSource("val", 30)
    fused = evaluate_scales(network, Evaluation(source, batch_size=7), [24, 40], fuse=True).answers
    network.eval()
    for index in range(30):
        said = []
        for scale in (24, 40):
            batch = next(iter(Evaluation(Subset(source, [index])).batches(network, scale)[1]))
            with torch.no_grad():
                said.append(network(network.normalize(batch["images"])).softmax(1)[0])
        mean = (said[0] + said[1]) / 2
        assert fused.predicted[0, index] == int(mean.argmax())
        assert fused.loss[0, index] == pytest.approx(-float(mean[source.targets[index]].log()), abs=1e-4)


def test_an_average_of_views_is_the_mean_of_their_probabilities():
    views = [torch.tensor([[0.2, 0.8]]).log(), torch.tensor([[0.6, 0.4]]).log()]
    assert torch.allclose(averaged(views).exp(), torch.tensor([[0.4, 0.6]]))


@pytest.mark.parametrize(
    ("height", "width", "count"), [(96, 128, 9), (64, 96, 3), (96, 64, 3), (64, 64, 1), (40, 50, 1)]
)
def test_crops_are_the_papers_inside_the_image_and_none_twice(height, width, count):
    boxes = crop_boxes(height, width, 64)
    assert len(set(boxes)) == len(boxes) == count
    for x1, y1, x2, y2 in boxes:
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        assert (x2 - x1, y2 - y1) == (min(width, 64), min(height, 64))


def test_views_of_a_map_are_views_of_the_image_where_no_cell_looks_beyond_the_crop():
    """A trunk of patches that do not overlap: a crop's map is a part of the image's map, exactly."""
    torch.manual_seed(1)
    patches = torch.nn.Conv2d(3, 6, 4, stride=4)
    network = SppClassifier(patches, ["a", "b", "c"], levels=(2, 1), scales=(16,)).eval()
    images = torch.randint(256, (3, 3, 24, 40), dtype=torch.uint8)  # crops of 16 start at 0, 4, 8 and 0, 12, 24
    with torch.no_grad():
        of_map, of_crops = multi_view(16)(network, images), multi_view_by_crops(16)(network, images)
        whole = full_view(network, images)
    assert torch.allclose(of_map, of_crops, atol=1e-5)
    assert not torch.allclose(of_map, whole, atol=1e-3)
    assert torch.allclose(of_map.exp().sum(1), torch.ones(3))


def test_recalibrated_statistics_are_those_of_the_images_at_that_scale(network):
    source = ShapesSource("train", 24)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    renewed = recalibrate_bn(network, 40, Evaluation(source, batch_size=12, fit="warp"))
    assert not renewed.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    weights = {
        name: value for name, value in renewed.state_dict().items() if "running" not in name and "num" not in name
    }
    assert all(torch.equal(value, before[name]) for name, value in weights.items())
    # The first layer by hand: the mean over two batches of 12 of the convolution's outputs.
    conv, norm = network.trunk.net[0][0], renewed.trunk.net[0][1]
    outputs = []
    for batch in Evaluation(source, fit="warp", batch_size=24).batches(network, 40)[1]:
        outputs.append(conv(network.normalize(batch["images"])).mean((0, 2, 3)))
    assert torch.allclose(norm.running_mean, outputs[0], atol=1e-4)
    assert int(norm.num_batches_tracked) == 2


def test_preparing_gives_the_network_of_each_scale(network):
    source, asked = ShapesSource("val", 12), []
    other = SppClassifier(build_trunk("tiny", width=0.25), source.classes, levels=(2, 1)).eval()

    def prepare(given, scale):
        asked.append((given is network, scale))
        return other

    prepared = evaluate_scales(network, Evaluation(source), [24, 32], prepare=prepare)
    assert asked == [(True, 24), (True, 32)]
    assert (prepared.answers.predicted == evaluate_scales(other, Evaluation(source), [24, 32]).answers.predicted).all()


def test_classes_are_mapped_by_name_and_strangers_are_named():
    source = ShapesSource("val", 24)
    turned = mapped(source, source.classes[::-1], "here")
    assert [turned.classes[t] for t in turned.targets] == [source.classes[t] for t in source.targets]
    few = Subset(source, [0, 12, 1], source.classes[:2])
    assert mapped(few, source.classes, "here").targets.tolist() == [0, 0, 1]
    with pytest.raises(DataError, match="here: the model has no class 'arrow'"):
        mapped(source, source.classes[1:], "here")


def test_the_gap_subset_is_fixed_and_spread():
    source = ShapesSource("train", 120)
    part = gap_subset(source, 30)
    assert part.indices[0] == 0
    assert part.indices[-1] == 119
    assert (np.diff(part.indices) > 0).all()
    assert (part.indices == gap_subset(source, 30).indices).all()
    assert len(gap_subset(source, 999).targets) == 120


def test_the_worst_mistakes_are_the_surest_wrong_answers():
    source = ShapesSource("val", 12)
    answers = answered([(source.targets + 1) % 12], source.targets)
    answers.confidence[0] = np.linspace(0.1, 0.9, 12)
    answers.predicted[0, 11] = source.targets[11]  # right, however sure
    worst = surest(source, answers, source.classes, 32, right=False, count=3)
    assert [one["image"] for one in worst] == ["shapes/val/10", "shapes/val/9", "shapes/val/8"]
    assert worst[0]["class"] == source.classes[10]
    assert worst[0]["predicted"] == source.classes[11]
    assert worst[0]["thumbnail"].startswith("/9j/")  # a JPEG in base64


def test_the_surest_right_answers_are_one_a_class():
    source = ShapesSource("val", 24)  # two of each class
    answers = answered([source.targets.copy()], source.targets)
    answers.confidence[0] = np.linspace(0.1, 0.9, 24)
    answers.predicted[0, 23] += -1 if source.targets[23] else 1  # wrong, however sure
    right = surest(source, answers, source.classes, 32, right=True, count=20)
    assert len({one["class"] for one in right}) == len(right) == 12
    assert all(one["predicted"] == one["class"] for one in right)
    assert [one["confidence"] for one in right] == sorted((one["confidence"] for one in right), reverse=True)
    best = {
        source.classes[t]: max(answers.confidence[0, i] for i in range(23) if source.targets[i] == t) for t in range(12)
    }
    assert {one["class"]: one["confidence"] for one in right} == pytest.approx(best, abs=1e-4)
    assert surest(source, answers, source.classes, 32, right=True, count=3) == right[:3]


def test_a_page_of_an_unfinished_or_empty_run_says_so(tmp_path):
    (tmp_path / "status.json").write_text('{"state": "running"}')
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "metrics.csv").write_text("epoch,scale,train_acc1,val_acc1\n0,64,0.5,0.4\n1,48,0.6,\n")
    page = write_run_page(tmp_path).read_text()
    assert "running" in page
    assert "has not finished" in page
    assert "still in progress" in page
    assert "://" not in page.replace("http://www.w3.org/", "")  # nothing is fetched
    (tmp_path / "summary.json").write_text("{torn")
    assert "has not finished" in write_run_page(tmp_path).read_text()


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=60))
def test_the_calibration_error_is_torchmetrics(answers):
    confidence, right = (
        np.array([one for one, _ in answers], np.float32),
        np.array([is_right for _, is_right in answers]),
    )
    edges = np.linspace(0, 1, 16)
    assume(np.abs(confidence[:, None] - edges).min(1)[(confidence > 0) & (confidence < 1)].min(initial=1) > 1e-6)
    wanted = binary_calibration_error(torch.from_numpy(confidence), torch.from_numpy(right).long(), n_bins=15)
    assert calibration_error(confidence, right) == pytest.approx(float(wanted), abs=1e-5)
