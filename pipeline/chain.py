"""The digests that hold a configuration's evidence together, and the configurations with it.

``summary.json`` lists the sha256 of every file of its folder and carries a seal over its own text;
``SEAL.json`` of the folder above links the seals of all configurations, in order. So a changed
character in any of these files is noticed and the file is named, and so is a whole folder that was
put in another's place. A seal holds no secret: whoever edits a log can seal it again. It shows
accidents and careless edits; what it cannot show is in docs/review.md.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.files import file_digest, write_text
from common.provenance import git_commit

SUMMARY, ROOT_SEAL = "summary.json", "SEAL.json"
KEY = "chain"
LOCAL = (".npy", ".npz")
"""Files that a run leaves on its machine and no repository holds: checked where they are."""
_NOT_EVIDENCE = ("recorder_", "records", "inputs")
"""Starts of names of what a run leaves besides: error output, temporary records."""
_START = "0" * 64


def seal(folder: Path, summary: Mapping[str, Any], *, written: Sequence[Path]) -> None:
    """Write ``summary.json`` with the digests of all files of the folder, and its seal.

    Args:
        folder: evidence of one configuration.
        summary: content of summary.json, without a chain.
        written: files of the folder that this run wrote. The digest of another file that an
            earlier chain holds is kept: a new run must not vouch for what it did not make.
    """
    known = {path.relative_to(folder).as_posix() for path in written}
    older = {
        name: digest
        for name, digest in _listed(folder).items()
        if name not in known and (folder / name).is_file()
    }
    _store(folder, dict(summary), _digests(folder, kept=older))


def renew(folder: Path, *parts: str) -> None:
    """Take new digests of some files, after they were written or removed on purpose.

    Args:
        folder: evidence of one configuration, or of the family. Nothing happens where there is
            no seal yet, or a broken one: a repaired seal would hide what broke it.
        parts: files or folders within ``folder``, for example "log_reprod" or "audit.log".
    """
    summary = _read_json(folder / SUMMARY)
    if summary is None:
        if (folder / ROOT_SEAL).is_file():
            link(folder, *parts)
        return
    if text_problem(folder / SUMMARY):
        logging.getLogger(__name__).warning(
            "%s: its seal is broken and was not renewed; verify again", folder / SUMMARY
        )
        return
    kept = {
        name: digest
        for name, digest in _listed(folder).items()
        if not any(name == part or name.startswith(f"{part}/") for part in parts)
    }
    _store(folder, summary, _digests(folder, kept=kept))


def link(logs: Path, *names: str) -> None:
    """Write ``SEAL.json``: the seals of all configurations of a folder of logs, in order.

    Args:
        logs: folder that holds one folder per configuration.
        names: configurations and files of ``logs`` that are new; the others keep their entries.
            None named: all are new, and entries of what is gone are dropped.
    """
    path = logs / ROOT_SEAL
    old = (_read_json(path) or {}) if names else {}
    entries: dict[str, dict[str, str]] = {}
    for entry in _entries(old):
        if entry.get("name") not in names:
            entries[entry.get("name", "")] = entry
    for folder in configuration_folders(logs):
        if folder.name not in entries:
            summary = _read_json(folder / SUMMARY) or {}
            entries[folder.name] = {
                "name": folder.name,
                "commit": str(summary.get("commit", "unknown")),
                "seal": seal_of(summary),
            }
    files = {k: v for k, v in _texts(old.get("files")).items() if k not in names}
    for file in sorted(logs.glob("*")):
        if _is_evidence(file, logs) and file.name != ROOT_SEAL:
            files.setdefault(file.name, file_digest(file))
    content: dict[str, Any] = {
        "commit": git_commit(),
        "files": files,
        "configurations": _linked([entries[name] for name in sorted(entries)]),
        KEY: {"seal": ""},
    }
    _write_sealed(path, content)


def problems(folder: Path) -> list[str]:
    """Return all that is wrong with a configuration's chain, each naming its file."""
    broken = text_problem(folder / SUMMARY)
    if broken:
        return [broken]
    summary = _read_json(folder / SUMMARY) or {}
    chain: Mapping[str, Any] = summary[KEY]
    return [
        *_differing(folder, _texts(chain.get("files")), present=_evidence(folder)),
        *_differing(folder, _texts(chain.get("local")), present=None),
    ]


def root_problems(logs: Path) -> list[str]:
    """Return what is wrong with ``SEAL.json``, its files, and the seals that it links."""
    path = logs / ROOT_SEAL
    broken = text_problem(path)
    if broken:
        return [broken]
    content = _read_json(path) or {}
    plain = _entries(content)
    found: list[str] = []
    if _linked(plain) != content.get("configurations"):
        found.append(f"{ROOT_SEAL}: its links do not follow from its seals")
    for entry in plain:
        name = entry.get("name", "")
        summary = _read_json(logs / name / SUMMARY)
        if summary is None:
            found.append(f"{name}/{SUMMARY}: sealed, and missing or unreadable")
        elif seal_of(summary) != entry.get("seal"):
            found.append(f"{name}: another seal than in {ROOT_SEAL}: the folder was replaced")
    sealed = {entry.get("name") for entry in plain}
    found += [
        f"{folder.name}: not in {ROOT_SEAL}"
        for folder in configuration_folders(logs)
        if folder.name not in sealed
    ]
    return [*found, *_differing(logs, _texts(content.get("files")), present=None, needed=True)]


