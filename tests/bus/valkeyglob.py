"""Redis's glob matching, written from its documentation, to check ``escape_glob``."""


def matches(pattern: str, text: str) -> bool:  # noqa: PLR0911 - one for each rule
    if not pattern:
        return not text
    head = pattern[0]
    if head == "*":
        return any(matches(pattern[1:], text[cut:]) for cut in range(len(text) + 1))
    if not text:
        return False
    if head == "?":
        return matches(pattern[1:], text[1:])
    if head == "\\" and len(pattern) > 1:
        return text[0] == pattern[1] and matches(pattern[2:], text[1:])
    if head == "[":
        closing = pattern.find("]", 1)
        inside = pattern[1:closing] if closing > 0 else pattern[1:]
        rest = pattern[closing + 1 :] if closing > 0 else ""
        wanted = text[0] not in inside[1:] if inside.startswith("^") else text[0] in inside
        return wanted and matches(rest, text[1:])
    return text[0] == head and matches(pattern[1:], text[1:])
