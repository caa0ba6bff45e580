"""Anything a person names becomes a ModelSpec: this is where a name is told to be a path, an alias or a hub id.

In this order: `demo`; a file or directory that exists; a name that the catalogue knows; a hub id, from the caches on
this disk or from the network. A name that looks like a path and is none says so. Nothing falls back to another model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from memplan.domain.model import ModelSpec
from memplan.errors import Offline, SourceNotFound, UsageError
from memplan.introspect.bytesource import open_source, show
from memplan.introspect.folder import PIPELINE_FILE, Folder, LocalFolder
from memplan.introspect.model_folder import (
    CONFIG_FILE,
    Wish,
    find_headers,
    read_object,
    spec_from_config,
    spec_from_folder,
)
from memplan.records import dataclass, replace

if TYPE_CHECKING:
    from memplan.catalog.models import CatalogModel

_PATH_SUFFIXES = (".json", ".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx")
_PICKLED = (".bin", ".pt", ".pth", ".ckpt")
_INDEX_SUFFIX = ".safetensors.index.json"
_MAX_NAME = 4096
_DEMO_FOLDER = Path(__file__).resolve().parents[1] / "catalog" / "demo"
_HUB_PAGES = ("huggingface.co", "www.huggingface.co", "hf.co")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubName:
    """A repository on the hub, a revision of it, and the GGUF file or type that is meant."""

    repo: str
    revision: str | None = None
    gguf: str | None = None


def resolve_model(
    name: str,
    *,
    revision: str | None = None,
    offline: bool = False,
    introspect: str = "auto",
    trust_remote_code: bool = False,
) -> ModelSpec:
    """Return the ModelSpec of anything a person names.

    `introspect` is `auto`, or `torch` to have transformers build the model on the meta device.

    Raises: SourceNotFound, GatedModel, Offline when the model cannot be had; CorruptFile when its files are damaged;
    UnsupportedModel when it is not understood; UsageError for a name or setting that makes no sense.
    """
    name = name.strip()
    if not name or len(name) > _MAX_NAME or "\x00" in name:
        problem = f"not a model's name: `{show(name)}`" if name else "no model named"
        raise UsageError(problem, hint="give a catalogue alias, a hub id or a path; see `memplan models`")
    if introspect not in ("auto", "torch"):
        raise UsageError(f"unknown way to introspect: `{introspect}`", hint="use auto or torch")
    if introspect == "torch":
        from memplan.introspect.torch_meta import spec_from_transformers

        raw, source = find_config(name, revision=revision, offline=offline)
        return spec_from_transformers(raw, name, source=source, trust_remote_code=trust_remote_code)
    if name == "demo":
        return _demo()
    path = _existing_path(name)
    if path is not None:
        return spec_from_path(path)
    if (hub_name := _from_url(name)) is not None:
        return _from_hub(replace(hub_name, revision=revision or hub_name.revision), offline=offline)
    known = _in_catalogue(name)
    if known is not None and revision is None:
        return _from_catalogue(known)
    if _is_path_like(name):
        raise _no_such_path(name)
    repo = (known.published_id or known.name) if known else name
    return _from_hub(_hub_name(repo, revision), offline=offline)


def spec_from_path(path: Path) -> ModelSpec:
    """Return the ModelSpec of a directory or file.

    Raises: SourceNotFound, CorruptFile, UnsupportedModel, UsageError.
    """
    if path.is_dir():
        return spec_from_folder(LocalFolder(_snapshot_of(path), str(path)), Wish(name=path.resolve().name or str(path)))
    folder = LocalFolder(path.parent)
    if path.name == PIPELINE_FILE:
        return spec_from_folder(folder, Wish(name=path.resolve().parent.name))
    kind = path.suffix.lower() if path.suffix.lower() in _PATH_SUFFIXES else _kind_by_content(path)
    if kind == ".gguf":
        folder.names |= {path.name}
        return spec_from_folder(folder, Wish(name=path.stem, gguf=path.name))
    if kind == ".json":
        return _from_json(path, folder)
    if kind == ".safetensors":
        return _from_safetensors(path, folder)
    if kind in _PICKLED:
        raise UsageError(
            f"pickled weights are not read: `{path}`", hint="name its config.json, or convert to safetensors"
        )
    raise UsageError(
        f"not a model file: `{path}`", hint="give a config.json, .safetensors, .gguf or a directory of them"
    )


def find_config(name: str, *, revision: str | None, offline: bool) -> tuple[Mapping[str, object], str]:
    """Return the raw config of anything that has one, and where it is from: for transformers, which wants no more.

    Raises: as `resolve_model`.
    """
    path = _DEMO_FOLDER if name == "demo" else _existing_path(name)
    if path is not None:
        folder = LocalFolder(_snapshot_of(path) if path.is_dir() else path.parent)
        return read_object(folder, CONFIG_FILE if path.is_dir() else path.name), str(folder.path)
    if revision is None and (known := _in_catalogue(name)) is not None:
        return known.config, known.name
    if _is_path_like(name):
        raise _no_such_path(name)
    with _hub_folder(_from_url(name) or _hub_name(name, revision), offline=offline) as found:
        return read_object(found, CONFIG_FILE), found.label


def find_running_config(name: str, *, revision: str | None, offline: bool) -> tuple[Mapping[str, object], str]:
    """The raw config of what runs in every step: of a folder with a diffusion pipeline its denoiser's.

    Raises: as `resolve_model`.
    """
    folder = Path(name)
    if (folder / PIPELINE_FILE).is_file():
        for part in ("transformer", "unet"):
            if (folder / part / CONFIG_FILE).is_file():
                return find_config(str(folder / part), revision=None, offline=offline)
    return find_config(name, revision=revision, offline=offline)


def weights_folder(name: str, *, revision: str | None = None) -> Path | None:
    """Return the folder on this disk that holds the safetensors of a model, None when they are not at hand.

    Raises: SourceNotFound for a path that is not there; UsageError for a name that is none.
    """
    from memplan.introspect.hub_cache import find_snapshot

    path = _DEMO_FOLDER if name == "demo" else _existing_path(name)
    if path is None and _is_path_like(name):
        raise _no_such_path(name)
    if path is not None:
        found = _snapshot_of(path) if path.is_dir() else path.parent
        return found if _has_safetensors(LocalFolder(found)) else None
    known = _in_catalogue(name) if revision is None else None
    hub_name = HubName(repo=known.name) if known is not None else _from_url(name) or _hub_name(name, revision)
    snapshot = find_snapshot(hub_name.repo, hub_name.revision)
    if snapshot is None or not _has_safetensors(LocalFolder(snapshot[0])):
        return None
    return snapshot[0] if _is_whole(LocalFolder(snapshot[0]), hub_name) else None


def _has_safetensors(folder: LocalFolder) -> bool:
    from memplan.introspect.checkpoint import INDEX_NAMES, SINGLE_NAMES

    return any(name in folder.names for name in (*INDEX_NAMES, *SINGLE_NAMES))


def _demo() -> ModelSpec:
    """The small model that comes with memplan: a Llama of six layers, to try commands on without a download."""
    spec = spec_from_folder(LocalFolder(_DEMO_FOLDER, "demo"), Wish(name="demo"))
    return replace(spec, source="built in: demo")


def _existing_path(name: str) -> Path | None:
    """The file or directory of that name. A directory without a model in it does not hide a catalogue alias."""
    try:
        path = Path(name).expanduser()
        if not path.exists():
            return None
        if path.is_dir() and not _is_path_like(name) and not _holds_model(path) and _in_catalogue(name) is not None:
            return None
    except (OSError, RuntimeError, ValueError):
        return None
    return path


def _holds_model(path: Path) -> bool:
    return any(
        entry in (CONFIG_FILE, PIPELINE_FILE) or entry.endswith(_PATH_SUFFIXES) for entry in LocalFolder(path).names
    )


def _is_path_like(name: str) -> bool:
    """Whether a name can only be meant as a path; `org/name:file.gguf` is a file on the hub."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+:[\w.-]+", name):
        return False
    is_written_as_path = name.startswith((".", "/", "~")) or "\\" in name or name.endswith("/") or name.count("/") > 1
    return is_written_as_path or name.lower().endswith(_PATH_SUFFIXES)


