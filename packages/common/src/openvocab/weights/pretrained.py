"""`from_pretrained`, `save_pretrained` and `push_to_hub` of a segmenter, as huggingface_hub has it.

The folder holds the weights as safetensors, `config.json` with the settings and the names whose
masks were seen in training, the calibration of the confidences, and a model card. Loaded again, the
segmenter gives the same labels to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from huggingface_hub import ModelCard, ModelHubMixin
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

import openvocab
from openvocab.errors import InputError
from openvocab.files import atomic_paths, sha256_of
from openvocab.reading.json_files import as_json
from openvocab.weights.folders import (
    CALIBRATION,
    CONFIG,
    FILES,
    WEIGHTS,
    PretrainedFolder,
    complete,
)
from openvocab.weights.hub import fetch_repository
from openvocab.weights.model_card import model_card
from openvocab.weights.state_dict import TRAINED_ON

if TYPE_CHECKING:
    from openvocab.evaluation.results import Result
    from openvocab.metrics.calibration import Calibration


class Pretrained(ModelHubMixin):  # type: ignore[misc]  # huggingface_hub has no types here
    """Adds the Hub's three functions to a segmenter; stands before `BaseSegmenter` in its bases.

    A method says what a file of its weights stores and how it is written.

    Attributes:
        method_key: under which the method is installed.
        trained_on: the names whose masks its weights were trained on; empty if unknown.
    """

    method_key: ClassVar[str]
    trained_on: tuple[str, ...] = ()
    precision: str
    calibration: Calibration | None

    def weight_files(self) -> tuple[str, ...]:
        """Return the names of the files of weights, the first of which stands for the folder."""
        return (WEIGHTS,)

    def stored_settings(self) -> dict[str, Any]:
        """Return what the first file of weights stores beside its tensors.

        Raises:
            InputError: the segmenter has a part that no folder can hold.
        """
        raise NotImplementedError

    def write_weights(self, files: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        """Write the files of `weight_files`, the first one with the metadata."""
        raise NotImplementedError

    def describe(self) -> dict[str, Any]:
        """Return the settings that determine the labels, see `Segmenter.describe`."""
        raise NotImplementedError

    def card_lines(self) -> dict[str, Any]:
        """Return the lines of the protocol that a model card shows."""
        return self.describe()

    def sha256_of_written(self, files: Sequence[Path]) -> str:
        """Return the `weights_sha256` that the segmenter has when it is loaded from the files."""
        return sha256_of(files[0])

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        **options: Any,
    ) -> Self:
        """Load what `save_pretrained` wrote, from a folder or from the Hub.

        What is in the local cache already is used without asking the Hub.

        Args:
            pretrained_model_name_or_path: a folder, or a repository "ORG/NAME".
            revision: branch, tag or commit of the repository; None for its newest state.
            force_download: fetch the repository although it is in the cache.
            local_files_only: do not ask the Hub.
            token: for private repositories; None for the one of `hf auth login`.
            cache_dir: where fetched files are kept.
            options: see `openvocab.load`, such as `device="cuda"`.

        Raises:
            InputError: there is no such folder or repository, or it holds something else.
        """
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = fetch_repository(
                str(pretrained_model_name_or_path),
                revision,
                FILES,
                complete,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                cache_dir=cache_dir,
            )
        if not (folder / CONFIG).is_file():
            raise InputError(
                f"the folder '{folder}' holds no {CONFIG}; give one that save_pretrained wrote"
            )
        loaded: Self = openvocab.load(cls.method_key, folder, **options)  # type: ignore[assignment]
        return loaded

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write weights, settings, names seen in training, calibration and a model card.

        A model card that is there already is kept, since people edit theirs.

        Args:
            save_directory: the folder, which is made if it is not there.
            options: see `huggingface_hub.ModelHubMixin.save_pretrained`.
                `model_card_kwargs={"results": [...]}` puts results of evaluations into the card.

        Returns:
            The address of the commit with `push_to_hub=True`, None otherwise.

        Raises:
            InputError: the weights are in half precision, the segmenter has a part that no folder
                can hold, or a result was measured with other weights.
        """
        if self.precision != "fp32":
            raise InputError(
                f"the weights are in {self.precision}; load them with precision='fp32' and save "
                "that, so that nothing is lost"
            )
        self.stored_settings()
        self.generate_model_card(**(options.get("model_card_kwargs") or {}))
        address: str | None = super().save_pretrained(save_directory, **options)
        return address

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload what `save_pretrained` writes, as one commit, and return the commit's address.

        Args:
            repo_id: "ORG/NAME"; the repository is made if it is not there.
            options: see `huggingface_hub.ModelHubMixin.push_to_hub`, such as `private=True`.

        Raises:
            InputError: see `save_pretrained`, or the Hub refuses or does not answer.
        """
        try:
            return str(super().push_to_hub(repo_id, **options))
        except InputError:
            raise
        except (HfHubHTTPError, LocalTokenNotFoundError) as error:
            raise InputError(
                f"the Hub refused the upload to {repo_id!r} ({error!s:.200}); log in with "
                "`hf auth login` or set HF_TOKEN, and see that you may write there"
            ) from error
        except (OSError, ValueError, RuntimeError) as error:  # a bad name, or nobody answers
            raise InputError(f"{repo_id!r} could not be uploaded ({error!s:.200})") from error

    def generate_model_card(self, results: Sequence[Result] = (), **_: Any) -> ModelCard:
        """Return the model card: the lines of the protocol, and results with theirs.

        Args:
            results: of evaluations with these weights.

        Raises:
            InputError: a result was measured with other weights.
        """
        text = model_card(
            self.method_key, self.card_lines(), self.trained_on, self.calibration, results
        )
        return ModelCard(text, ignore_metadata_errors=False)

    def _save_pretrained(self, save_directory: Path) -> None:
        weights, stored = self.weight_files(), self.stored_settings()
        calibrated = (CALIBRATION,) if self.calibration is not None else ()
        names = (*weights, *calibrated)
        settings = as_json(stored)
        folder = PretrainedFolder(save_directory, self.method_key, names, settings, self.trained_on)
        metadata = {**stored, TRAINED_ON: list(self.trained_on)} if self.trained_on else stored
        with atomic_paths([save_directory / name for name in (*names, CONFIG)]) as files:
            self.write_weights(files[: len(weights)], metadata)
            folder.write_config(files[-1], openvocab.__version__)
            if self.calibration is not None:
                written = self.sha256_of_written(files[: len(weights)])
                replace(self.calibration, weights_sha256=written).save(files[len(weights)])
        for name in set(FILES) - {*names, CONFIG}:
            (save_directory / name).unlink(missing_ok=True)  # of what was saved here before
