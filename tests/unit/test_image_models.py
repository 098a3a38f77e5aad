"""Tokens with which compute nodes fetch images."""

import pytest

from nova.image import models

SECRET = b"0123456789"


def test_a_token_is_good_for_its_image_until_it_expires() -> None:
    token = models.fetch_token(SECRET, "ami-1", now=1000.0)
    assert models.token_is_valid(SECRET, "ami-1", token, now=1000.0)
    assert models.token_is_valid(SECRET, "ami-1", token, now=1000.0 + models.TOKEN_LIFETIME)
    assert not models.token_is_valid(SECRET, "ami-1", token, now=1001.0 + models.TOKEN_LIFETIME)


def test_a_token_is_good_for_no_other_image() -> None:
    assert not models.token_is_valid(SECRET, "ami-2", models.fetch_token(SECRET, "ami-1"))


def test_a_token_of_another_cloud_is_no_good() -> None:
    assert not models.token_is_valid(SECRET, "ami-1", models.fetch_token(b"another", "ami-1"))


def test_an_expiry_cannot_be_moved() -> None:
    expiry, _, mac = models.fetch_token(SECRET, "ami-1").partition(".")
    assert not models.token_is_valid(SECRET, "ami-1", f"{int(expiry) + 1}.{mac}")


@pytest.mark.parametrize("token", ["", ".", "x.y", "9999999999", "9999999999.", "-1.ab", "²³.ab", "9999999999.é",
                                   "9" * 5000 + ".ab"], ids=range(9))
def test_what_is_no_token_is_no_good(token: str) -> None:
    assert models.token_is_valid(SECRET, "ami-1", token) is False
