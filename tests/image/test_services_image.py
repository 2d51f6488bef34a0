# SPDX-License-Identifier: GPL-2.0-or-later
"""Settings of services: text, defaults, bounds, and the page that they share."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veil.formats.errors import FormatError
from veil.formats.kci_settings import OFF, ON, KciSettings
from veil.formats.log_settings import DROP, HALT, LogSettings
from veil.formats.service_settings import ServiceSettings, setting
from veil.image.services_image import (
    PROTECTED_SERVICES,
    ServicesImage,
    protected_services,
    service_regions,
    services_from_text,
)
from veil.services.log import LogService
from veil.services.parameters import MAX_SETTINGS, KernelSegment, ServiceParameters


def test_defaults_stand_once() -> None:
    assert protected_services() == services_from_text([]) == PROTECTED_SERVICES
    log, kci = PROTECTED_SERVICES.settings["log"], PROTECTED_SERVICES.settings["kci"]
    assert log == {"memory": LogSettings().memory, "full": HALT}
    assert kci == KciSettings().measured()
    assert PROTECTED_SERVICES.memory == LogService.memory_size({}) + KciSettings().memory_size


def test_a_kernel_is_copied_for_who_needs_it() -> None:
    kernel = [KernelSegment(0xFFFFFFFF81000000, 0x1000000, (8 << 20) + 1), KernelSegment(0, 0x3000000, 5)]
    without, with_it = protected_services(KciSettings(mode=OFF)), protected_services(KciSettings(mode=ON))
    assert without.region_size(kernel) == without.region_size([])
    assert with_it.kernel_size(kernel) == (8 << 20) + 2 * 4096
    (region, *_) = service_regions(with_it, 0, 1, kernel)
    found = ServiceParameters.parse(region.data)
    assert found.kernel == tuple(kernel)
    assert found.kernel_copy_gpa + with_it.kernel_size(kernel) == with_it.region_size(kernel)
    assert found.kernel_copy_gpa >= found.memory_gpa + with_it.memory
    (region, *_) = service_regions(without, 0, 1, kernel)
    assert ServiceParameters.parse(region.data).kernel == ()


def test_settings_survive_json() -> None:
    settings = KciSettings(mode=HALT, hashes=("ab" * 32,))
    assert json.loads(json.dumps(settings.measured())) == settings.measured()
    assert KciSettings.of(settings.measured()) == settings


@given(st.integers(0, 1 << 40), st.sampled_from([HALT, DROP]))
def test_the_launch_and_the_service_agree(memory: int, full: str) -> None:
    image = protected_services(LogSettings(memory=memory, full=full))
    assert image == services_from_text([f"log:memory={memory},full={full}"])
    assert LogService.memory_size(dict(image.settings["log"])) == image.memory
    assert image.memory % 4096 == 0
    assert image.memory >= max(memory, 64 << 10)
    assert LogSettings.of(image.settings["log"]) == LogSettings(memory=memory, full=full)


def test_text() -> None:
    image = services_from_text(["log:memory=64M", "log:full=drop,memory=1M"])
    assert image.settings["log"] == {"memory": 1 << 20, "full": DROP}
    image = services_from_text(["kci:mode=on,hashes=" + ":".join(["ab" * 32, "cd" * 32])])
    assert image.settings["kci"]["hashes"] == ["ab" * 32, "cd" * 32]
    assert image.keeps_kernel


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("log", "which service"),
        (":full=drop", "which service"),
        ("disk:size=1", "no service 'disk': the services are log, kci, enc"),
        ("log:colour=red", "they are memory=..., full=..."),
        ("log:memory", "they are memory=..., full=..."),
        ("log:memory=lots", "'lots' is not a size"),
        ("log:full=never", "must be halt or drop, not 'never'"),
    ],
)
def test_refused_text(text: str, words: str) -> None:
    with pytest.raises(FormatError, match=words) as caught:
        services_from_text([text])
    assert "\n" not in str(caught.value)


def test_settings_of_no_service() -> None:
    @dataclass(frozen=True)
    class Strange(ServiceSettings):
        size: int = setting(1, int)

    with pytest.raises(FormatError, match="Strange"):
        protected_services(Strange())
    with pytest.raises(FormatError, match="other settings"):
        LogSettings.of({"size": 1})


def test_all_services_share_one_page() -> None:
    settings = {name: {"words": "x" * 1000} for name in ("log", "kci", "enc")}
    ServicesImage("a:B", (), {"log": settings["log"]})
    ServicesImage("a:B", (), {"log": {"words": "x" * (MAX_SETTINGS - len('{"log": {"words": ""}}'))}})
    settings["enc"]["words"] += "x" * 100
    for make in (lambda: ServicesImage("a:B", (), settings), lambda: ServiceParameters.make(settings)):
        with pytest.raises(FormatError, match=r"together, at most 3072 fit: enc 1113, kci 1013, log 1013"):
            make()
