"""The SimCLR example's glyphs, retrieval across fonts, and the comparison with the eager loss."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

pytest.importorskip("kornia")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

from examples.common.images import data, glyphs
from examples.common.images.evaluate import evaluate, font_retrieval
from examples.common.images.groups import Partners
from examples.common.images.memory import PeakMemory, parse_size, show_size
from examples.simclr import arm, compare
from examples.simclr.__main__ import main
from examples.simclr.compare import largest
from python_tests.examples.simclr_runs import make_trainer


@pytest.fixture(scope="module")
def drawn():
    return glyphs.render(24)


# Glyphs


def test_glyphs_are_many_in_many_fonts_and_none_is_blank(drawn):
    assert len(drawn.font_names) == 16 and len(set(drawn.font_names)) == 16
    assert len(drawn.pixels) > 20_000 and len(drawn.names) > 1_500
    assert drawn.pixels.shape[1:] == (24, 24) and drawn.pixels.dtype == np.uint8
    assert (drawn.pixels.reshape(len(drawn.pixels), -1).max(1) > 100).all()
    fonts_of = [set(drawn.fonts[drawn.labels == label]) for label in range(len(drawn.names))]
    assert min(map(len, fonts_of)) >= glyphs.AT_LEAST


def test_characters_that_look_alike_share_a_label_and_others_do_not(drawn):
    names = set(drawn.names)
    assert "A" in names and "\N{GREEK CAPITAL LETTER ALPHA}" not in names
    assert "o" in names and "\N{CYRILLIC SMALL LETTER O}" not in names
    # Alike in the italics only: these stay apart.
    assert {"m", "\N{CYRILLIC SMALL LETTER TE}", "0", "O", "I", "l"} <= names


def test_heldout_characters_are_in_no_training_image(drawn):
    images = data.load("glyphs", None, 24)
    assert len(images.train) + len(images.heldout) == len(drawn.pixels)
    trained = {drawn.names[label] for label in images.train_groups.unique()}
    assert trained | set(images.classes) == set(drawn.names)
    assert not trained & set(images.classes)
    first = int((images.heldout_labels == 3).nonzero()[0])
    one = drawn.labels == drawn.names.index(images.classes[3])
    one &= drawn.fonts == int(images.heldout_fonts[first])
    assert any(np.array_equal(pixels, images.heldout[first, 0]) for pixels in drawn.pixels[one])


def test_partners_are_all_others_of_the_group_alike_often():
    groups = torch.tensor([7, 3, 7, 3, 7, 9])
    partners = Partners(groups)
    drawn = torch.stack([partners.draw(torch.arange(6)) for _ in range(2000)])  # [draws, 6]
    assert (groups[drawn] == groups).all()
    assert (drawn[:, :5] != torch.arange(5)).all() and (drawn[:, 5] == 5).all()
    assert (drawn[:, 0] == 2).double().mean() == pytest.approx(0.5, abs=0.05)


def test_views_of_a_group_are_two_images_and_no_negatives_of_each_other():
    groups = torch.arange(100) // 4
    trainer = make_trainer(groups=groups, norm="group")
    trainer.augmentation = lambda images: images
    chosen = torch.arange(0, 100, 3)[:32]
    view_0, view_1 = trainer._views(chosen)
    assert torch.equal(view_0, trainer.images[chosen])
    assert not any(torch.equal(one, other) for one, other in zip(view_0, view_1, strict=True))
    trainer._backward(chosen)
    z = torch.nn.functional.normalize(torch.cat(trainer.embeddings), dim=1)
    logits, ids = z @ z.T / trainer.config.temperature, groups[chosen].repeat(2)
    losses = []
    for row in range(64):
        positive = logits[row, (row + 32) % 64]
        negatives = logits[row, ids != ids[row]]
        losses.append(torch.cat([positive[None], negatives]).logsumexp(0) - positive)
    loss = trainer.loss(*trainer.embeddings, groups[chosen])
    assert loss.item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


# Retrieval across fonts


def test_font_retrieval_by_hand():
    # Font 0 shows a, b; font 1 shows a, b, and its b lies nearer to font 0's a than its a does.
    degrees = torch.tensor([0.0, 90.0, 20.0, 10.0]).deg2rad()
    unit = torch.stack([degrees.cos(), degrees.sin()], dim=1)
    labels, fonts = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    tables = font_retrieval(unit, labels, fonts)
    # 0 -> 1: a ranks b, a; b ranks a, b. 1 -> 0: a ranks a; b ranks a, b.
    assert tables["mAP"][0, 1] == 0.5 and tables["mAP"][1, 0] == 0.75
    assert tables["recall@1"][0, 1] == 0 and tables["recall@1"][1, 0] == 0.5
    assert tables["mAP"].diagonal().isnan().all()
    images = data.Images(unit, unit, labels, ["a", "b"], heldout_fonts=fonts)
    scores = evaluate(3 * unit, images)
    assert scores["mAP"].mean == 0.625 and scores["recall@1"].mean == 0.25


# Memory and the comparison


def test_the_largest_size_that_fits_is_found_to_a_quarter():
    for limit in (32, 40, 63, 64, 200, 999):
        tried = []

        def fits(size, tried=tried, limit=limit):
            tried.append(size)
            return size <= limit

        found = largest(fits, 32, 10_000)
        assert found <= limit < found * 1.25 and len(tried) <= 10
    assert largest(lambda size: True, 32, 1297) >= 1024
    assert largest(lambda size: True, 32, 20) == 20
    with pytest.raises(ValueError, match="too small for the eager loss on 32 pairs"):
        largest(lambda size: False, 32, 1000)


def test_sizes_are_read_and_shown():
    assert parse_size("512MiB") == parse_size("0.5g") == 2**29 and parse_size("1024") == 1024
    assert show_size(2**29) == "512.0 MiB" and show_size(3 * 2**29) == "1.50 GiB"
    for wrong in ("much", "-1G", "0", "1XB"):
        with pytest.raises(ValueError, match="expected a size such as 512MiB"):
            parse_size(wrong)


def test_peak_memory_counts_what_was_held_in_between():
    try:
        memory = PeakMemory("cpu")
    except OSError as error:
        pytest.skip(str(error))
    torch.ones(2**24)
    assert 60 * 2**20 < memory.bytes() < 100 * 2**20
    memory.restart()
    assert memory.bytes() < 30 * 2**20


@pytest.mark.slow
def test_compare_trains_both_sides_and_prints_them(tmp_path, capfd, monkeypatch):
    try:
        PeakMemory("cpu")
    except OSError as error:
        pytest.skip(str(error))
    in_a_process = compare._arm

    def here_but_for_the_probe(config, root, out=None):  # processes take seconds to start
        return in_a_process(config, root) if out is None else arm.run(asdict(config), None, out)

    monkeypatch.setattr(compare, "_arm", here_but_for_the_probe)
    monkeypatch.setattr(compare, "SMALLEST", 1024)
    monkeypatch.setattr(compare, "BISECTIONS", 0)
    arguments = ["--quick", "--width", "4", "--epochs", "1", "--batch-size", "512", "--compare"]
    arguments += ["--chunk", "64", "--budget", "1GiB", "--device", "cpu", "--out", str(tmp_path)]
    assert main(arguments) == 0
    printed = capfd.readouterr().out
    for word in ("eager loss", "pairs a batch", "64 images", "peak memory", "seconds a step"):
        assert word in printed
    sides = json.loads((tmp_path / "compare" / "compare.json").read_text())["sides"]
    assert [sides[name]["settings"]["batch_size"] for name in compare.COLUMNS] == [1024, 512]
    assert [sides[name]["settings"]["chunk"] for name in compare.COLUMNS] == [0, 64]
    assert [sides[name]["steps"] for name in compare.COLUMNS] == [1, 2]
    for side in sides.values():
        assert side["peak_bytes"] > 0 and 0.2 < side["scores"]["mAP"] < 1
        assert math.isfinite(side["final_loss"])


def test_an_unreadable_budget_is_refused_before_anything_is_trained(capsys):
    assert main(["--compare", "--budget", "plenty"]) == 2
    assert "expected a size such as 512MiB" in capsys.readouterr().err
