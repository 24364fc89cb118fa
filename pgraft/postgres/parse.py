"""Values as PostgreSQL parses them: src/backend/utils/misc/guc.c (parse_int, parse_bool)."""

from __future__ import annotations

import re

from pgraft.postgres.errors import SettingError
from pgraft.postgres.settings import INT_MAX, Kind, Setting

_NUMBER = re.compile(
    r"\s*([+-]?(?:0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?))\s*([A-Za-z]*)\s*\Z"
)
_BAD_OCTAL = re.compile(r"\s*[+-]?0[0-9]*[89][0-9]*\s*[A-Za-z]*\s*\Z")  # strtol stops at the 8 or 9
_MEMORY_BYTES = {"B": 1, "kB": 1024, "MB": 1024**2, "GB": 1024**3, "TB": 1024**4}
_TIME_US = {"us": 1, "ms": 1000, "s": 10**6, "min": 60 * 10**6, "h": 3600 * 10**6, "d": 86400 * 10**6}
_BOOL_WORDS = (("true", True), ("false", False), ("yes", True), ("no", False))


def parse_bool(text: str) -> bool | None:
    """PostgreSQL's parse_bool: unique prefixes of true, false, yes, no; on, off ("of"), 1, 0."""
    word = text.lower()
    for full, value in _BOOL_WORDS:
        if word and full.startswith(word):
            return value
    if len(word) >= 2 and "off".startswith(word):
        return False
    return {"on": True, "1": True, "0": False}.get(word)


def parse_integer(text: str, unit: str) -> int | None:
    """PostgreSQL's parse_int: a number, perhaps with a unit that is converted to `unit`, rounded to it.

    None when it is not a number or carries a unit that does not fit. May lie outside the range of
    an int, which the caller checks along with the setting's own range.
    """
    match = _NUMBER.match(text)
    if match is None or _BAD_OCTAL.match(text):
        return None
    number, given = match.groups()
    scale = _scale(given, unit) if given else (1, 1)
    if scale is None:
        return None
    numerator, denominator = scale
    integer = _plain_integer(number)
    if integer is None:
        return round(float(number) * numerator / denominator)
    if denominator == 1:
        return integer * numerator
    return round(integer * numerator / denominator)


def _plain_integer(number: str) -> int | None:
    """strtol with base 0: hexadecimal, octal and decimal; None for a fraction or an exponent."""
    digits = number.lstrip("+-")
    if digits[:2] in ("0x", "0X"):
        return int(number, 16)
    if not digits.isdigit():
        return None
    if len(digits) > 1 and digits[0] == "0" and all(c in "01234567" for c in digits):
        return int(number, 8)
    return int(number)


def _scale(given: str, unit: str) -> tuple[int, int] | None:
    for table in (_MEMORY_BYTES, _TIME_US):
        if unit in table and given in table:
            return table[given], table[unit]
    return None


def parse_setting(setting: Setting, text: str) -> str | int | bool:
    """The value of one setting, or SettingError that says what is allowed."""
    match setting.kind:
        case Kind.STRING:
            return text
        case Kind.BOOL:
            flag = parse_bool(text)
            if flag is None:
                raise SettingError(setting.name, text, "must be on or off")
            return flag
        case Kind.ENUM:
            if text.lower() not in setting.options:
                raise SettingError(setting.name, text, "must be " + " or ".join(setting.options))
            return text.lower()
        case Kind.INTEGER:
            return _integer(setting, text)


def _integer(setting: Setting, text: str) -> int:
    value = parse_integer(text, setting.unit)
    unit = f" {setting.unit}" if setting.unit else ""
    allowed = f"must be an integer from {setting.minimum}{unit} to {setting.maximum}{unit}"
    if value is None:
        units = ", ".join(_units_of(setting.unit))
        hint = f"units are {units}" if units else ""
        raise SettingError(setting.name, text, allowed, hint=hint)
    if not setting.minimum <= value <= setting.maximum or abs(value) > INT_MAX:
        raise SettingError(setting.name, text, allowed)
    return value


def _units_of(unit: str) -> tuple[str, ...]:
    for table in (_MEMORY_BYTES, _TIME_US):
        if unit in table:
            return tuple(table)
    return ()
