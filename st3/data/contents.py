"""What the data are, so that a run that is continued can tell that they have changed."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from st3.data.datasets import Source, Split
from st3.settings import printable

MOST = 5
"""Differences that are told one by one."""


def contents_of(source: Source) -> dict[str, Any]:
    """Plain data, for JSON, that say what `source` holds before anything is held out of it.

        {"classes": [name, …], "splits": {split: {class: {"images": number, "sha256": hash}}}}

    For image files the hash is over their names within the folder of the class. No file is opened or even looked at, so
    that a file that was replaced under its name is not seen. For images in memory there is one entry in place of the
    classes, under "", and its hash is over pixels and labels. Independent of where the data lie.
    """
    splits = {use: split for use in ("train", "val", "test") if (split := getattr(source, use)) is not None}
    return {
        "classes": list(source.classes),
        "splits": {
            use: _files(split, source.folders[use], source.classes) if use in source.folders else {"": _pixels(split)}
            for use, split in splits.items()
        },
    }


def _files(split: Split, folder: str, classes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    names: dict[int, list[bytes]] = {number: [] for number in range(len(classes))}
    skipped = [len(os.path.join(folder, label, "")) for label in classes]
    for path, label in zip(split.inputs, split.labels.tolist(), strict=True):
        names[label].append(os.fsencode(path[skipped[label] :]))
    return {
        classes[number]: {"images": len(found), "sha256": hashlib.sha256(b"\0".join(sorted(found))).hexdigest()}
        for number, found in names.items()
    }


def _pixels(split: Split) -> dict[str, Any]:
    assert isinstance(split.inputs, torch.Tensor)
    digest = hashlib.sha256(str(tuple(split.inputs.shape)).encode())
    for part in (split.inputs, split.labels):
        digest.update(part.contiguous().numpy().data)
    return {"images": len(split.labels), "sha256": digest.hexdigest()}


def contents_changes(before: Any, now: Mapping[str, Any]) -> list[str]:
    """What is another in the contents `now` than in `before`, in words; nothing where they are the same.

    Args:
        before: what `contents_of` gave once, and has lain in a file since: it may be anything.
        now: of `contents_of`.
    """
    if not _is_contents(before):
        return ["what they were before is not recorded in a way that can be compared"]
    changes = list(_changes(before, now))
    more = len(changes) - MOST
    return changes[:MOST] + ([f"and {more:,} more"] if more > 0 else [])


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    old, new = before["classes"], now["classes"]
    came_or_went = set(old) ^ set(new)
    yield from (f"class {printable(label)} is new" for label in new if label not in set(old))
    yield from (f"class {printable(label)} is gone" for label in old if label not in set(new))
    if not came_or_went and old != new:
        yield "the classes are in another order"
    uses = dict.fromkeys([*before["splits"], *now["splits"]])
    for use in uses:
        if use not in before["splits"]:
            yield f"{printable(use)} is new"
        elif use not in now["splits"]:
            yield f"{printable(use)} is gone"
        elif ("" in before["splits"][use]) != ("" in now["splits"][use]):
            kinds = {True: "images in memory", False: "image files"}
            yield f"{use} is {kinds['' in now['splits'][use]]}, not {kinds['' in before['splits'][use]]}"
        else:
            yield from _split_changes(use, before["splits"][use], now["splits"][use], came_or_went)


def _split_changes(
    use: str, before: Mapping[str, Any], now: Mapping[str, Any], came_or_went: set[str]
) -> Iterator[str]:
    none = {"images": 0, "sha256": hashlib.sha256().hexdigest()}
    for label in dict.fromkeys([*before, *now]):
        old, new = before.get(label, none), now.get(label, none)
        name = f"{use}/{printable(label)}" if label else use
        if label in came_or_went or old == new:
            continue
        if old["images"] != new["images"]:
            yield f"{name} has {new['images']:,} images, not {old['images']:,}"
        elif label:
            yield f"{name} has other images, as many as before"
        else:
            yield f"the pixels or labels of {name} are others"


def _is_contents(value: Any) -> bool:
    """Whether it is built as `contents_of` builds it."""
    match value:
        case {"classes": list(classes), "splits": dict(splits)}:
            entries = [entry for split in splits.values() if isinstance(split, dict) for entry in split.items()]
            return (
                all(isinstance(label, str) for label in [*classes, *splits])
                and all(isinstance(split, dict) for split in splits.values())
                and all(isinstance(label, str) and _is_entry(entry) for label, entry in entries)
            )
    return False


def _is_entry(value: Any) -> bool:
    match value:
        case {"images": int(images), "sha256": str()}:
            return 0 <= images < 2**63
    return False
