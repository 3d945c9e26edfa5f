"""The error that ends a connection."""


class Violation(Exception):
    """The peer broke the protocol or the region format."""


def check(condition, what):
    if not condition:
        raise Violation(what)
