"""From a name to a folder: a path as it is, a family inside the package, or a Hub repository.

Of a repository only what will be read is downloaded: the model index, configs, tokenizer files and
one set of weights per component. `huggingface_hub` is imported when a repository is asked for.
"""

import os
import re
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import Any

from underdraw.errors import InputError, NotFoundError
from underdraw.formats.opening import is_regular, read_text
from underdraw.formats.writing import write_file
from underdraw.weights import folders
from underdraw.weights.replacing import settle

SCENES = "underdraw/scenes"
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Besides weights, what a component needs is small text (configs, vocabularies).
_TEXTS = (".json", ".txt", ".model")


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    subfolder: str = "",
    revision: str | None = None,
    variant: str | None = None,
    use_safetensors: bool | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    skip: Collection[str] = (),
    weights: bool = True,
    flax_first: bool = False,
) -> Path:
    """The local folder of a pipeline or model; `subfolder` is appended by who reads it.

    A folder is used as it is, "underdraw/scenes" comes with the package, anything else is a Hub
    repository ("owner/name"), taken from the cache when offline (`local_files_only`, or
    HF_HUB_OFFLINE in the environment).

    Args:
        subfolder: fetch only this component.
        skip: components that are not needed, since the caller brings them.
        weights: False fetches configs and tokenizers only.
        flax_first: whether Flax's files come before others.

    Raises NotFoundError where there is nothing under that name, saying what to do; InputError for
    what cannot be a name.
    """
    name = os.fspath(name_or_path)
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"name_or_path={name_or_path!r}; wanted a folder or a Hub repository")
    if name == SCENES:
        return scenes_folder()
    if os.path.isdir(name):
        settle(Path(name, subfolder))
        settle(Path(name))
        return Path(name)
    if os.path.isfile(name):
        raise folders.not_a_folder(name)
    if not is_repository(name):
        raise NotFoundError(f"{name}: no such folder (and not the name of a Hub repository)")
    hub = _Hub(name, revision, token, cache_dir, force_download)
    if local_files_only or is_offline():
        return hub.cached("offline (local_files_only or HF_HUB_OFFLINE is set)", not subfolder)

    def wanted(names: Sequence[str], components: Collection[str] | None) -> list[str]:
        return files_needed(
            names, components, subfolder, variant, use_safetensors, skip, weights, flax_first
        )

    return hub.download(wanted, whole=not subfolder)


def scenes_folder() -> Path:
    """The model family inside the package. NotFoundError where it was left out of it."""
    folder = Path(str(resources.files("underdraw") / "assets" / "scenes"))
    if not folder.is_dir():
        raise NotFoundError(
            f"{SCENES} is not inside this installation ({folder} is missing); reinstall underdraw "
            "from a wheel or a full checkout"
        )
    return folder


def files_needed(
    names: Sequence[str],
    components: Collection[str] | None,
    subfolder: str = "",
    variant: str | None = None,
    use_safetensors: bool | None = None,
    skip: Collection[str] = (),
    weights: bool = True,
    flax_first: bool = False,
) -> list[str]:
    """Which of a repository's files (paths with /) to fetch.

    `components` are those of its model index; None stands for a repository of a single model. A
    component without `variant` is fetched plain where others have it; where none has it, nothing is
    fetched and NotFoundError names the variants there are.
    """
    by_folder: dict[str, list[str]] = {}
    for name in names:
        place, _, file = name.rpartition("/")
        by_folder.setdefault(place, []).append(file)
    if subfolder:
        places = [subfolder.strip("/")]
    elif components is None:
        places = [""]
    else:
        places = [place for place in components if place not in skip]
    chosen: list[str] = []
    of_variant, lacking = 0, []
    for place in places:
        files = by_folder.get(place, [])
        chosen += [_join(place, f) for f in files if _is_text(f)]
        if not weights:
            continue
        found = folders.choose_weights(files, variant, use_safetensors, flax_first)
        if found is not None:
            of_variant += 1
        elif folders.variants(files):
            lacking.append(place)
            found = folders.choose_weights(files, None, use_safetensors, flax_first)
        if found is not None:
            used = (*found.files, found.index) if found.index else found.files
            chosen += [_join(place, f) for f in used]
    if lacking and variant is not None and (not of_variant or subfolder):
        there = {v for place in places for v in folders.variants(by_folder.get(place, [])) if v}
        listed = ", ".join(map(repr, sorted(there))) or "none"
        raise NotFoundError(f"no weights of variant {variant!r}; variants there are: {listed}")
    if components is not None and folders.MODEL_INDEX in names:
        chosen.append(folders.MODEL_INDEX)
    return chosen


def _is_text(file: str) -> bool:
    return file.endswith(_TEXTS) and not folders.is_weight_file(file)


def _join(place: str, file: str) -> str:
    return f"{place}/{file}" if place else file


def is_repository(name: str) -> bool:
    """Whether a text can be the name of a repository."""
    return bool(_REPOSITORY.fullmatch(name)) and not name.startswith(".") and ".." not in name


