"""What `memplan doctor` was given, opened and told apart: a file, standard input or a server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO

from memplan.cli.options import Given
from memplan.doctor.lines import read_pieces
from memplan.doctor.recognise import HEAD_BYTES, form_of
from memplan.domain.diagnosis import DoctorReport
from memplan.errors import SourceNotFound, UsageError
from memplan.records import replace


def report_on(given: Given) -> DoctorReport:
    """Return what is the matter with what `source` names.

    Raises: UsageError for what is no text, config or snapshot; SourceNotFound for a file that is not there; Offline and
    SourceError for a server that does not answer.
    """
    source: str = given["source"]
    if source.lower().startswith(("http://", "https://")):
        from memplan.cli.doctor_live import server_report

        return server_report(source, given)
    if source == "-":
        return stream_report(sys.stdin.buffer, None, given)
    path = Path(source)
    with _opened(path) as stream:
        return stream_report(stream, path, given)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, or why it cannot be read: pipes are read like files, folders are refused."""
    try:
        if path.is_dir():
            raise UsageError(f"a directory: `{path}`", hint="name the log, the config or the snapshot in it")
        with path.open("rb") as stream:
            yield stream
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise SourceNotFound(
            f"cannot read `{path}`: {reason}", hint="give a file, an address, or - for stdin"
        ) from None


def stream_report(stream: IO[bytes], path: Path | None, given: Given) -> DoctorReport:
    """The report of an open file or pipe; `path` is its name where it has one. Raises: as `report_on`."""
    head = stream.read(HEAD_BYTES)
    if not head.strip():
        raise UsageError("nothing was given: it is empty", hint="give a log, a traceback, a config or a snapshot")
    rest = stream.read(1)
    form = form_of(head, name=path.name if path else "", is_whole=not rest)
    pieces = chain((head + rest,), read_pieces(stream))
    if form == "snapshot":
        from memplan.cli.doctor_snapshot import snapshot_report

        return snapshot_report(pieces)
    if form == "metrics":
        from memplan.cli.doctor_live import metrics_report

        return metrics_report(pieces, given)
    if form == "serving config":
        from memplan.cli.doctor_config import config_report

        return config_report(head.decode("utf-8", "replace"), path, given)
    if form == "training config":
        from memplan.cli.doctor_training import training_report

        return training_report(head.decode("utf-8", "replace"), path, given)
    return log_report(pieces, given)


def log_report(pieces: Iterator[bytes], given: Given) -> DoctorReport:
    """The report of a text, with a budget where the model and the GPU are known."""
    from memplan.cli.doctor_budget import reckon
    from memplan.doctor.diagnose_log import report_of
    from memplan.doctor.facts import gather
    from memplan.doctor.scan import scan

    engine, version = None, None
    if "engine" in given:
        from memplan.engines.registry import parse_engine

        engine, version = parse_engine(given["engine"])
    facts = gather(scan(pieces), engine=engine, version=version)
    reckoned, reason = reckon(facts, given)
    if reckoned is None:
        report = report_of(facts)
    else:
        report = report_of(facts, reckoned.budget, reckoned.recompute)
    notes = [reason] if reason else []
    if given.get("learn"):
        from memplan.cli.doctor_learn import learn

        notes.append(learn(facts, reckoned))
    return replace(report, notes=(*report.notes, *notes))
