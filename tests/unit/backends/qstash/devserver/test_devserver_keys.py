from __future__ import annotations

import re

import pytest

from queuebridge.backends.qstash.devserver.messages import SigningKeys, new_signing_key
from queuebridge.backends.qstash.devserver.records import decode_keys, encode_keys
from queuebridge.backends.qstash.protocol import DEV_USERS


def test_new_key_has_the_published_form_and_is_not_the_last_one() -> None:
    made = {new_signing_key() for _ in range(100)}

    assert len(made) == 100
    assert all(re.fullmatch(r"sig_[1-9A-HJ-NP-Za-km-z]{28}", key) for key in made)
    assert {len(key) for key in made} == {len(DEV_USERS[0].current_signing_key)}


@pytest.mark.parametrize("user", DEV_USERS, ids=lambda user: user.name)
def test_keys_come_back_from_their_document(user: object) -> None:
    keys = SigningKeys("sig_a", "sig_b")

    assert decode_keys(encode_keys(str(user), keys)) == keys
