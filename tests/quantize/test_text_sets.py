"""Text sets: found by name or path, cut into two parts that share nothing, refused with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memplan.errors import CorruptFile, Offline, UsageError
from memplan.quantize.documents import Document
from memplan.quantize.overlap import check_disjoint, find_overlap
from memplan.quantize.public_sets import load_spec
from memplan.quantize.text_sets import DOMAINS, TextSet, read_set, spec_names, statistics

SENTENCE = "The keeper of the northern light wrote down the number of birds that he had counted in October. "


def jsonl(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def texts(*documents: str, part: str = "calibrate") -> TextSet:
    made = tuple(Document(text=text, origin=f"{part}-{number}") for number, text in enumerate(documents))
    return TextSet(name="made", part=part, documents=made)  # type: ignore[arg-type]


def test_the_built_in_texts_cover_four_domains_in_150_kb_of_different_documents() -> None:
    calibrate, validate = read_set("builtin", "calibrate"), read_set("builtin", "validate")
    assert set(calibrate.domains) == set(validate.domains) == set(DOMAINS)
    everything = [document.text for part in (calibrate, validate) for document in part.documents]
    assert len(set(everything)) == len(everything)
    assert sum(len(text.encode()) for text in everything) >= 150_000
    assert all(found.shortest_chars > 1500 for part in (calibrate, validate) for found in statistics(part))


def test_no_built_in_text_to_validate_on_repeats_one_to_calibrate_on() -> None:
    overlap = check_disjoint(read_set("builtin", "calibrate"), read_set("builtin", "validate"))
    assert overlap.copies == ()
    assert overlap.shared_fraction < 0.001


def test_a_seed_gives_an_order_and_another_seed_another_one_of_the_same_documents() -> None:
    first, again, other = (read_set("builtin", "calibrate", seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first.digest == again.digest != other.digest
    assert {each.origin for each in first.documents} == {each.origin for each in other.documents}


def test_several_sets_with_a_comma_are_one() -> None:
    both = read_set("code,math", "validate")
    assert set(both.domains) == {"code", "math"}
    assert len(read_set("code,math", "validate", max_documents=1).documents) == 2


def test_lines_of_json_hold_texts_and_conversations_under_their_usual_names(tmp_path: Path) -> None:
    name = jsonl(
        tmp_path / "mine.jsonl",
        {"text": "a text"},
        {"content": "some content", "domain": "code"},
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "good day"}]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        "a bare string",
    )
    found = [*read_set(name, "calibrate").documents, *_maybe(name)]
    by_plain = {document.plain: document for document in found}
    assert set(by_plain) == {
        "a text",
        "some content",
        "user: hello\n\nassistant: good day",
        "user: hi\n\nassistant: ho",
        "a bare string",
    }
    assert by_plain["some content"].domain == "code"
    assert by_plain["a text"].domain == "mine"


def _maybe(name: str) -> tuple[Document, ...]:
    """The validation part, which a handful of documents may leave empty."""
    try:
        return read_set(name, "validate").documents
    except UsageError:
        return ()


@pytest.mark.parametrize(
    ("line", "error", "complaint"),
    [
        ('{"text": "cut', CorruptFile, "bad.jsonl:1 is not JSON"),
        ("[1, 2]", CorruptFile, "is no object"),
        ('{"title": "x"}', UsageError, "has no text: its keys are title"),
    ],
)
def test_a_line_that_is_no_document_is_named(tmp_path: Path, line: str, error: type, complaint: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(error, match=complaint):
        read_set(str(path), "calibrate")


def test_folders_named_for_the_parts_decide_and_folders_above_name_domains(tmp_path: Path) -> None:
    for domain in ("law", "sport"):
        for part in ("calibrate", "validate"):
            folder = tmp_path / domain / part
            folder.mkdir(parents=True)
            (folder / "one.txt").write_text(f"{domain} {part}")
    for part in ("calibrate", "validate"):
        found = read_set(str(tmp_path), part)  # type: ignore[arg-type]
        assert {(each.domain, each.text) for each in found.documents} == {
            (domain, f"{domain} {part}") for domain in ("law", "sport")
        }


def test_without_such_folders_every_document_is_in_exactly_one_part_wherever_it_comes_up(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"{number:02}.txt").write_text(f"document {number}")
        (tmp_path / f"{number:02}-again.txt").write_text(f"document  {number}\n")
    parts = [
        {" ".join(each.text.split()) for each in read_set(str(tmp_path), part).documents}  # type: ignore[arg-type]
        for part in ("calibrate", "validate")
    ]
    assert not parts[0] & parts[1]
    assert len(parts[0] | parts[1]) == 60
    assert 5 <= len(parts[1]) <= 25


def test_an_unknown_set_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown text set: `wikitext`") as refused:
        read_set("wikitext", "validate")
    assert refused.value.hint == "did you mean wikitext-2?"
    with pytest.raises(UsageError, match="no text in"):
        read_set(str(tmp_path), "calibrate")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(UsageError, match="no text to"):
        read_set(str(tmp_path), "calibrate")


@pytest.mark.parametrize("name", spec_names())
def test_every_spec_says_what_to_take_for_each_part(name: str) -> None:
    spec = load_spec(name)
    calibrate, validate = spec.parts["calibrate"], spec.parts["validate"]
    assert spec.licence
    assert calibrate.documents >= 100
    assert validate.joined or validate.documents >= 100
    same_place = (calibrate.split, calibrate.files) == (validate.split, validate.files)
    assert not same_place or validate.skip >= calibrate.skip + calibrate.documents + 10_000


def test_a_public_set_is_not_fetched_offline() -> None:
    with pytest.raises(Offline, match="`c4` is allenai/c4 on the hub"):
        read_set("c4", "calibrate", offline=True)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("title: x\nhash: y\n", "unknown key"),
        ("title: x\ncalibrate: {split: train, number: 3}\n", "unknown key in .*number"),
        ("title: x\n", "not a whole spec"),
    ],
)
def test_a_spec_with_a_wrong_or_missing_key_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=complaint):
        load_spec("mine", path)


def test_a_copied_document_is_refused_and_a_shared_phrase_is_not() -> None:
    calibrate = texts(SENTENCE * 3 + "After that he went to bed and slept.", "Something else altogether.")
    copied = texts("Preface. " + SENTENCE * 3, part="validate")
    with pytest.raises(UsageError, match="1 documents to validate on are in the calibration text: validate-0"):
        check_disjoint(calibrate, copied)
    other = " ".join(f"word{number} and so on" for number in range(200))
    assert find_overlap(calibrate, texts(SENTENCE + other, part="validate")).copies == ()