def _no_such_path(name: str) -> SourceNotFound:
    try:
        parent = Path(name).expanduser().parent
        beside = sorted(entry.name for entry in parent.iterdir())[:1000] if parent.is_dir() else []
    except (OSError, RuntimeError, ValueError):
        beside = []
    from memplan.errors import did_you_mean

    hint = did_you_mean(Path(name).name, beside) or "give a path that exists, a catalogue alias or a hub id"
    return SourceNotFound(f"no such file or directory: `{show(name)}`", hint=hint)


def _snapshot_of(path: Path) -> Path:
    """A directory, or the snapshot inside it when it is a repository of the Hugging Face cache."""
    if not path.name.startswith("models--") or not (path / "snapshots").is_dir():
        return path
    try:
        commit = (path / "refs" / "main").read_text("ascii").strip()
    except (OSError, ValueError):
        commit = ""
    if re.fullmatch(r"[0-9a-f]{40}", commit) and (path / "snapshots" / commit).is_dir():
        return path / "snapshots" / commit
    snapshots = sorted(entry for entry in (path / "snapshots").iterdir() if entry.is_dir())
    return snapshots[-1] if snapshots else path


def _kind_by_content(path: Path) -> str:
    """The suffix that a file without one should have, by its first bytes (a blob of a cache, a download)."""
    with open_source(path) as source:
        start = source.read(0, 16)
    if start[:4] == b"GGUF":
        return ".gguf"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 27:
        return ".safetensors"
    return ".json" if start.lstrip()[:1] == b"{" else ""


