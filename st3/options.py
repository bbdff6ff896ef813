"""Types of command-line options, for argparse."""

import argparse


def positive_int(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be positive and finite")
    return float(text)


def positive_ints(text: str) -> list[int]:
    """Different ones, as in 1,16."""
    try:
        numbers = [positive_int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} must be numbers, as in 1,16") from error
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text} must be different numbers")
    return numbers
