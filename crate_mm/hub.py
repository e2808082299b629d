"""Models on the Hugging Face Hub, by its library's mixin: ``save_pretrained``, ``push_to_hub``, ``from_pretrained``.

    HubModel("work_dirs/crate_tiny_digits/epoch_40.pth", licence="mit").push_to_hub("me/crate-tiny-digits")
    model = HubModel.from_pretrained("me/crate-tiny-digits").model

What lies there is data: ``model.safetensors``, as ``tools/publish.py`` writes it, ``config.json``, which says the same
of the model, and ``README.md``, a card made from ``result.json``.
"""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .io.log import print_log

try:
    from huggingface_hub import ModelCard, ModelHubMixin
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
except ModuleNotFoundError:
    raise ImportError("crate_mm.hub needs huggingface_hub, which is not here: pip install 'crate_mm[hub]'") from None

from .checkpoints import Checkpoint, CheckpointError, as_checkpoint, build_from_checkpoint, open_checkpoint
from .checkpoints.fit import load_strict
from .checkpoints.publish import publish
from .checkpoints.readers.safetensors import MAX_MANIFEST_CHARS, WEIGHTS, as_contents
from .checkpoints.remote import HubFile, ensure_local, hub_file, hub_token
from .checkpoints.validate import check_form
from .engine.checkpointing.results import RESULT_FILE
from .extras.interop.model_card import as_figures, card_licence, figures_of, read_result, write_card
from .inference.model_factory import note_metadata
from .io.files import atomic_file, home
from .io.untrusted import check_plain, read_json, read_regular, sanitized

CONFIG = "config.json"


