import base64
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoint_files import GgufBytes, entry, safetensors_bytes
from hub_server import COMMIT, HubServer, Repository, TunnelProxy

from memplan.errors import GatedModel, MemplanError, Offline, SourceError, SourceNotFound, UsageError
from memplan.introspect import hub as hub_module
from memplan.introspect.bytesource import ByteSource
from memplan.introspect.hub import Hub, find_token, is_offline, is_repo_id
from memplan.introspect.model_folder import find_headers
from memplan.introspect.resolve import resolve_model
from memplan.introspect.web import Web

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}


def llama_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (256, 64), "model.norm.weight": (64,)}
    shapes["lm_head.weight"] = (256, 64)
    for index in range(2):
        layer = f"model.layers.{index}"
        shapes |= {f"{layer}.{name}.weight": (64,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{layer}.self_attn.{name}.weight": (64, 64) for name in ("q_proj", "o_proj")}
        shapes |= {f"{layer}.self_attn.{name}.weight": (32, 64) for name in ("k_proj", "v_proj")}
        shapes |= {f"{layer}.mlp.{name}.weight": (128, 64) for name in ("gate_proj", "up_proj")}
        shapes[f"{layer}.mlp.down_proj.weight"] = (64, 128)
    return shapes


def weights(shapes: dict[str, tuple[int, ...]]) -> bytes:
    entries: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        size = 2
        for axis in shape:
            size *= axis
        entries[name] = entry("BF16", shape, end, end + size)
        end += size
    return safetensors_bytes(entries, bytes(end))


def sharded(count: int) -> dict[str, bytes]:
    shapes = llama_shapes()
    names = list(shapes)
    files: dict[str, bytes] = {"config.json": json.dumps(CONFIG).encode()}
    weight_map: dict[str, str] = {}
    for number in range(count):
        shard = f"model-{number + 1:05}-of-{count:05}.safetensors"
        own = {name: shapes[name] for name in names[number::count]}
        weight_map |= dict.fromkeys(own, shard)
        files[shard] = weights(own)
    files["model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    return files


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("memplan.introspect.web._WAITS_S", (0.0, 0.0))
    server.repositories["org/llama"] = Repository(
        files={"config.json": json.dumps(CONFIG).encode(), "model.safetensors": weights(llama_shapes())}
    )
    yield server
    server.close()


def test_a_model_on_the_hub_is_read_by_its_config_and_the_first_bytes_of_its_weights(server: HubServer) -> None:
    spec = resolve_model("org/llama")
    assert spec.weights_source == "headers"
    assert spec.stored_bytes == 2 * spec.parameters
    assert spec.name == "org/llama"
    assert spec.source == f"org/llama@{COMMIT[:7]}"
    assert spec.notes == ()
    (weights_request,) = [seen for seen in server.seen if seen.path.endswith(".safetensors")]
    assert weights_request.range == "bytes=0-99999"
    assert len(server.seen) == 3


def test_requests_share_one_connection(server: HubServer) -> None:
    resolve_model("org/llama")
    assert len({seen.connection for seen in server.seen}) == 1


def test_a_server_that_closes_after_each_answer_is_asked_again(server: HubServer) -> None:
    server.manners.closes = True
    assert resolve_model("org/llama").weights_source == "headers"
    assert len({seen.connection for seen in server.seen}) == 3


def test_shards_are_read_at_the_same_time_and_add_up(server: HubServer) -> None:
    server.repositories["org/big"] = Repository(files=sharded(12))
    spec = resolve_model("org/big")
    assert spec.stored_bytes == 2 * spec.parameters
    shards = [seen for seen in server.seen if seen.path.endswith(".safetensors")]
    assert len(shards) == 12
    assert len({seen.connection for seen in shards}) > 1


def test_headers_are_kept_and_only_the_commit_is_asked_for_again(server: HubServer) -> None:
    server.repositories["org/big"] = Repository(files=sharded(3))
    first = resolve_model("org/big")
    server.seen.clear()
    assert resolve_model("org/big") == first
    assert server.paths() == ["/api/models/org/big/revision/main"]


def test_a_commit_that_is_kept_needs_no_network_at_all(server: HubServer) -> None:
    first = resolve_model("org/llama", revision=COMMIT)
    server.seen.clear()
    assert resolve_model("org/llama", revision=COMMIT) == first
    assert server.seen == []


def test_a_damaged_cache_is_fetched_again(server: HubServer, tmp_path: Path) -> None:
    first = resolve_model("org/llama", revision=COMMIT)
    for number, path in enumerate(sorted((tmp_path / "cache" / "memplan").rglob("*.json"))):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if number % 2 else data[:-3] + b"9" + data[-2:])
    server.seen.clear()
    assert resolve_model("org/llama", revision=COMMIT) == first
    assert len(server.seen) >= 3


def test_a_cache_that_cannot_be_written_is_done_without(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    assert resolve_model("org/llama").weights_source == "headers"


def test_offline_answers_from_what_was_kept(server: HubServer) -> None:
    first = resolve_model("org/llama")
    server.seen.clear()
    assert resolve_model("org/llama", offline=True) == first
    assert server.seen == []


def test_offline_without_anything_kept_says_so(server: HubServer) -> None:
    with pytest.raises(Offline, match="`org/llama` is not on this disk"):
        resolve_model("org/llama", offline=True)
    assert server.seen == []


def test_the_environment_rules_the_network_out(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert is_offline()
    with pytest.raises(Offline):
        resolve_model("org/llama")
    assert server.seen == []


def test_a_hub_that_cannot_be_reached_is_told_apart_and_the_cache_steps_in(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = resolve_model("org/llama")
    server.close()
    assert resolve_model("org/llama") == first
    with pytest.raises(Offline, match=r"cannot reach 127\.0\.0\.1: Connection refused") as caught:
        resolve_model("org/other")
    assert "--offline" in str(caught.value.hint)


def test_a_name_that_no_server_has_is_no_network(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://no-such-host.invalid")
    with pytest.raises(Offline, match="its name is not known"):
        resolve_model("org/llama")


def test_a_repository_that_is_not_there_is_not_found(server: HubServer) -> None:
    with pytest.raises(SourceNotFound, match="no such model on the hub: `org/nothing`") as caught:
        resolve_model("org/nothing")
    assert "HF_TOKEN" in str(caught.value.hint)


def test_a_revision_that_is_not_there_is_named(server: HubServer) -> None:
    with pytest.raises(SourceNotFound, match="no revision `v9` of `org/llama`"):
        resolve_model("org/llama", revision="v9")


@pytest.mark.parametrize("revision", ["../main", "a b", "", "x" * 300, "a\nb", "-x"])
def test_a_revision_that_can_be_none_is_refused_unasked(server: HubServer, revision: str) -> None:
    with pytest.raises(UsageError, match="not a revision"):
        resolve_model("org/llama", revision=revision)
    assert server.seen == []


def test_a_gated_model_asks_for_terms_and_token(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repositories["org/llama"].gated = True
    server.repositories["org/llama"].token = "hf_right"
    with pytest.raises(GatedModel, match="gated model: `org/llama`") as caught:
        resolve_model("org/llama")
    assert "set HF_TOKEN" in str(caught.value.hint)
    assert f"{server.url}/org/llama" in str(caught.value.hint)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(GatedModel) as caught:
        resolve_model("org/llama")
    assert "ask for it" in str(caught.value.hint)
    assert "hf_wrong" not in f"{caught.value.message} {caught.value.hint}"
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert resolve_model("org/llama").weights_source == "headers"


def test_a_private_model_is_found_with_its_token(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.repositories["org/llama"].token = "hf_mine"
    with pytest.raises(SourceNotFound):
        resolve_model("org/llama")
    monkeypatch.setenv("HF_TOKEN", " hf_mine\n")
    assert resolve_model("org/llama").weights_source == "headers"


def test_a_token_that_the_hub_does_not_take_is_named_as_that(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.manners.bad_token = True
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    with pytest.raises(GatedModel, match="does not take your token"):
        resolve_model("org/llama")


def test_a_token_never_goes_to_another_host(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.manners.redirect = True
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert resolve_model("org/llama").weights_source == "headers"
    assert {seen.server for seen in server.seen} == {"hub", "content"}
    assert all(seen.authorization == "Bearer hf_secret" for seen in server.seen if seen.server == "hub")
    assert all(seen.authorization is None for seen in server.seen if seen.server == "content")


def test_redirects_in_a_circle_end(server: HubServer) -> None:
    server.manners.redirect = True
    server.content_url = server.url
    with pytest.raises(SourceError, match="redirects"):
        resolve_model("org/llama")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_hub_is_asked_again_a_few_times(server: HubServer, status: int) -> None:
    server.manners.failures = [status, status]
    assert resolve_model("org/llama").weights_source == "headers"
    server.manners.failures = [status] * 3
    with pytest.raises(Offline, match=str(status)):
        resolve_model("org/other")


def test_the_wait_that_a_hub_asks_for_is_kept_within_bounds(server: HubServer) -> None:
    waits: list[float] = []
    server.manners.failures = [429, 429]
    server.manners.retry_after = "7"
    web = Web(server.url, sleep=waits.append)
    assert web.get(f"{server.url}/api/models/org/llama/revision/main", limit_bytes=100).status == 200
    server.manners.failures = [429]
    server.manners.retry_after = "9999"
    web.get(f"{server.url}/api/models/org/llama/revision/main", limit_bytes=100)
    assert waits == [7.0, 7.0, 20.0]
    web.close()


def test_a_server_that_ignores_ranges_is_read_all_the_same(server: HubServer) -> None:
    server.manners.ignores_ranges = True
    assert resolve_model("org/llama").stored_bytes == 2 * resolve_model("org/llama").parameters


def test_a_connection_that_breaks_off_is_no_answer(server: HubServer) -> None:
    server.manners.breaks_off = True
    with pytest.raises(Offline, match="broke off"):
        resolve_model("org/llama")


def test_a_server_that_hangs_up_is_no_answer(server: HubServer) -> None:
    server.manners.says_nothing = True
    with pytest.raises(Offline, match="cannot reach"):
        resolve_model("org/llama")


def test_a_server_that_never_answers_runs_into_the_timeout(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "0.05")
        with pytest.raises(Offline, match="no answer in time"):
            resolve_model("org/llama")


def test_another_part_than_was_asked_for_is_not_taken(server: HubServer) -> None:
    server.manners.wrong_range = True
    with pytest.raises(SourceError, match="another part"):
        resolve_model("org/llama")


@pytest.mark.parametrize("garbage", [b"<html>log in</html>", b"{}", b'{"sha": "x", "siblings": []}', b"[" * 10_000])
def test_an_answer_that_is_no_hubs_is_not_understood(server: HubServer, garbage: bytes) -> None:
    server.manners.garbage = garbage
    with pytest.raises(SourceError, match="is not understood"):
        resolve_model("org/llama")


def test_damaged_weights_on_the_hub_are_named_with_their_file(server: HubServer) -> None:
    server.repositories["org/llama"].files["model.safetensors"] = b"\xff" * 100
    with pytest.raises(MemplanError, match=rf"org/llama@{COMMIT[:7]}/model\.safetensors"):
        resolve_model("org/llama")


def test_weights_that_are_cut_off_on_the_hub_are_refused(server: HubServer) -> None:
    server.repositories["org/llama"].files["model.safetensors"] = weights(llama_shapes())[:-10]
    with pytest.raises(MemplanError, match="cut off"):
        resolve_model("org/llama")


def test_an_index_whose_shards_are_not_on_the_hub_names_them(server: HubServer) -> None:
    files = sharded(3)
    del files["model-00002-of-00003.safetensors"]
    server.repositories["org/half"] = Repository(files=files)
    with pytest.raises(SourceNotFound, match=r"model-00002-of-00003\.safetensors"):
        resolve_model("org/half")


def test_a_header_longer_than_the_first_read_takes_a_second(server: HubServer) -> None:
    shapes = {f"model.layers.0.mlp.experts.{index}.down_proj.weight": (2, 2) for index in range(3000)}
    server.repositories["org/wide"] = Repository(files={"model.safetensors": weights(shapes)})
    with Hub() as hub:
        headers = find_headers(hub.repository("org/wide", None))
    assert headers is not None
    assert headers.total_bytes == 3000 * 8
    assert next(seen.range for seen in server.seen if seen.range) == "bytes=0-99999"
    assert len([seen for seen in server.seen if seen.range]) == 2


def gguf_repository(*names: str) -> Repository:
    file = GgufBytes().key("general.architecture", "llama").key("llama.block_count", 1)
    file.key("llama.embedding_length", 64).key("llama.attention.head_count", 2).key("general.file_type", 15)
    file.key("tokenizer.ggml.tokens", ["token"] * 20_000)
    file.tensor("token_embd.weight", (32, 64), 1, 4096).tensor("blk.0.attn_q.weight", (64, 64), 1, 8192)
    return Repository(files={name: file.build() for name in names})


def test_gguf_files_on_the_hub_are_read_by_ranges(server: HubServer) -> None:
    server.repositories["org/model-GGUF"] = gguf_repository("m-Q4_K_M.gguf", "m-Q8_0.gguf", "mmproj-m.gguf")
    spec = resolve_model("org/model-GGUF")
    assert spec.quantization == "gguf:q4_k_m"
    assert spec.stored_bytes == 4096 + 8192
    assert any("took m-Q4_K_M.gguf; the folder also has m-Q8_0.gguf" in note for note in spec.notes)
    server.seen.clear()
    assert resolve_model("org/model-GGUF") == spec
    assert len(server.seen) == 1


@pytest.mark.parametrize("name", ["org/model-GGUF:q8_0", "org/model-GGUF:Q8_0", "org/model-GGUF:m-Q8_0.gguf"])
def test_a_gguf_type_is_chosen_behind_a_colon(server: HubServer, name: str) -> None:
    server.repositories["org/model-GGUF"] = gguf_repository("m-Q4_K_M.gguf", "m-Q8_0.gguf")
    assert resolve_model(name).source.endswith("/m-Q8_0.gguf")


def test_a_gguf_type_that_is_not_there_names_those_that_are(server: HubServer) -> None:
    server.repositories["org/model-GGUF"] = gguf_repository("m-Q4_K_M.gguf", "m-Q8_0.gguf")
    with pytest.raises(SourceNotFound, match="of type `q4_k_s`") as caught:
        resolve_model("org/model-GGUF:q4_k_s")
    assert "q4_k_m" in str(caught.value.hint)


@pytest.mark.parametrize(
    "page", ["org/model-GGUF/blob/main/m-Q8_0.gguf", "org/model-GGUF/resolve/main/m-Q8_0.gguf?download=true"]
)
def test_the_address_of_a_page_is_taken_for_its_file(server: HubServer, page: str) -> None:
    server.repositories["org/model-GGUF"] = gguf_repository("m-Q4_K_M.gguf", "m-Q8_0.gguf")
    assert resolve_model(f"{server.url}/{page}").source.endswith("/m-Q8_0.gguf")
    assert resolve_model("https://huggingface.co/org/llama").name == "org/llama"


def test_an_address_of_something_else_is_refused(server: HubServer) -> None:
    with pytest.raises(UsageError, match="not a model of the hub"):
        resolve_model("https://example.com/org/llama")


def huggingface_cache(tmp_path: Path, files: dict[str, bytes]) -> Path:
    root = tmp_path / "cache" / "huggingface" / "hub" / "models--org--llama"
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "blobs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    for number, (name, data) in enumerate(files.items()):
        (root / "blobs" / str(number)).write_bytes(data)
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    return root


def test_a_whole_model_in_the_hugging_face_cache_needs_no_network(server: HubServer, tmp_path: Path) -> None:
    huggingface_cache(tmp_path, server.repositories["org/llama"].files)
    spec = resolve_model("org/llama")
    assert server.seen == []
    assert spec.source == f"org/llama@{COMMIT[:7]} (cached)"
    assert spec.weights_source == "headers"
    assert resolve_model("org/llama", revision=COMMIT) == spec


def test_a_cached_repository_may_be_named_as_a_directory(server: HubServer, tmp_path: Path) -> None:
    root = huggingface_cache(tmp_path, server.repositories["org/llama"].files)
    assert resolve_model(str(root)).weights_source == "headers"


def test_a_config_alone_in_the_cache_answers_when_there_is_no_network(server: HubServer, tmp_path: Path) -> None:
    huggingface_cache(tmp_path, {"config.json": json.dumps(CONFIG).encode()})
    spec = resolve_model("org/llama", offline=True)
    assert (spec.weights_source, spec.stored_bytes) == ("config", None)
    assert resolve_model("org/llama").weights_source == "headers"


def test_a_reference_in_the_cache_that_is_a_path_trick_is_ignored(server: HubServer, tmp_path: Path) -> None:
    root = huggingface_cache(tmp_path, server.repositories["org/llama"].files)
    (root / "refs" / "main").write_text("../../../../etc")
    assert resolve_model("org/llama").source == f"org/llama@{COMMIT[:7]}"
    assert server.seen


def test_the_cache_folder_may_be_anywhere(server: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = huggingface_cache(tmp_path, server.repositories["org/llama"].files)
    moved = tmp_path / "elsewhere"
    root.parent.rename(moved)
    monkeypatch.setenv("HF_HUB_CACHE", str(moved))
    assert "(cached)" in resolve_model("org/llama").source
    monkeypatch.delenv("HF_HUB_CACHE")
    (tmp_path / "home").mkdir()
    moved.rename(tmp_path / "home" / "hub")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert "(cached)" in resolve_model("org/llama").source


def test_the_token_is_looked_for_where_the_hubs_own_client_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: HubServer
) -> None:
    assert find_token() is None
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    (tmp_path / "token").write_text("hf_file\n")
    assert find_token() == "hf_file"
    (tmp_path / "other").write_text("hf_path")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "other"))
    assert find_token() == "hf_path"
    monkeypatch.setenv("HF_TOKEN", "hf_environment")
    assert find_token() == "hf_environment"
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert find_token() is None


def test_a_token_that_would_break_a_header_is_refused_unshown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_a\r\nX-Evil: 1")
    with pytest.raises(UsageError) as caught:
        find_token()
    assert "hf_a" not in f"{caught.value.message}{caught.value.hint}"


@pytest.mark.parametrize("proxied", [True, False])
def test_a_proxy_in_the_environment_is_used_unless_the_host_is_excepted(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, proxied: bool
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid" if proxied else server.url)
    monkeypatch.setenv("http_proxy", server.url if proxied else "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "" if proxied else "127.0.0.1")
    assert resolve_model("org/llama").weights_source == "headers"
    assert server.seen


@pytest.mark.parametrize("name", ["org/name", "gpt2", "a-b/c.d_e", "01-ai/Yi-34B"])
def test_hub_ids_are_known_by_their_form(name: str) -> None:
    assert is_repo_id(name)


@pytest.mark.parametrize("name", ["", "a/b/c", "../x", "a..b/c", "a b/c", "org/na--me", "/x", "x/", "a/b.git", "ö/x"])
def test_what_is_no_hub_id_is_not_taken_for_one(name: str) -> None:
    assert not is_repo_id(name)


def test_a_remote_file_reads_like_any_other(server: HubServer) -> None:
    data = bytes(range(256)) * 2000
    server.repositories["org/llama"].files["blob"] = data
    with Hub() as hub, hub.repository("org/llama", None).open("blob") as source:
        checked: ByteSource = source
        for offset, length in (
            (0, 10),
            (5, 100),
            (99_990, 50),
            (500_000, 50_000),
            (511_990, 100),
            (600_000, 5),
            (0, 0),
        ):
            assert checked.read(offset, length) == data[offset : offset + length]
        assert checked.size_bytes == len(data)


def test_the_default_hub_is_huggingface(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    assert Hub(web=hub_module.NO_WEB).endpoint == "https://huggingface.co"


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A certificate for this machine that nobody trusts, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
    made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([openssl, "req", "-x509", *made, *names], check=True, capture_output=True)
    return certificate, key


def test_an_untrusted_certificate_is_named_and_a_bundle_of_ones_own_is_taken(
    monkeypatch: pytest.MonkeyPatch, server: HubServer, certificate: tuple[Path, Path]
) -> None:
    server.encrypt(*certificate)
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    with pytest.raises(Offline, match=r"the certificate of 127\.0\.0\.1 is not trusted") as caught:
        resolve_model("org/llama")
    assert "SSL_CERT_FILE" in str(caught.value.hint)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    assert resolve_model("org/llama").weights_source == "headers"


def test_https_goes_through_the_proxys_tunnel_with_its_login(
    monkeypatch: pytest.MonkeyPatch, server: HubServer, certificate: tuple[Path, Path]
) -> None:
    server.encrypt(*certificate)
    proxy = TunnelProxy()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    monkeypatch.setenv("https_proxy", f"http://user:p%40ss@127.0.0.1:{proxy.port}")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert resolve_model("org/llama").weights_source == "headers"
    proxy.close()
    login = "Basic " + base64.b64encode(b"user:p@ss").decode()
    assert set(proxy.tunnels) == {(server.url.removeprefix("https://"), login)}
    assert all(seen.authorization == "Bearer hf_secret" for seen in server.seen)
