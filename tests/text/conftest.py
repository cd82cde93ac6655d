"""A small vocabulary learnt here: no published one can be fetched by the tests."""

import pytest

from underdraw.text.tokenizer import CLIPTokenizer
from underdraw.text.vocabulary import train_vocabulary

TEXTS = [
    "a photo of an astronaut riding a horse on mars, highly detailed, 8k",
    "the quick brown fox doesn't jump over the lazy dog; it's asleep, they'll see, we've 12 of 345",
    "naïve café crème brûlée in Ångström, façade",
    "猫が好きです 日本語のテスト 漢字",
    "Привет, мир! Здравствуй",
    "👨‍👩‍👧 🙂🙂🙂 ♥",
    "a red cube left of a blue sphere (small), [large]: metal / rubber!!! ...",
]


@pytest.fixture(scope="session")
def learnt():
    return train_vocabulary(TEXTS * 3, 900)


@pytest.fixture(scope="session")
def tokenizer(learnt):
    return CLIPTokenizer(*learnt)
