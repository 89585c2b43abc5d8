"""Measuring: equal to an obvious loop, independent of batch mates, hand-made spread and consistency."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from sppcls import SppClassifier
from sppcls.data.images import fit_image
from sppcls.data.loader import BatchDataset
from sppcls.data.plan import aspect_buckets, bucket_size
from sppcls.data.shapes import ShapesSource
from sppcls.errors import DataError
from sppcls.measure.scales import ScaleResult, ScaleRow, batches_at, evaluate_scales
from sppcls.models.backbones import build_trunk
from sppcls.report.run_page import write_run_page


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SppClassifier(build_trunk("tiny", width=0.25), ShapesSource.classes, levels=(2, 1), scales=(24,))


@pytest.mark.parametrize("fit", ["keep", "crop", "warp"])
def test_accuracy_and_loss_equal_an_independent_loop(network, fit):
    source = ShapesSource("val", 24)
    rows = evaluate_scales(network, source, [24, 40], fit=fit, batch_size=5).rows
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
            for batch in batches_at(BatchDataset(source), 32, batch_size=batch_size):
                logits[batch["indices"]] = network(network.normalize(batch["images"]))
        answers.append(logits)
    assert (answers[0] - answers[1]).abs().max() < 1e-5
    assert (answers[0] - answers[2]).abs().max() < 1e-5


def test_measuring_leaves_the_network_as_it_was(network):
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    evaluate_scales(network, ShapesSource("val", 12), [24])
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_unreadable_images_are_left_out_and_none_at_all_is_an_error(network):
    class Torn(ShapesSource):
        torn = range(3)

        def read(self, index, min_short=None):
            if index in self.torn:
                raise DataError(f"{self.names[index]}: torn")
            return super().read(index, min_short)

    result = evaluate_scales(network, Torn("val", 12), [24])
    assert result.rows[0].images == 9
    assert (result.predicted[0, :3] == -1).all()
    Torn.torn = range(12)
    with pytest.raises(DataError, match="none of the 12 images"):
        evaluate_scales(network, Torn("val", 12), [24])


def test_spread_and_consistency_by_hand():
    def row(scale, accuracy):
        return ScaleRow(scale, accuracy, 1.0, 0.5, 0.1, 4, trained=False)

    predicted = np.array([[0, 1, 2, 3], [0, 1, 2, 0], [0, 1, 1, 3]])
    result = ScaleResult((row(32, 0.5), row(64, 0.75), row(96, 0.25)), predicted)
    assert result.spread == 0.5
    assert result.consistency == 0.5


def test_a_page_of_an_unfinished_or_empty_run_says_so(tmp_path):
    (tmp_path / "status.json").write_text('{"state": "running"}')
    (tmp_path / "metrics.csv").write_text("epoch,scale,train_acc1,val_acc1\n0,64,0.5,0.4\n1,48,0.6,\n")
    page = write_run_page(tmp_path).read_text()
    assert "running" in page
    assert "has not finished" in page
    assert "<svg" in page
    assert "http" not in page.replace("http://www.w3.org/", "")  # nothing is fetched
    (tmp_path / "summary.json").write_text("{torn")
    assert "has not finished" in write_run_page(tmp_path).read_text()
