"""The evaluator's own training: targets say what the detector reads, runs repeat and go on."""

from functools import partial

import numpy as np
import pytest
import torch

from underdraw.evaluation import examples, load_evaluator, train_evaluator
from underdraw.evaluation.detector import Evaluator
from underdraw.evaluation.network import ATTRIBUTES, PARTS, UNIT, Network, cell_centres, folded
from underdraw.evaluation.train_evaluator import (
    Phase,
    TrainConfig,
    batch_of,
    epoch_order,
    losses,
    main,
    targets,
    train,
)
from underdraw.evaluation.weights import write_network

pytestmark = pytest.mark.usefixtures("onednn")


@pytest.fixture(scope="module")
def renders(tmp_path_factory):
    return tmp_path_factory.mktemp("renders")


@pytest.fixture(scope="module")
def few(renders):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(examples, "CHUNK", 16)
        return examples.render_examples(renders, 40)


def test_renders_are_kept_and_repeat(few, renders):
    assert few.images.shape == (40, 128, 128, 3)
    assert len(list(renders.iterdir())) == 3
    image, boxes, feet, labels = examples.example_at(examples.SEED, 37)
    assert np.array_equal(few.images[37], image)
    assert np.array_equal(few.boxes[37], boxes)
    assert np.array_equal(few.feet[37], feet)
    assert np.array_equal(few.labels[37], labels)
    assert (few.labels[0] == -1).all()  # the empty table
    assert (few.labels[1:7, 0, 3] > 0).all()  # subjects
    assert (few.labels[7:, :, 3] <= 0).all()


class Told(torch.nn.Module):
    """A network that says exactly what the targets say."""

    def __init__(self, truth):
        super().__init__()
        rows, columns = truth.heat.shape[1:]
        places = cell_centres(rows, columns)
        size = torch.tensor([columns, rows]) * 4.0
        output = torch.zeros(len(truth.heat), sum(PARTS), rows, columns)
        output[:, 0] = torch.logit(truth.heat.clamp(1e-4, 1 - 1e-4))
        for n, y, x in (truth.owner >= 0).nonzero().tolist():
            k = truth.owner[n, y, x]
            place, box = places[:, y, x], truth.boxes[n, k].reshape(2, 2) * size
            output[n, 1:5, y, x] = torch.cat([place - box[0], box[1] - place]) / UNIT
            output[n, 5:7, y, x] = (truth.feet[n, k] * size - place) / UNIT
            shape, colour, second, texture, material, dims = truth.labels[n, k].tolist()
            start = 7
            for name, label in zip(
                ATTRIBUTES, (shape, colour, texture, material, dims), strict=True
            ):
                output[n, start + label, y, x] = 9
                if name == "colour" and second >= 0:
                    output[n, start + second, y, x] = 9
                start += len(ATTRIBUTES[name])
        self.output = output

    def forward(self, images):
        return self.output


def test_what_targets_say_is_what_the_detector_reads(few):
    truth = targets(
        torch.from_numpy(few.boxes),
        torch.from_numpy(few.feet),
        torch.from_numpy(few.labels).long(),
        32,
        32,
    )
    told = Told(truth)
    seen = Evaluator(told).detect(few.images, batch=40)
    for n, things in enumerate(seen):
        count = int((few.labels[n, :, 0] >= 0).sum())
        assert len(things) == count
        for k in range(count):
            box = few.boxes[n, k]
            near = min(things, key=lambda d: np.abs(np.array(d.box) - box).max())
            assert np.allclose(near.box, box, atol=1e-5)
            assert np.allclose(near.foot, few.feet[n, k], atol=1e-5)
            shape, colour, second, texture, material, size = few.labels[n, k]
            names = [ATTRIBUTES[a] for a in ATTRIBUTES]
            assert near.shape == names[0][shape]
            colours = {names[1][c] for c in (colour, second) if c >= 0}
            assert {near.colour, near.second_colour} - {None} == colours
            assert (near.texture, near.material) == (names[2][texture], names[3][material])
            assert near.size == names[4][size]
    perfect = losses(told.output, truth)
    assert float(perfect["box"]) < 1e-6
    assert float(perfect["heat"]) < 0.2  # bells cost a little even where they are right
    blank = losses(torch.zeros_like(told.output), truth)
    assert all(float(perfect[name]) < float(blank[name]) for name in perfect)


def test_mirrored_pictures_have_mirrored_truth(few):
    rng = np.random.default_rng(0)
    chosen = np.arange(7, 40)
    seen = set()
    _, truth = batch_of(few, chosen, rng)
    for n, index in enumerate(chosen):
        boxes, found = few.boxes[index], truth.boxes[n].numpy()
        turned = np.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], 1)
        turned[boxes[:, 2] == 0] = 0
        seen.add(np.allclose(found, boxes))
        assert np.allclose(found, boxes) or np.allclose(found, turned, atol=1e-6)
    assert seen == {True, False}


def test_training_repeats_and_goes_on(few, tmp_path, monkeypatch):
    # bfloat16 is emulated on many CPUs: the shipped widths are trained once, in `test_the_command`.
    monkeypatch.setattr(train_evaluator, "Network", partial(Network, (8, 8, 16, 16)))
    config = TrainConfig((Phase(24, 2, 3e-3), Phase(40, 1, 1e-3, subjects=0.5)), batch=8)
    whole = train(few, config)
    again = train(few, config)
    state = tmp_path / "training.pt"

    def stop(*_):
        raise KeyboardInterrupt

    for _ in range(2):  # stopped after every epoch: inside a phase and between two
        with monkeypatch.context() as patch:
            kept = torch.save

            def once(*args, kept=kept, patch=patch):
                kept(*args)
                patch.setattr(torch, "save", stop)

            patch.setattr(torch, "save", once)
            with pytest.raises(KeyboardInterrupt):
                train(few, config, state)
    resumed = train(few, config, state)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        assert torch.allclose(value, resumed.state_dict()[name], atol=1e-5), name
    write_network(whole, tmp_path / "made.safetensors", config)
    loaded = load_evaluator(tmp_path / "made.safetensors").network
    x = torch.rand(2, 3, 64, 96)
    assert torch.allclose(loaded(x), whole(x), atol=0.05)


def test_subjects_take_their_share(few):
    order = epoch_order(few.labels, 0.5, 8, np.random.default_rng(0))
    assert order.shape == (5, 8)
    patterned = (few.labels[order][..., 3] > 0).any(2)
    assert (patterned.sum(1) >= 4).all()
    plain = epoch_order(few.labels, 0.0, 8, np.random.default_rng(0))
    assert sorted(plain.ravel()) == list(range(40))


def test_folding_changes_nothing():
    torch.manual_seed(0)
    network = Network((8, 8, 16, 16))
    for _ in range(3):
        network(torch.rand(4, 3, 64, 96))
    x = torch.rand(2, 3, 64, 96)
    assert torch.allclose(folded(network)(x), network.eval()(x), atol=1e-4)


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(examples, "CHUNK", 16)
    monkeypatch.setattr(train_evaluator, "TrainConfig", partial(TrainConfig, batch=8))
    out = tmp_path / "new" / "evaluator.safetensors"
    main(["--renders", str(tmp_path / "r"), "--out", str(out), "--count", "16", "--epochs", "1"])
    assert "trained in" in capsys.readouterr().out
    assert load_evaluator(out).detect(np.zeros((1, 64, 64, 3), np.float32)) is not None