class HubModel(nn.Module, ModelHubMixin):
    """A model that the Hub's library saves, pushes and loads.

    ``model`` is the task, as ``init_model`` returns it; called, this module is that one.

    Args:
        checkpoint: a checkpoint that says what model it is of, as ``init_model`` takes it, or one that is open.
        result: the ``result.json`` of its run, for the card; the one beside the checkpoint if not given, where that is
            of the checkpoint's run.
        licence: of the weights, for the card: one of ``model_card.LICENCES``, or 'other: ' and its name.

    Raises:
        CheckpointError: the checkpoint cannot be read or does not say its model, or ``result`` is of another run.
        ValueError: the Hub does not know the licence.
    """

    def __init__(
        self, checkpoint: str | Path | Checkpoint, result: str | Path | None = None, licence: str | None = None
    ) -> None:
        super().__init__()
        card_licence(licence)  # before the work
        opened = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
        self.model = build_from_checkpoint(opened)
        load_strict(self.model, opened)
        note_metadata(self.model, opened)
        self.result: dict[str, Any] = {}
        if result is not None:
            self.result = read_result(home(result), opened)
        elif opened.run and not isinstance(checkpoint, Checkpoint):
            beside = ensure_local(checkpoint).parent / RESULT_FILE
            try:
                self.result = read_result(beside, opened) if beside.exists() else {}
            except CheckpointError as error:
                print_log(f"the card is without figures: {error}", "current", logging.WARNING)
        self.figures, self.licence = figures_of(self.result, opened), licence
        # A resume's states stay behind, but for what the run told of itself.
        told = {key: value for key, value in opened.states.items() if key == "message_hub"}
        self.checkpoint = dataclasses.replace(opened, states=told, meta={**opened.meta, "run": opened.run})
        self.eval()

    def forward(self, *args: Tensor, **batch: Any) -> Any:
        """As the model's."""
        return self.model(*args, **batch)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write ``model.safetensors``, ``config.json`` and, where there is none yet, ``README.md`` into a folder.

        Args:
            save_directory: the folder, which need not exist.
            kwargs: of the library's ``ModelHubMixin.save_pretrained``.
        """
        return super().save_pretrained(home(save_directory), **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Write the files to a repository of the Hub, which is made if it does not exist; return the commit's address.

        Args:
            repo_id: 'owner/name'.
            kwargs: of the library's ``ModelHubMixin.push_to_hub``, such as ``private``, ``token``, ``branch``. No token
                is sent unless the Hub's address is https.

        Raises:
            CheckpointError: the Hub does not take it.
        """
        token = hub_token(kwargs.pop("token", None))
        try:
            pushed = super().push_to_hub(repo_id, token=token, model_card_kwargs={"repo": repo_id}, **kwargs)
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            line = next((line for line in str(error).splitlines() if line.strip()), "")
            raise CheckpointError(
                f"{sanitized(repo_id)} cannot be pushed to (hf auth login, or HF_TOKEN in the environment, says who you "
                f"are, to an https address): {type(error).__name__}: {sanitized(line)}"
            ) from None
        return pushed.commit_url

    @classmethod
    def from_pretrained(  # the library's, with what is not the Hub's own left out
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        force_download: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        map_location: str | torch.device = "cpu",
        strict: bool = True,
    ) -> "HubModel":
        """Load a model from a repository of the Hub, or from a folder of ``save_pretrained``.

        Args:
            pretrained_model_name_or_path: 'owner/name', or the folder.
            force_download: also what is in the cache.
            token: of the Hub; the one of ``hf auth login`` if not given.
            cache_dir: the Hub's own if not given.
            local_files_only: take the cache, and ask for nothing.
            revision: branch, tag or commit.
            map_location: the device that the model goes to.
            strict: as the library's mixin takes it. The weights must be the model's in any case.

        Raises:
            CheckpointError: the files cannot be had, or they are no model of crate_mm, or they do not agree.
        """
        name = str(pretrained_model_name_or_path)
        folder = Path(home(name))
        if not folder.is_dir():
            options = {"force_download": force_download, "token": token, "cache_dir": cache_dir}
            options["local_files_only"] = local_files_only
            config = hub_file(_in_repo(name, CONFIG, revision), **options)
            # Of the very commit that the other is of: the cache has a folder for each.
            hub_file(_in_repo(name, WEIGHTS, config.parent.name), **options)
            folder = config.parent
        _read_config(folder / CONFIG)
        return super().from_pretrained(str(folder)).to(map_location)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **_: Any) -> "HubModel":
        folder = Path(model_id)
        opened, config = open_checkpoint(folder / WEIGHTS), _read_config(folder / CONFIG)
        contents = as_contents(config, opened.weights)
        check_form(contents, folder / CONFIG)
        told = as_checkpoint(contents, folder / WEIGHTS)
        if opened.model is None or opened.meta.get("model") is None:
            opened = told  # the weights went through a library that keeps no more than them
        for what in ("model", "class_names", "test_transforms"):
            if getattr(told, what) != getattr(opened, what):
                raise CheckpointError(
                    f"{folder}: {CONFIG} and {WEIGHTS} do not say the same {what.replace('_', ' ')}: one was changed"
                )
        loaded = cls(opened)
        loaded.figures = as_figures(config.get("metrics"))
        return loaded

    def _save_pretrained(self, save_directory: Path) -> None:
        checkpoint, figures = self.checkpoint, self.figures
        weights = {name: value.detach().cpu() for name, value in self.model.state_dict().items()}
        before = checkpoint.weights
        if weights.keys() != before.keys() or any(not torch.equal(weights[n], before[n].cpu()) for n in weights):
            # What was said of the training is not said of these weights.
            checkpoint, figures = dataclasses.replace(checkpoint, weights=weights, states={}, meta={}), {}
            print_log("the weights are no more the checkpoint's: its figures are left out", "current", logging.WARNING)
        about = publish(checkpoint, save_directory / WEIGHTS)
        figures = figures or as_figures(about["metrics"])
        with atomic_file(save_directory / CONFIG, text=True) as file:
            file.write(json.dumps({**about, "metrics": figures}, indent=2) + "\n")
        self._saved = about, self.result if about["run"] else {}, figures

    def generate_model_card(self, repo: str | None = None, **_: Any) -> ModelCard:
        """The card of what was saved last."""
        return write_card(*self._saved, self.licence, repo)


def _in_repo(name: str, file: str, revision: str | None) -> HubFile:
    if name.count("/") != 1 or not all(part.strip(".") for part in name.split("/")):
        raise CheckpointError(
            f"{sanitized(name)} is no folder, and no repository of the Hub, which is written owner/name"
        )
    return HubFile(name, file, revision)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(read_regular(path, MAX_MANIFEST_CHARS))
        check_plain(config)
        if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
            raise ValueError("it describes no model of crate_mm")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {sanitized(error)}") from None
    return config
