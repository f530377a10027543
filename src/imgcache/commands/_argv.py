"""What is read off the command line before its library parses it."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from imgcache.errors import UsageError

_SECRET_OPTION = re.compile(r"--os-[a-z-]*(?:password|secret|token|passcode)(?==|$)")
_JSON_ASKED = re.compile(r"(?:-[vq]*f=?|--format=)json")
_JSON_FOLLOWS = re.compile(r"-[vq]*f|--format")


def refuse_secrets(argv: Sequence[str]) -> None:
    """Say where a secret belongs, to who gives one here.

    Raises:
        UsageError: an option that would hold a secret.
    """
    for word in _options_of(argv):
        found = _SECRET_OPTION.match(word)
        if found:
            message = (
                f"{found[0]}: secrets are not taken from the command line, "
                "where every user of this machine can see them"
            )
            variable = found[0].removeprefix("--").replace("-", "_").upper()
            raise UsageError(message, hint=f"set {variable}, or use clouds.yaml and --os-cloud")


def asks_json(argv: Sequence[str]) -> bool:
    """Return whether ``-f json`` is there; errors of the parsing itself need to know."""
    words = [*_options_of(argv), ""]
    return any(
        _JSON_ASKED.fullmatch(word) or (_JSON_FOLLOWS.fullmatch(word) and after == "json")
        for word, after in pairwise(words)
    )


def hoist_global_options(argv: Sequence[str], root: Any) -> list[str]:
    """Return the words with global options first, so that they may also stand behind the command."""
    takes_value = {
        name: not param.is_flag
        for param in root.params
        for name in param.opts
        if name.startswith("--")
        and name not in {"--help", "--install-completion", "--show-completion"}
    }
    first: list[str] = []
    rest: list[str] = []
    words = iter(_options_of(argv))
    for word in words:
        name, equals, _ = word.partition("=")
        target = first if name in takes_value else rest
        target.append(word)
        if target is first and takes_value[name] and not equals:
            first.extend([value] if (value := next(words, None)) is not None else [])
    return [*first, *rest, *argv[len(_options_of(argv)) :]]


def _options_of(argv: Sequence[str]) -> list[str]:
    """Return the words before ``--``: behind it, nothing is an option."""
    words = list(argv)
    return words[: words.index("--")] if "--" in words else words