def _from_json(path: Path, folder: LocalFolder) -> ModelSpec:
    name = path.resolve().parent.name if path.name == CONFIG_FILE else path.stem
    if path.name.endswith(_INDEX_SUFFIX):
        return _from_weights(path.name, folder, name=path.resolve().parent.name)
    raw = read_object(folder, path.name)
    if "weight_map" in raw:
        return _from_weights(path.name, folder, name=path.resolve().parent.name)
    quantized = "hf_quant_config.json"
    hf_quant_config = read_object(folder, quantized) if quantized in folder.names else None
    return replace(spec_from_config(raw, name, hf_quant_config=hf_quant_config), source=str(path))


def _from_safetensors(path: Path, folder: LocalFolder) -> ModelSpec:
    """A weights file: with the config beside it, when it is that config's; else from its header alone."""
    is_whole = path.name == "model.safetensors" or re.search(r"-\d{5}-of-\d{5}\.safetensors$", path.name)
    if is_whole and CONFIG_FILE in folder.names:
        return spec_from_folder(folder, Wish(name=path.resolve().parent.name))
    alone = _Only(folder, path.name) if not is_whole else folder
    return _bare(alone, path.stem)


def _from_weights(index: str, folder: LocalFolder, *, name: str) -> ModelSpec:
    """A sharded index: all of its shards must be there, because it was named and not its config."""
    from memplan.introspect.checkpoint import read_index

    headers = read_index(folder, index)
    if CONFIG_FILE in folder.names:
        return spec_from_folder(folder, Wish(name=name))
    from memplan.introspect.bare_spec import bare_spec

    return replace(bare_spec(headers, name), source=f"{folder.label}/{index}")


def _bare(folder: LocalFolder, name: str) -> ModelSpec:
    from memplan.introspect.bare_spec import bare_spec

    headers = find_headers(folder)
    if headers is None:
        raise SourceNotFound(f"no weights in `{folder.label}`")
    return replace(bare_spec(headers, name), source=headers.files[0])


class _Only(LocalFolder):
    """A directory of which one file counts."""

    def __init__(self, folder: LocalFolder, name: str) -> None:
        super().__init__(folder.path, folder.label)
        self.names = frozenset({name})


def _in_catalogue(name: str) -> CatalogModel | None:
    try:
        from memplan.catalog.models import find_model
    except ImportError:
        return None
    return find_model(name)


def _from_catalogue(known: CatalogModel) -> ModelSpec:
    spec = spec_from_config(known.config, known.published_id or known.name)
    if known.scheme is not None:
        from memplan.catalog.quant_schemes import parse_scheme
        from memplan.introspect.quantized import quantize_spec

        spec = replace(quantize_spec(spec, parse_scheme(known.scheme)), quantization_traits=("prequantized",))
    note = (known.resolved_note,) if known.resolved_note else ()
    return replace(spec, source=f"catalogue: {known.name}", notes=(*note, *spec.notes))