def configuration_folders(logs: Path) -> list[Path]:
    """Return the folders of a folder of logs that hold a verification's summary, by name."""
    return sorted(path.parent for path in logs.glob(f"*/{SUMMARY}"))


def seal_of(summary: Mapping[str, Any]) -> str:
    """Return the seal that a summary carries, or an empty text."""
    chain = summary.get(KEY)
    return str(chain.get("seal", "")) if isinstance(chain, Mapping) else ""


def text_problem(path: Path) -> str:
    """Return what is wrong with a sealed JSON file's own text, or an empty text."""
    try:
        text = path.read_bytes().decode()
        content: Any = json.loads(text)
    except FileNotFoundError:
        return f"{path.name}: missing"
    except (OSError, ValueError) as error:
        return f"{path.name}: unreadable or truncated ({error})"
    if not isinstance(content, dict) or not seal_of(content):
        return f"{path.name}: without a seal, of an older version of this code"
    if _sealed_text(content) != text:
        return f"{path.name}: changed after it was sealed"
    return ""


def _store(folder: Path, summary: dict[str, Any], digests: Mapping[str, str]) -> None:
    files = {name: digest for name, digest in digests.items() if not name.endswith(LOCAL)}
    local = {name: digest for name, digest in digests.items() if name.endswith(LOCAL)}
    summary[KEY] = {"files": files, "local": local, "seal": ""}
    _write_sealed(folder / SUMMARY, summary)
    if (folder.parent / ROOT_SEAL).is_file():
        link(folder.parent, folder.name)


def _write_sealed(path: Path, content: dict[str, Any]) -> None:
    write_text(path, _sealed_text(content))


def _sealed_text(content: Mapping[str, Any]) -> str:
    """Return a JSON text whose ``chain.seal`` is the sha256 of itself with an empty seal."""
    chain: dict[str, Any] = dict(content[KEY])
    bare = {**content, KEY: {**chain, "seal": ""}}
    digest = hashlib.sha256(_dumped(bare).encode()).hexdigest()
    return _dumped({**content, KEY: {**chain, "seal": digest}})


def _dumped(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def _linked(entries: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Return the entries, each with a digest over itself and the link before it."""
    linked: list[dict[str, str]] = []
    before = _START
    for entry in entries:
        text = f"{before} {json.dumps(dict(entry), sort_keys=True)}"
        before = hashlib.sha256(text.encode()).hexdigest()
        linked.append({**entry, "link": before})
    return linked


def _evidence(folder: Path) -> list[str]:
    """Return the names of all files that the chain must cover, local ones left out."""
    return [name for name in _names(folder) if not name.endswith(LOCAL)]


def _names(folder: Path) -> list[str]:
    files = (path for path in sorted(folder.rglob("*")) if _is_evidence(path, folder))
    names = (path.relative_to(folder).as_posix() for path in files)
    return [name for name in names if name != SUMMARY]


def _is_evidence(path: Path, folder: Path) -> bool:
    parts = path.relative_to(folder).parts
    temporary = any(part.startswith((".", "audit.")) for part in parts[:-1])
    return path.is_file() and not temporary and not parts[0].startswith((".", *_NOT_EVIDENCE))


def _digests(folder: Path, *, kept: Mapping[str, str]) -> dict[str, str]:
    """Return the digests of all files; those in ``kept`` as they are, even if the file is gone."""
    fresh = {name: file_digest(folder / name) for name in _names(folder) if name not in kept}
    return dict(sorted({**fresh, **kept}.items()))


def _listed(folder: Path) -> dict[str, str]:
    chain: Any = (_read_json(folder / SUMMARY) or {}).get(KEY, {})
    if not isinstance(chain, dict):
        return {}
    return {**_texts(chain.get("files")), **_texts(chain.get("local"))}


def _differing(
    folder: Path,
    digests: Mapping[str, str],
    *,
    present: Sequence[str] | None,
    needed: bool = False,
) -> Iterator[str]:
    """Yield each file whose digest is another; ``present`` files must all be listed."""
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            if present is not None or needed:
                yield f"{name}: missing, though it is in the chain"
        elif file_digest(path) != digest:
            yield f"{name}: changed after it was sealed"
    yield from (f"{name}: not in the chain" for name in present or () if name not in digests)


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        content: Any = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _texts(value: Any) -> dict[str, str]:
    return {str(k): str(v) for k, v in value.items()} if isinstance(value, dict) else {}


def _entries(content: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the configurations of a SEAL.json, without their links."""
    listed: Any = content.get("configurations")
    rows = [row for row in listed if isinstance(row, dict)] if isinstance(listed, list) else []
    return [{k: v for k, v in _texts(row).items() if k != "link"} for row in rows]