def is_offline() -> bool:
    """Read at each call: `huggingface_hub` reads the environment once, when it is imported."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(n, "").upper() in ("1", "ON", "YES", "TRUE") for n in names)


class _Hub:
    """One repository at one revision, through `huggingface_hub`."""

    def __init__(
        self,
        name: str,
        revision: str | None,
        token: str | bool | None,
        cache_dir: str | os.PathLike[str] | None,
        force_download: bool,
    ):
        self.name, self.revision, self.token = name, revision, token
        self.endpoint = os.environ.get("HF_ENDPOINT") or None
        self.cache_dir = None if cache_dir is None else os.fspath(cache_dir)
        self.force = force_download

    def download(self, wanted: Any, whole: bool) -> Path:
        """Fetch what `wanted(file names, components)` chooses."""
        import huggingface_hub
        from huggingface_hub import errors

        api = huggingface_hub.HfApi(endpoint=self.endpoint, token=self.token)
        info, unreached = None, ""
        try:
            info = api.model_info(self.name, revision=self.revision)
        except errors.GatedRepoError:
            raise NotFoundError(
                f"{self.name}: access must be asked for at its page on the Hub; then log in "
                "(`hf auth login`) or pass token="
            ) from None
        except errors.RevisionNotFoundError:
            raise NotFoundError(f"{self.name}: no revision {self.revision!r}") from None
        except errors.RepositoryNotFoundError:
            raise NotFoundError(
                f"{self.name}: no such folder here and no such repository on the Hub; a private "
                "one needs token= or `hf auth login`"
            ) from None
        except errors.HFValidationError as error:
            raise NotFoundError(f"{self.name}: no such folder here; {first_line(error)}") from None
        except Exception as error:
            if not of_the_hub(error):
                raise
            unreached = first_line(error)
        if info is None:  # outside of what the library raised, which fills a screen
            return self.cached(f"the Hub could not be reached ({unreached})", whole)
        names = [sibling.rfilename for sibling in info.siblings or ()]
        components = None
        # Everything by the commit, not the branch: all files are then of one state.
        if whole and folders.MODEL_INDEX in names:
            index = self._fetch([folders.MODEL_INDEX], info.sha) / folders.MODEL_INDEX
            components = folders.components_of(folders.read_json(index))
        try:
            files = wanted(names, components)
        except NotFoundError as error:
            raise NotFoundError(f"{self.name}: {error}") from None
        if not files:
            raise NotFoundError(f"{self.name}: nothing to load in it; it has {names[:8]}")
        folder = self._fetch(files, info.sha)
        self._remember(info.sha)
        return folder

    def _fetch(self, files: Iterable[str], commit: str | None) -> Path:
        """Download files of one commit (those in the cache cost no request); their folder."""
        import huggingface_hub

        def one(file: str) -> str:
            return huggingface_hub.hf_hub_download(
                self.name,
                file,
                revision=commit or self.revision,
                cache_dir=self.cache_dir,
                force_download=self.force,
                token=self.token,
                endpoint=self.endpoint,
            )

        files = list(dict.fromkeys(files))
        try:
            with ThreadPoolExecutor(max_workers=4) as pool:
                paths = list(pool.map(one, files))
        except Exception as error:
            if not of_the_hub(error):
                raise
            raise NotFoundError(
                f"{self.name}: a download failed ({first_line(error)}); run it again to go on "
                "where it stopped"
            ) from None
        return Path(paths[0]).parents[files[0].count("/")]

    def _storage(self) -> Path:
        from huggingface_hub import constants

        cache = Path(self.cache_dir or constants.HF_HUB_CACHE).expanduser()
        return cache / f"models--{self.name.replace('/', '--')}"

    def _remember(self, commit: str | None) -> None:
        """Note which commit a branch stands at, as the library does, for later calls offline."""
        branch = self.revision or "main"
        if commit and branch != commit:
            note = self._storage() / "refs" / branch
            note.parent.mkdir(parents=True, exist_ok=True)
            write_file(note, commit.encode())

    def cached(self, why: str, whole: bool) -> Path:
        """The snapshot an earlier call downloaded, or NotFoundError.

        Not asked of the library, whose newer versions refuse a snapshot in which files are missing
        that nobody needs.
        """
        storage, branch = self._storage(), self.revision or "main"
        note = storage / "refs" / branch
        commit = read_text(note, 1000).strip() if is_regular(note) else branch
        if ".." in commit.split("/"):  # the note would lead out of the cache
            raise NotFoundError(f"{note} names no commit but {commit[:80]!r}")
        found = storage / "snapshots" / commit
        starts = (folders.MODEL_INDEX, *folders.CONFIGS, "tokenizer.json", "vocab.json")
        if found.is_dir() and (not whole or any((found / name).exists() for name in starts)):
            return found
        at = f" at revision {self.revision!r}" if self.revision else ""
        raise NotFoundError(
            f"{self.name}: {why}, and it is not in the cache{at}. Run it once online, copy the "
            "repository here and give its folder, point cache_dir= (or HF_HOME) at a cache that "
            f'has it, or use "{SCENES}", which is inside the package'
        )


def of_the_hub(error: Exception) -> bool:
    """Whether it tells of the Hub, the way there or a full disk, and not of a mistake here: the
    HTTP libraries changed between versions, and have no base class in common with anything."""
    where = type(error).__module__.split(".")[0]
    return isinstance(error, OSError) or where in (
        "huggingface_hub",
        "hf_xet",
        "httpx",
        "httpx2",
        "requests",
    )


def first_line(error: BaseException) -> str:
    """What an error of the Hub's library says, in one short line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:120]