def _from_url(name: str) -> HubName | None:
    """The repository that a web address of the hub names; None for what is no web address.

    Raises: UsageError for an address of anything else.
    """
    if not name.lower().startswith(("http://", "https://")):
        return None
    from memplan.introspect import hub

    parts = urlsplit(name)
    endpoint = urlsplit(hub.Hub(web=hub.NO_WEB).endpoint)
    pieces = [unquote(piece) for piece in parts.path.split("/") if piece]
    repo, rest = "/".join(pieces[:2]), pieces[2:]
    if parts.hostname not in (*_HUB_PAGES, endpoint.hostname) or not hub.is_repo_id(repo) or len(pieces) < 2:
        raise UsageError(f"not a model of the hub: `{show(name)}`", hint="give organisation/name, or a downloaded file")
    revision = rest[1] if len(rest) > 1 and rest[0] in ("tree", "blob", "resolve", "raw") else None
    file = "/".join(rest[2:]) if revision else ""
    return HubName(repo=repo, revision=revision, gguf=file if file.endswith(".gguf") else None)


def _hub_name(name: str, revision: str | None) -> HubName:
    """Split `org/name` or `org/name:Q4_K_M`. Raises: SourceNotFound for what can be no hub id, with names near it."""
    from memplan.introspect import hub

    repo, _, gguf = name.removeprefix("hf://").partition(":")
    is_bare = "/" not in repo
    if not hub.is_repo_id(repo) or (is_bare and not _is_cached(repo, revision)):
        try:
            from memplan.catalog.models import suggest_models

            hint = suggest_models(name)
        except ImportError:
            hint = None
        hint = hint or "give a catalogue alias (see `memplan models`), a hub id as organisation/name, or a path"
        raise SourceNotFound(f"unknown model: `{show(name)}`", hint=hint)
    return HubName(repo=repo, revision=revision, gguf=gguf or None)


def _is_cached(repo: str, revision: str | None) -> bool:
    from memplan.introspect.hub_cache import find_snapshot

    return find_snapshot(repo, revision) is not None


def _from_hub(name: HubName, *, offline: bool) -> ModelSpec:
    with _hub_folder(name, offline=offline) as folder:
        return spec_from_folder(folder, Wish(name=name.repo, gguf=name.gguf))


@contextmanager
def _hub_folder(name: HubName, *, offline: bool) -> Iterator[Folder]:
    """The files of a repository: in the Hugging Face cache when they are whole there, else from the hub.

    A hub that cannot be reached is replaced by what this disk has of it.

    Raises: Offline when there is nothing; SourceNotFound, GatedModel, SourceError.
    """
    from memplan.introspect import hub
    from memplan.introspect.hub_cache import find_snapshot

    if name.revision is not None:
        hub.check_revision(name.revision)
    found = find_snapshot(name.repo, name.revision)
    cached = LocalFolder(found[0], f"{name.repo}@{found[1][:7]} (cached)") if found else None
    if cached is not None and _is_whole(cached, name):
        yield cached
        return
    missing = Offline(
        f"`{name.repo}` is not on this disk", hint="leave --offline out, or use a catalogue alias or a config.json"
    )
    if not (offline or hub.is_offline()):
        with hub.Hub(token=hub.find_token()) as online:
            try:
                found_online: Folder | None = online.repository(name.repo, name.revision)
            except Offline as error:
                found_online, missing = None, error
            if found_online is not None:
                yield found_online
                return
    kept: Folder | None = hub.Hub(web=hub.NO_WEB).cached_repository(name.repo, name.revision)
    fallback = kept or (cached if cached is not None and cached.names else None)
    if fallback is None:
        raise missing
    yield fallback


def _is_whole(folder: LocalFolder, name: HubName) -> bool:
    """Whether a cached snapshot has the weights, so that nothing is left to ask the hub for."""
    from memplan.introspect.checkpoint import INDEX_NAMES, SINGLE_NAMES, missing_shards, parse_index
    from memplan.introspect.jsonfile import MAX_JSON_BYTES

    if name.gguf is not None or (CONFIG_FILE not in folder.names and PIPELINE_FILE not in folder.names):
        return any(entry.endswith(".gguf") for entry in folder.names)
    index = next((entry for entry in INDEX_NAMES if entry in folder.names), None)
    if index is not None:
        return not missing_shards(folder, parse_index(folder.read(index, limit_bytes=MAX_JSON_BYTES), index))
    has_part = PIPELINE_FILE in folder.names and any(entry.endswith(".safetensors") for entry in folder.names)
    return has_part or any(entry in folder.names for entry in SINGLE_NAMES)
