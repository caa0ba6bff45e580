"""`memplan profile` from the command line: its formats and exit codes, what it takes over, what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from memplan_in_process import Memplan

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
QUICK = ("demo", "--output-tokens", "4", "--prompt-tokens", "64")


def schema(name: str) -> dict[str, object]:
    content: dict[str, object] = json.loads((SCHEMAS / f"memplan.{name}.json").read_text())
    return content


def profile_json(memplan_here: Memplan, *more: str) -> dict[str, object]:
    content: dict[str, object] = json.loads(memplan_here("profile", *QUICK, "--json", *more).stdout)
    return content


def test_the_page_has_every_phase_and_the_estimate_beside(memplan_here: Memplan) -> None:
    pytest.importorskip("torch")
    done = memplan_here("profile", *QUICK, "--gpu", "l4")
    assert done.returncode == 0
    assert done.stdout.startswith("demo, LlamaForCausalLM\nsimulated l4 (21.58 GiB for torch), bfloat16")
    for text in ("load  ", "prefill", "decode", "reserved", "what was alive at the peak", "memplan estimate --engine"):
        assert text in done.stdout


def test_json_follows_its_schema_and_each_term_is_compared(memplan_here: Memplan) -> None:
    pytest.importorskip("torch")
    content = profile_json(memplan_here, "--gpu", "l4")
    jsonschema.validate(content, schema("profile"))
    assert [phase["phase"] for phase in content["phases"]] == ["load", "prefill", "decode"]  # type: ignore[attr-defined, index]
    terms = {(one["phase"], one["term"]): one for one in content["compared"]}  # type: ignore[attr-defined, index]
    weights = terms["prefill", "weights"]
    assert 0 <= weights["estimated_bytes"] - weights["measured_bytes"] < 4 << 20  # the rest of its last segments
    cache = terms["prefill", "KV cache"]
    assert cache["measured_bytes"] == cache["estimated_bytes"]
    shares = content["at_peak"]
    assert sum(share["bytes"] for share in shares) == content["peak"]["allocated_bytes"]  # type: ignore[attr-defined, index]


def test_several_batches_lengths_and_kernels_are_told_side_by_side(memplan_here: Memplan) -> None:
    pytest.importorskip("torch")
    done = memplan_here(
        "profile", "demo", "--phase", "prefill", "--batch", "1,4", "--prompt-tokens", "64,128", "--json"
    )
    content = json.loads(done.stdout)
    jsonschema.validate(content, schema("profiles"))
    made = [(one["settings"]["batch"], one["settings"]["prompt_tokens"]) for one in content["profiles"]]
    assert made == [(1, 64), (1, 128), (4, 64), (4, 128)]
    peaks = [one["peak"]["allocated_bytes"] for one in content["profiles"]]
    assert peaks == sorted(peaks)


def test_code_as_it_is_and_captured_is_told_side_by_side(memplan_here: Memplan) -> None:
    pytest.importorskip("torch")
    asked = ("profile", "demo", "--phase", "decode", "--prompt-tokens", "64", "--output-tokens", "8")
    content = json.loads(memplan_here(*asked, "--execution", "eager,graph", "--json").stdout)
    jsonschema.validate(content, schema("profiles"))
    eager, graph = content["profiles"]
    assert (eager["settings"]["cache"], graph["settings"]["cache"]) == ("dynamic", "static")
    assert eager["capture"] is None
    assert graph["capture"]["pool_bytes"] > graph["capture"]["live_bytes"] > 0
    assert {(phase["phase"], phase["iteration"]) for phase in graph["phases"]} == {
        ("decode", 0),
        ("capture", 0),
        ("decode", 1),
    }
    assert {each["profile"] for each in content["side_by_side"]} == {"eager", "captured in a graph"}


def test_two_profiles_are_compared_in_every_format(memplan_here: Memplan) -> None:
    pytest.importorskip("torch")
    for kernel in ("math", "flash"):
        assert memplan_here("profile", *QUICK, "--attention", kernel, "--json", "-o", f"{kernel}.json").returncode == 0
    pair = ("profile", "--compare", "math.json", "flash.json")
    text = memplan_here(*pair)
    assert text.returncode == 0
    assert "the peak goes from" in text.stdout
    assert "attention  math    flash" in text.stdout
    content = json.loads(memplan_here(*pair, "--json").stdout)
    jsonschema.validate(content, schema("profile-comparison"))
    assert content["changed"] == [{"name": "attention", "before": "math", "after": "flash"}]
    assert memplan_here(*pair, "--html").stdout.startswith("<!doctype html>")
    assert memplan_here(*pair, "--markdown").stdout.startswith("## demo")
    assert memplan_here(*pair, "--quiet").stdout.count("\n") == 1


def test_the_page_of_html_fetches_nothing_and_is_written_whole(memplan_here: Memplan) -> None:
    pytest.importorskip("torch")
    done = memplan_here("profile", *QUICK, "--html", "--output", "page.html")
    page = (memplan_here.home / "page.html").read_text()
    assert (done.returncode, done.stdout) == (0, "")
    assert page.count("<svg") >= 4
    assert "<script" not in page
    again = memplan_here("profile", *QUICK, "--html", "--output", "page.html")
    assert (again.returncode, "exists already" in again.stderr) == (2, True)


def test_after_an_estimate_the_phase_is_all_that_must_be_named(memplan_here: Memplan) -> None:
    pytest.importorskip("torch")
    memplan_here("estimate", "demo", "--gpu", "a100-80g", "--context", "128", "--concurrency", "2")
    done = memplan_here("profile", "--phase", "decode", "--output-tokens", "4", "--json")
    assert "using the last command here: demo on a100-80g" in done.stderr
    content = json.loads(done.stdout)
    assert content["device"]["name"] == "a100-80g"
    assert (content["settings"]["batch"], content["settings"]["prompt_tokens"]) == (2, 124)
    assert {phase["phase"] for phase in content["phases"]} == {"decode"}


def test_a_model_that_does_not_fit_is_an_answer_with_every_phase(memplan_here: Memplan) -> None:
    pytest.importorskip("torch")
    asked = ("profile", *QUICK, "--gpu-memory", "512MiB", "--gpu-free", "478MiB", "--json")
    done = memplan_here(*asked)
    content = json.loads(done.stdout)
    assert done.returncode == 1
    assert content["out_of_memory"]["phase"] == "load"
    assert [phase["phase"] for phase in content["phases"]] == ["load", "prefill", "decode"]
    assert content["findings"][0]["code"] == "capacity"
    assert memplan_here(*asked, "--fail-on", "never").returncode == 0


def test_a_snapshot_that_was_written_is_read_with_the_same_peak(memplan_here: Memplan) -> None:
    pytest.importorskip("torch")
    written = memplan_here("profile", *QUICK, "--json", "--memory-viz", "run.pickle")
    assert "wrote run.pickle" in written.stderr
    read = memplan_here("profile", "--snapshot", "run.pickle", "--json")
    one, two = json.loads(written.stdout), json.loads(read.stdout)
    jsonschema.validate(two, schema("profile"))
    assert two["peak"]["allocated_bytes"] == one["peak"]["allocated_bytes"]
    assert two["device"]["kind"] == "cuda"


def test_a_correction_moves_the_estimate_of_that_gpu_and_model_alone(memplan_here: Memplan) -> None:
    pytest.importorskip("torch")
    asked = ("demo", "--engine", "transformers", "--context", "65", "--json")

    def activations(gpu: str) -> dict[str, object]:
        lines = json.loads(memplan_here("estimate", *asked, "--gpu", gpu).stdout)["lines"]
        return next(line for line in lines if line["name"].startswith("prefill"))

    before = {gpu: activations(gpu) for gpu in ("l4", "a100-80g")}
    made = memplan_here("profile", *QUICK, "--gpu", "l4", "--phase", "prefill", "--save-correction", "--json")
    assert made.returncode == 0
    profiled = {one["term"]: one for one in json.loads(made.stdout)["compared"]}["activations and workspace"]
    after = activations("l4")
    assert activations("a100-80g") == before["a100-80g"]
    shift = profiled["measured_bytes"] - profiled["estimated_bytes"]
    assert abs((after["bytes"] - before["l4"]["bytes"]) - shift) <= 1024  # type: ignore[operator]
    note = json.loads(memplan_here("estimate", *asked, "--gpu", "l4").stdout)["warnings"]
    assert any("corrected by profiles" in warning for warning in note)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("demo", "--phase", "decod"), "unknown phase: `decod`"),
        (("demo", "--attention", "flashy"), "not a value of --attention: `flashy`"),
        (("demo", "--device", "tpu"), "not a value of --device: `tpu`"),
        (("demo", "--batch", "0"), "--batch out of range"),
        (("demo", "--prompt-tokens", "many"), "not a --prompt-tokens: `many`"),
        (("demo", "--context", "100"), "leaves no room for a prompt"),
        (("demo", "--json", "--html"), "exclude each other"),
        (("demo", "--snapshot", "x.pickle"), "exclude each other"),
        (("demo", "--fail-on", "tight"), "not an outcome to fail on"),
        (("demo", "--allocator", "expandable:True"), "unknown allocator setting"),
        (("demo", "--output", "no/such/folder.json"), "no such directory"),
        (("demo", "--memory-viz", "no/such/run.pickle"), "no such directory"),
        (("demo", "--memory-viz", "x.pickle", "--batch", "1,2"), "--memory-viz writes one profile"),
        (("demo", "--execution", "grph"), "not a value of --execution: `grph`"),
        (("demo", "--execution", "compiled", "--device", "simulated"), "compiled code is not simulated"),
        (("demo", "--execution", "graph", "--device", "cpu"), "CUDA graphs are a GPU's"),
        (("demo", "--phase", "capture", "--save-correction"), "--save-correction is of code run as it is written"),
        (("--snapshot", "x.pickle"), "no such file: x.pickle"),
        (("--compare", "a.json", "b.json"), "no such file: a.json"),
        ((), "no model was named"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_a_hint(
    memplan_here: Memplan, arguments: tuple[str, ...], complaint: str
) -> None:
    done = memplan_here("profile", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    error, _, hint = done.stderr.partition("\n\n")
    assert complaint in error
    assert error.count("\n") == 0
    assert hint.startswith("hint: ")


def test_a_file_that_is_no_profile_or_no_snapshot_is_refused(memplan_here: Memplan) -> None:
    (memplan_here.home / "a.json").write_text('{"schema": "memplan.estimate/1"}')
    (memplan_here.home / "b.pickle").write_bytes(b"not a pickle")
    for arguments in (("--compare", "a.json", "a.json"), ("--snapshot", "b.pickle")):
        done = memplan_here("profile", *arguments)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")


def test_a_gpu_that_is_not_there_is_missing(memplan_here: Memplan) -> None:
    done = memplan_here("profile", "demo", "--device", "cuda")
    assert done.returncode == 5
    assert "no GPU found" in done.stderr


def test_without_torch_it_is_one_line_and_the_code_of_a_missing_extra(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "from memplan.cli.app import main\n"
        "main(['profile', 'demo', '--phase', 'decode'])\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 5
    assert done.stdout == ""
    assert done.stderr == "error: profile needs torch\n\nhint: pip install 'memplan[profile]'\n"


@pytest.mark.parametrize("arguments", [["profile", "--help"], ["profile", "--compare", "a.json", "b.json"]])
def test_help_and_comparing_import_nothing_heavy(tmp_path: Path, arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from memplan.cli.app import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'yaml', 'rich') if name in sys.modules])\n"
    )
    environment = {**os.environ, "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]"
