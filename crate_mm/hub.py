"""Models on the Hugging Face Hub: ``save_pretrained``, ``push_to_hub`` and ``from_pretrained``.

    HubModel("work_dirs/crate_tiny_digits/epoch_40.pth", licence="mit").push_to_hub("me/crate-tiny-digits")
    model = HubModel.from_pretrained("me/crate-tiny-digits").model

A repository holds data only: ``model.safetensors`` in the format of ``tools/publish.py``, ``config.json`` with the
manifest of these weights, and ``README.md``, a model card made from ``result.json``.
"""

import dataclasses
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
    raise ImportError(
        "crate_mm.hub needs huggingface_hub, which is not installed: pip install 'crate_mm[hub]'"
    ) from None

from .checkpoints import Checkpoint, CheckpointError, as_checkpoint, build_from_checkpoint, open_checkpoint
from .checkpoints.fit import load_strict
from .checkpoints.publish import publish
from .checkpoints.readers.safetensors import MAX_MANIFEST_CHARS, WEIGHTS, as_contents
from .checkpoints.remote import HubFile, hub_file, hub_token
from .checkpoints.validate import check_form, first_line
from .engine.checkpointing.results import checkpoint_metrics, find_result, numeric_metrics, read_result
from .extras.interop.model_card import card_licence, write_card
from .inference.model_factory import copy_metadata
from .io.files import home, write_json
from .io.untrusted import check_plain, read_json, read_regular, sanitized

CONFIG = "config.json"


