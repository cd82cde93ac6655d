"""What a user has made, as a repository on the Hub."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from underdraw.errors import InputError
from underdraw.shown import shown
from underdraw.weights.hub import is_offline, is_repository


class Pushable:
    """`push_to_hub` of whatever has `save_pretrained`."""

    if TYPE_CHECKING:

        def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
            """Write a folder."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | bool | None = None,
        create_pr: bool = False,
        subfolder: str = "",
        **options: Any,
    ) -> str:
        """Write a folder and upload it to a repository, which is made where there is none.

        Args:
            repo_id: "owner/name".
            private: whether a new repository is; by default what the account says.
            token: of the account; by default the one that is stored on this machine.
            create_pr: open a pull request instead of changing the main branch.
            subfolder: where in the repository.
            options: of `save_pretrained`, such as `variant`.

        Returns:
            The address of the commit.

        Raises:
            InputError: no such name can be, or the Hub is not to be asked (HF_HUB_OFFLINE).
        """
        if not isinstance(repo_id, str) or not is_repository(repo_id):
            raise InputError(f"repo_id={shown(repo_id)}; wanted 'owner/name'")
        if is_offline():
            raise InputError(f"repo_id={repo_id!r}: HF_HUB_OFFLINE is set, so nothing is uploaded")
        import huggingface_hub

        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "made"
            self.save_pretrained(folder, **options)
            api = huggingface_hub.HfApi(token=token)
            made = api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=made.repo_id,
                folder_path=folder,
                path_in_repo=subfolder or None,
                commit_message=commit_message or f"Upload {type(self).__name__}",
                create_pr=create_pr,
            )
        return str(commit)
