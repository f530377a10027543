from __future__ import annotations

import pytest

from imgcache.ui.redact import redact

TOKEN = "gAAAAABm" + "x" * 60


@pytest.mark.parametrize(
    "text",
    [
        f"X-Auth-Token: {TOKEN}",
        f"{{'X-Auth-Token': '{TOKEN}', 'Accept': '*/*'}}",
        f"token {TOKEN} refused",
        "https://admin:{s}@glance.example:9292/v2",
        "password={s}, user=x",
        '{{"password": "{s}"}}',
        "Authorization: Bearer {s}",
        "{s} from the environment",
    ],
)
def test_no_secret_is_left(text: str) -> None:
    secret = "s3cr3t-value"
    clean = redact(
        text.replace("{s}", secret).replace("{{", "{").replace("}}", "}"), {"OS_PASSWORD": secret}
    )
    assert secret not in clean
    assert TOKEN not in clean
    assert "<secret>" in clean


@pytest.mark.parametrize(
    "text",
    ["https://admin:hunter22@glance.example/", "password='hunter22'", "'secret': b'hunter22'"],
)
def test_what_looks_like_a_secret_goes_without_the_environment(text: str) -> None:
    assert "hunter22" not in redact(text, {})


def test_other_text_stays() -> None:
    text = "edge1-04: repetition 1 in 2.0s: HTTP 503 from https://glance.example:9292/v2/images"
    assert redact(text, {"OS_PASSWORD": "x"}) == text
