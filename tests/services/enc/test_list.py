# SPDX-License-Identifier: GPL-2.0-or-later
"""As many enclaves as a kernel can make do not keep the list of them from users."""

from __future__ import annotations

import pytest

from veil.formats.enclave_reports import EnclaveStatus, pack_enclaves
from veil.formats.enclave_settings import ON, EncSettings
from veil.formats.enclaves import MAX_PAGES, MAX_SLOTS, MEASUREMENT_BYTES
from veil.formats.errors import FormatError
from veil.formats.request_block import BLOCK_HEADER
from veil.formats.service_domain import OUTBOX_SIZE
from veil.image.services_image import MAILBOX_SIZE
from veil.services.enc.enclave import State

LONGEST = max((state.value for state in State), key=len)


def _list(count: int) -> bytes:
    measurement = "ab" * MEASUREMENT_BYTES
    return pack_enclaves([EnclaveStatus((1 << 64) - 1, measurement, LONGEST, MAX_SLOTS, 2 * MAX_PAGES)] * count)


def test_the_most_fit_into_the_mailbox() -> None:
    assert len(_list(EncSettings(mode=ON).most)) <= MAILBOX_SIZE - OUTBOX_SIZE - BLOCK_HEADER


def test_more_than_that_is_refused() -> None:
    most = EncSettings(mode=ON).most
    assert EncSettings(mode=ON, most=most).most == most
    with pytest.raises(FormatError, match=f"1 to {most} enclaves"):
        EncSettings(mode=ON, most=most + 1)
    assert len(_list(4 * most)) > MAILBOX_SIZE, "which is why"


def test_bounds_of_one_user() -> None:
    """The driver keeps them: it is told by its parameters."""
    chosen = EncSettings(mode=ON, user_enclaves=3, user_memory=0)
    assert chosen.driver_options == "enc=1 enc_user_enclaves=3 enc_user_memory=0"
    assert EncSettings.parse("mode=on,user_enclaves=3,user_memory=0") == chosen
    assert EncSettings(user_enclaves=3).driver_options == ""
    for name, value in (("user_enclaves", -1), ("user_enclaves", 1025), ("user_memory", 101), ("user_memory", True)):
        with pytest.raises(FormatError, match=f"'{name}' is 0"):
            EncSettings.of({"mode": ON, name: value})
    with pytest.raises(FormatError, match="'many' is not a whole number"):
        EncSettings.parse("most=many")
