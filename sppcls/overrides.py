"""What a wrong override or flag may have meant, in one line."""

import difflib
import re
from collections.abc import Iterable, Sequence

from sppcls.errors import ConfigError, did_you_mean
from sppcls.spec import meant_by

_FLAGS = {
    "help", "h", "hydra-help", "version", "cfg", "c", "resolve", "package", "p", "run", "r", "multirun", "m",
    "shell-completion", "sc", "config-path", "cp", "config-name", "cn", "config-dir", "cd", "experimental-rerun",
    "info", "i",
}  # fmt: skip


def check_flags(arguments: Sequence[str]) -> None:
    """Raise ``ConfigError`` at a flag that neither this program nor Hydra has: settings are ``key=value``."""
    for argument in arguments:
        name, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name not in _FLAGS:
            meant = meant_by(name.replace("-", "_"))
            how = f"use {meant}={value or '...'}" if meant else "--help lists them"
            raise ConfigError(f"unknown flag {argument.split('=')[0]}; settings are written key=value: {how}")


def unknown_option(text: str) -> str | None:
    """Return what to say of a group's option that has no file, from Hydra's own words; None of other errors."""
    found = re.search(r"Could not find '([\w/]+)/([^/']+)'\s+Available options in '[^']+':\s*(.*)", text, re.S)
    if not found:
        return None
    group, option, options = found[1], found[2], found[3].split()
    if group == "model" and not _near(option, options):
        return f"no model={option} in conf/model ({', '.join(options)}); any other network is model.backbone={option}"
    return f"no {group}={option}{did_you_mean(option, options)}"


def _near(word: str, words: Iterable[str]) -> bool:
    return bool(difflib.get_close_matches(word, list(words), n=1, cutoff=0.9))