class HubModel(nn.Module, ModelHubMixin):
    """A model that huggingface_hub can save, push and load.

    ``model`` is the task, as ``init_model`` returns it. ``forward`` calls it.

    Args:
        checkpoint: a checkpoint with a model config, as for ``init_model``, or an open checkpoint.
        result: the ``result.json`` of its run, for the model card (default: the file next to the checkpoint, if it
            belongs to the same run).
        licence: license of the weights, for the model card: one of ``model_card.LICENCES``, or 'other: <name>'.

    Raises:
        CheckpointError: the checkpoint cannot be read or has no model config, or ``result`` is from another run.
        ValueError: the Hub does not know the license.
    """

    def __init__(
        self, checkpoint: str | Path | Checkpoint, result: str | Path | None = None, licence: str | None = None
    ) -> None:
        super().__init__()
        card_licence(licence)  # fail before loading the weights
        source = checkpoint if isinstance(checkpoint, Checkpoint) else open_checkpoint(checkpoint)
        self.model = build_from_checkpoint(source)
        load_strict(self.model, source)
        copy_metadata(self.model, source)
        self.result: dict[str, Any] = {}
        if result is not None:
            self.result = read_result(home(result), source)
        elif not isinstance(checkpoint, Checkpoint):
            self.result = find_result(source)
        self.metrics, self.licence = checkpoint_metrics(self.result, source), licence
        # Of the states for resuming, keep only the message hub, which describes the run.
        states = {key: value for key, value in source.states.items() if key == "message_hub"}
        self.checkpoint = dataclasses.replace(source, states=states, meta={**source.meta, "run": source.run})
        self.eval()

    def forward(self, *args: Tensor, **batch: Any) -> Any:
        """Call the model."""
        return self.model(*args, **batch)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write ``model.safetensors``, ``config.json`` and, if missing, ``README.md`` to a folder.

        Args:
            save_directory: the folder, created if missing.
            kwargs: arguments of ``ModelHubMixin.save_pretrained``.
        """
        return super().save_pretrained(home(save_directory), **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Push the files to a repository of the Hub, created if missing; return the URL of the commit.

        Args:
            repo_id: 'owner/name'.
            kwargs: arguments of ``ModelHubMixin.push_to_hub``, such as ``private``, ``token``, ``branch``. A token is
                sent only to an https address.

        Raises:
            CheckpointError: the push fails.
        """
        token = hub_token(kwargs.pop("token", None))
        try:
            commit = super().push_to_hub(repo_id, token=token, model_card_kwargs={"repo": repo_id}, **kwargs)
        except (HfHubHTTPError, HFValidationError, OSError) as error:
            raise CheckpointError(
                f"could not push to {sanitized(repo_id)} (log in with hf auth login or HF_TOKEN; the token is sent to "
                f"https addresses only): {type(error).__name__}: {first_line(error)}"
            ) from None
        return commit.commit_url

    @classmethod
    def from_pretrained(  # the mixin's signature without model arguments
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
            force_download: download even if the files are cached.
            token: token of the Hub (default: from ``hf auth login``).
            cache_dir: cache folder (default: the Hub's).
            local_files_only: use the cache only, without network access.
            revision: branch, tag or commit.
            map_location: device of the model.
            strict: no effect, because loading is always strict; part of the mixin's interface.

        Raises:
            CheckpointError: the files cannot be loaded, are not of crate_mm, or are inconsistent.
        """
        name = str(pretrained_model_name_or_path)
        folder = Path(home(name))
        if not folder.is_dir():
            options = {"force_download": force_download, "token": token, "cache_dir": cache_dir}
            options["local_files_only"] = local_files_only
            config = hub_file(_in_repo(name, CONFIG, revision), **options)
            # Load both files from the same commit: the cache has one folder per commit.
            hub_file(_in_repo(name, WEIGHTS, config.parent.name), **options)
            folder = config.parent
        _read_config(folder / CONFIG)
        return super().from_pretrained(str(folder)).to(map_location)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **_: Any) -> "HubModel":
        folder = Path(model_id)
        checkpoint, config = open_checkpoint(folder / WEIGHTS), _read_config(folder / CONFIG)
        contents = as_contents(config, checkpoint.weights)
        check_form(contents, folder / CONFIG)
        config_checkpoint = as_checkpoint(contents, folder / WEIGHTS)
        if checkpoint.model is None or checkpoint.meta.get("model") is None:
            checkpoint = config_checkpoint  # another library rewrote the weights file without its metadata
        for field in ("model", "class_names", "test_transforms"):
            if getattr(config_checkpoint, field) != getattr(checkpoint, field):
                raise CheckpointError(
                    f"{folder}: {CONFIG} and {WEIGHTS} differ in {field.replace('_', ' ')}: one of them was changed"
                )
        hub_model = cls(checkpoint)
        hub_model.metrics = numeric_metrics(config.get("metrics"))
        return hub_model

    def _save_pretrained(self, save_directory: Path) -> None:
        checkpoint, metrics = self.checkpoint, self.metrics
        weights = {name: value.detach().cpu() for name, value in self.model.state_dict().items()}
        original = checkpoint.weights
        if weights.keys() != original.keys() or any(not torch.equal(weights[n], original[n].cpu()) for n in weights):
            # Training metadata do not apply to changed weights.
            checkpoint, metrics = dataclasses.replace(checkpoint, weights=weights, states={}, meta={}), {}
            print_log("the weights differ from the checkpoint's: saved without its metrics", "current", logging.WARNING)
        manifest = publish(checkpoint, save_directory / WEIGHTS)
        metrics = metrics or numeric_metrics(manifest["metrics"])
        write_json(save_directory / CONFIG, {**manifest, "metrics": metrics})
        self._saved = manifest, self.result if manifest["run"] else {}, metrics

    def generate_model_card(self, repo: str | None = None, **_: Any) -> ModelCard:
        """Return the model card of the last save."""
        return write_card(*self._saved, self.licence, repo)


def _in_repo(name: str, file: str, revision: str | None) -> HubFile:
    if name.count("/") != 1 or not all(part.strip(".") for part in name.split("/")):
        raise CheckpointError(f"expected a folder or a repository of the Hub (owner/name), got {sanitized(name)}")
    return HubFile(name, file, revision)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(read_regular(path, MAX_MANIFEST_CHARS))
        check_plain(config)
        if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
            raise ValueError("it has no model config of crate_mm")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {sanitized(error)}") from None
    return config
