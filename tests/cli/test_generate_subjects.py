"""Subjects on the command line."""

import re

import numpy as np
import pytest
from controls.test_subject import encoder
from PIL import Image

from underdraw.pictures.writing import read_metadata

CALL = ("generate", "a red sphere on the table", "--seed", "3", "--steps", "3")


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Subject weights for the tiny model, with their vocabulary."""
    place = tmp_path_factory.mktemp("subject")
    encoder().save_pretrained(place)
    return place


@pytest.fixture(scope="session")
def photo(tmp_path_factory):
    place = tmp_path_factory.mktemp("photos") / "toy.png"
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (11, 17, 3), np.uint8)).save(place)
    return place


def pixels_of(path):
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def test_subjects_records_and_again(run, tiny, weights, photo, tmp_path):
    model = ("--model", tiny, "--subject-weights", str(weights))
    shown = ("--subject", str(photo), "toy", "--as", "sphere")
    picture, plain = tmp_path / "a.png", tmp_path / "plain.png"
    run(*CALL, *model, *shown, "--out", str(picture))
    run(*CALL, *model, "--out", str(plain))
    assert pixels_of(picture) != pixels_of(plain)
    record = read_metadata(picture)
    assert record["subject"] == str(weights)
    (entry,) = record["subjects"]
    assert (entry["category"], entry["word"], entry["image"]["name"]) == (
        "toy",
        "sphere",
        "toy.png",
    )

    again = tmp_path / "again.png"
    run("generate", "--again", str(picture), "--as-recorded", "--out", str(again))
    assert pixels_of(again) == pixels_of(picture)
    told = run("generate", "--again", str(picture), "--out", str(tmp_path / "x.png"), code=2)
    assert "--subject-weights" in told.stderr
    # Of several prompts those that name it have it.
    two = ("generate", "a green cone", "a red sphere on the table", "--seed", "3", "--steps", "3")
    run(*two, *model, *shown, "--no-grid", "--out", str(tmp_path / "b.png"))
    assert pixels_of(tmp_path / "b-1.png") == pixels_of(picture)
    # In Python it is the same.
    import underdraw

    pipe = underdraw.StableDiffusionPipeline.from_pretrained(tiny, dtype="auto")
    pipe.load_subject(weights)
    pipe.set_progress_bar_config(disable=True)
    control = underdraw.Subject(Image.open(photo), "toy", word="sphere")
    made = pipe(CALL[1], seed=3, num_inference_steps=3, controls=[control]).images[0]
    assert np.abs(np.asarray(made, int) - np.asarray(Image.open(picture), int)).max() <= 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--subject", "nowhere.png", "sphere"), "subject 1: there is no picture .*nowhere.png"),
        (("--subject", "{photo}"), "--subject takes a picture and what it shows"),
        (("--subject", "{photo}", " "), "--subject takes a picture and what it shows"),
        (("--subject", "{photo}", "cube"), "'cube': no PROMPT has these words"),
        (("--subject", "{photo}", "toy", "--as", "cube"), "--as 'cube': no PROMPT has these words"),
        (("--as", "cube"), "--as 'cube' stands behind no --subject"),
        (("--subject", "{photo}", "sphere"), "has no subject weights, which --subject needs"),
        (
            ("--subject", "{photo}", "sphere", "--subject-weights", "no/such"),
            "no/such",
        ),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(run, tiny, photo, options, says, monkeypatch):
    monkeypatch.setattr("underdraw.cli.loading.load_pipeline", None)
    given = [str(photo) if option == "{photo}" else option for option in options]
    made = run(*CALL, "--model", tiny, *given, code=2)
    assert re.search(says, made.stderr), made.stderr


def test_a_picture_chooses_no_file(run, tiny, weights, photo, tmp_path):
    from underdraw.pictures.writing import save_picture

    picture = tmp_path / "a.png"
    model = ("--model", tiny, "--subject-weights", str(weights))
    run(*CALL, *model, "--subject", str(photo), "toy", "--as", "sphere", "--out", str(picture))
    record = read_metadata(picture)
    record["subjects"][0]["image"] = str(photo)
    save_picture(Image.open(picture), picture, record)
    told = run("generate", "--again", str(picture), "--as-recorded", code=2)
    assert "its subjects: one of them is damaged" in told.stderr
