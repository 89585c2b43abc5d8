"""The command line of training: its help, its flags, and suggestions for misspelled words."""

import difflib
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sppcls.errors import ConfigError, did_you_mean
from sppcls.files import to_json
from sppcls.spec import Spec, meant_by
from sppcls.terminal import width

if TYPE_CHECKING:
    from rich.text import Text

_FLAGS = {
    "help", "h", "hydra-help", "version", "cfg", "c", "resolve", "package", "p", "run", "r", "multirun", "m",
    "shell-completion", "sc", "config-path", "cp", "config-name", "cn", "config-dir", "cd", "experimental-rerun",
    "info", "i",
}  # fmt: skip


def check_flags(arguments: Sequence[str]) -> None:
    """Raise ``ConfigError`` for a flag that neither this program nor Hydra has: settings are ``key=value``."""
    for argument in arguments:
        name, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name not in _FLAGS:
            meant = meant_by(name.replace("-", "_"))
            how = f"use {meant}={value or '...'}" if meant else "--help lists them"
            raise ConfigError(f"unknown flag {argument.split('=')[0]}; settings are written key=value: {how}")


def unknown_option(text: str) -> str | None:
    """Return the message for an unknown option of a config group, from Hydra's error text; None for other errors."""
    found = re.search(r"Could not find '([\w/]+)/([^/']+)'\s+Available options in '[^']+':\s*(.*)", text, re.S)
    if not found:
        return None
    group, option, options = found[1], found[2], found[3].split()
    if group == "model" and not _near(option, options):
        return f"unknown model={option}; allowed: {', '.join(options)}; for other networks use model.backbone={option}"
    return f"unknown {group}={option}{did_you_mean(option, options)}"


def _near(word: str, words: Iterable[str]) -> bool:
    return bool(difflib.get_close_matches(word, list(words), n=1, cutoff=0.9))


_KEY, _DEFAULT = 34, 12
Schema = dict[str, Any]  # JSON schema
_USAGE = """Train an image classifier at several scales, without crop or warp.

  train.py [group=option] [key=value] ...
  train.py -m key=value1,value2 ...      a sweep: one run per value
  train.py --cfg job                     print the settings of a command"""


def train_help(conf: Path) -> "list[Text]":
    """Return the help of the training program, as wide as the terminal; ``conf`` has one folder per group."""
    from rich.text import Text

    schema = Spec.model_json_schema()
    lines = [Text(line) for line in _USAGE.splitlines()]
    lines += [Text(), Text("Groups", "bold"), *_groups(conf), Text(), Text("Settings", "bold")]
    for name, value in schema["properties"].items():
        lines += _of(name, value, schema["$defs"])
    return lines


def _groups(conf: Path) -> "Iterator[Text]":
    for folder in sorted(path for path in conf.iterdir() if path.is_dir()):
        options = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        yield from _wrapped(folder.name, 12, "", options)


def _of(key: str, value: Schema, groups: Schema) -> "Iterator[Text]":
    """Yield the help lines of one setting, or of all settings of a group."""
    if named := value.get("$ref", "").rpartition("/")[2]:
        for name, inner in groups[named]["properties"].items():
            yield from _of(f"{key}.{name}", inner, groups)
        return
    default = "" if value.get("default") == {} else to_json(value.get("default")).strip('"')
    allowed = _allowed(value)
    yield from _wrapped(
        key, _KEY, f"{default:<{_DEFAULT}} ", value["description"] + (f" [{allowed}]" if allowed else "")
    )


def _wrapped(name: str, wide: int, default: str, text: str) -> "Iterator[Text]":
    """Yield a name, its default and a text next to them, or below them on a narrow terminal."""
    from rich.text import Text

    screen = width() if sys.stdout.isatty() else 120
    indent = 2 + wide + len(default)
    head = Text.assemble("  ", (f"{name:<{wide}}", "cyan"), default)
    if screen - indent < 40:
        yield head
        yield from (
            Text(line) for line in textwrap.wrap(text, screen, initial_indent=" " * 6, subsequent_indent=" " * 6)
        )
        return
    first, *more = textwrap.wrap(text, screen - indent)
    yield head.append(first)
    yield from (Text(" " * indent + line) for line in more)


def _allowed(value: Schema) -> str:
    """Return the values that a setting takes, from its JSON schema.

    >>> _allowed({"enum": ["a", "b"]}), _allowed({"type": "integer", "minimum": 1, "exclusiveMaximum": 2147483648})
    ('a, b', 'integer, from 1')
    """
    if "anyOf" in value:
        found = [said for one in value["anyOf"] if (said := _allowed(one))]
        return " or ".join(found) if found != ["null"] else ""
    if "const" in value:
        return str(value["const"])
    if "enum" in value:
        return ", ".join(map(str, value["enum"]))
    kind = value.get("type")
    if kind == "array":
        return f"list of {_allowed(value.get('items', {}))}".removesuffix(" of ")
    said = {"integer": "integer", "number": "number", "boolean": "true, false", "null": "null"}.get(str(kind), "")
    low, high = value.get("minimum"), value.get("maximum")
    if "exclusiveMinimum" in value:
        said += f", above {value['exclusiveMinimum']:g}"
    if low is not None:
        said += f", from {low:,}"
    if high is not None:
        said += f" to {high:,}"
    elif value.get("exclusiveMaximum", 2**31) < 2**31:
        said += f", below {value['exclusiveMaximum']:g}"
    return said
