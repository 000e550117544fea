"""The settings of CaR, and those of each published row.

Source: SPEC car 1 and `configs.json` of the original release.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from openvocab.clip.template_sets import load_templates, resolve_templates
from openvocab.config import load_config, near_matches
from openvocab.errors import InputError
from openvocab.reading.yaml_files import packaged_yaml

Mode = Literal["semantic", "refer"]
PromptType: TypeAlias = Literal["blur", "gray", "black", "circle", "rectangle", "contour"]
# They are applied in this order, whatever the order of the request.
PROMPT_TYPES: tuple[PromptType, ...] = get_args(PromptType)

# Words that stand for what a user does not ask for; all published configurations have these.
BACKGROUND = (
    *("ground", "land", "grass", "tree", "building", "wall", "sky", "lake", "water", "river"),
    *("sea", "railway", "railroad", "helmet", "cloud", "house", "mountain", "ocean", "road"),
    *("rock", "street", "valley", "bridge"),
)
DEFAULT_MAX_SIDE = 1024
METADATA = "car"  # under which a folder of `save_pretrained` stores the settings


@dataclass(frozen=True)
class CaRConfig:
    """All settings that affect a mask, under the names in the `car:` section of the original.

    Attributes:
        clip: the CLIP that proposes masks, "NAME:TAG" of open_clip or a file.
        classifier_clip: the CLIP that scores prompted images.
        mode: "semantic": names compete with each other; "refer": each is looked for by itself.
        confidence_threshold: acceptance threshold: names that score above it are kept.
        clipes_threshold: threshold of the salient boxes, relative to a map's maximum.
        mask_threshold: pixels above it are inside when CLIP is prompted.
        bg_factor: exponent of the background's probability in the CRF.
        stuff_bg_factor: the same in the pass for stuff.
        visual_prompt_type: visual prompts that mark a mask, some of `PROMPT_TYPES`.
        stuff_visual_prompt_type: visual prompts of the pass for stuff; if empty, one pass takes all
            names.
        semantic_templates: templates of the classifier, or the name of a set of them; None:
            `cam_text_template` alone, and one softmax instead of two.
        text_template: templates of the names that are looked for; None: the names as they are.
        cam_text_template: template that makes sentences of names from the second step on.
        bg_cls: background names, which compete with the names and are dropped in the end.
        iom_thres: least share of the smaller one that CaR's mask and a mask of SAM have in common
            where the latter is taken.
        min_pred_threshold: least share of CaR's mask that a smaller mask of SAM must cover.
        max_steps: the recurrence ends after so many steps; None: when no name leaves.
        faithful: repeat the original's mistakes where they change results; see the README.
        max_side: longer images are shrunk for memory's sake; None for no limit.
        classifier_batch: prompted images that are encoded together.
    """

    clip: str = "ViT-B-16:openai"
    classifier_clip: str = "ViT-L-14:openai"
    mode: Mode = "semantic"
    confidence_threshold: float = 0.45
    clipes_threshold: float = 0.4
    mask_threshold: float = 0.5
    bg_factor: float = 1.0
    stuff_bg_factor: float = 1.0
    visual_prompt_type: tuple[str, ...] = ("circle",)
    stuff_visual_prompt_type: tuple[str, ...] = ()
    semantic_templates: tuple[str, ...] | None = ("car",)
    text_template: tuple[str, ...] | None = None
    cam_text_template: str = "a clean origami {}."
    bg_cls: tuple[str, ...] = BACKGROUND
    iom_thres: float = 0.6
    min_pred_threshold: float = 0.01
    max_steps: int | None = None
    faithful: bool = False
    max_side: int | None = DEFAULT_MAX_SIDE
    classifier_batch: int = 16

    def __post_init__(self) -> None:
        """Refuse values that can only be mistakes."""
        if self.mode not in get_args(Mode):
            raise InputError(f"mode is {self.mode!r}; use 'semantic' or 'refer'")
        checked_types(self.visual_prompt_type)
        if self.stuff_visual_prompt_type:
            checked_types(self.stuff_visual_prompt_type)
        for name in ("confidence_threshold", "clipes_threshold", "mask_threshold"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"{name} is {value:g}; it must lie in 0..1")
        if self.bg_factor <= 0 or self.stuff_bg_factor <= 0:
            raise InputError("bg_factor and stuff_bg_factor must be greater than 0")
        if self.max_side is not None and self.max_side < 32:
            raise InputError(f"max_side is {self.max_side}; use at least 32 pixels, or none")
        if self.max_steps is not None and self.max_steps < 1:
            raise InputError(f"max_steps is {self.max_steps}; use at least 1, or none")
        if self.classifier_batch < 1:
            raise InputError(f"classifier_batch is {self.classifier_batch}; use at least 1")
        for templates in ((self.cam_text_template,), self.text_template, self.classifier_templates):
            if templates is not None:
                resolve_templates(templates)

    @property
    def classifier_templates(self) -> tuple[str, ...] | None:
        """Return the templates of the mask classifier, looked up where a set is given by name."""
        given = self.semantic_templates
        if given is not None and len(given) == 1 and "{}" not in given[0]:
            return load_templates(given[0])
        return None if given is None else resolve_templates(given)

    @property
    def two_passes(self) -> bool:
        """Return whether things and stuff are segmented one after the other."""
        return bool(self.stuff_visual_prompt_type)

    def stuff_pass(self, things: tuple[str, ...]) -> CaRConfig:
        """Return the settings of the pass for stuff, in which the things are background."""
        return replace(
            self,
            bg_cls=things,
            visual_prompt_type=self.stuff_visual_prompt_type,
            bg_factor=self.stuff_bg_factor,
        )


@dataclass(frozen=True)
class Published:
    """Scores that the authors of the paper report for a configuration; none of them is ours.

    Attributes:
        scores: scores by split or metric, in percent.
        source: place in the paper, and how reliable the transcription is.
    """

    scores: Mapping[str, float] = field(default_factory=dict)
    source: str = ""


@dataclass(frozen=True)
class NamedConfig:
    """A configuration, and the data set for which it was published.

    Attributes:
        name: such as "voc21".
        car: the settings.
        dataset: name in `openvocab.datasets`, or of a referring set; None for demonstrations.
        vocabulary: key of the names, None where the data bring their own sentences.
        ignore_background: choice of the mIoU that the original reports; both are always computed.
        published: the authors' numbers.
        image_caption: names of a demonstration.
    """

    name: str
    car: CaRConfig
    dataset: str | None = None
    vocabulary: str | None = None
    ignore_background: bool = False
    published: Published = field(default_factory=Published)
    image_caption: tuple[str, ...] = ()


def available_configs() -> tuple[str, ...]:
    """Return the names that `named_config` knows, sorted."""
    files = resources.files("car").joinpath("configs").iterdir()
    return tuple(sorted(Path(f.name).stem for f in files if f.name.endswith(".yaml")))


def named_config(name: str) -> NamedConfig:
    """Return a published configuration.

    Raises:
        InputError: there is none of this name.
    """
    known = available_configs()
    if name not in known:
        raise InputError(f"there is no configuration {name!r}; {near_matches(name, known)}")
    content: dict[str, Any] = packaged_yaml("car", "configs", f"{name}.yaml")
    return NamedConfig(
        name=name,
        car=load_config(CaRConfig, overrides=content.pop("car")),
        published=Published(**content.pop("published", {})),
        image_caption=tuple(content.pop("image_caption", ())),
        **content,
    )


def settings_of(weights: str | Path | None) -> CaRConfig | None:
    """Return the settings that `--weights` brings along, or None if it names CLIPs only.

    Args:
        weights: the name of a configuration; or a folder that `save_pretrained` wrote, or
            `hf:ORG/NAME` for one on the Hub, whose CLIPs are files in it.

    Raises:
        InputError: see `find_pretrained`, or the settings in the folder are damaged.
    """
    if weights in available_configs():
        return named_config(str(weights)).car
    if weights is None:
        return None
    from openvocab.weights.folders import find_pretrained  # late: it imports torch

    folder = find_pretrained(weights, "car")
    if folder is None:
        return None
    stored = folder.settings.get(METADATA)
    if not isinstance(stored, Mapping):
        raise InputError(f"the folder '{folder.path}' holds no settings of CaR; save it again")
    config = load_config(CaRConfig, overrides=stored)
    if not {config.clip, config.classifier_clip} <= set(folder.files):
        raise InputError(f"the settings in '{folder.path}' name CLIPs that it lacks; save it again")
    clips = (str(folder.path / name) for name in (config.clip, config.classifier_clip))
    return replace(config, clip=next(clips), classifier_clip=next(clips))


def clips_of(weights: str) -> dict[str, Any]:
    """Return the fields of `CaRConfig` that hold the CLIPs which `--weights` names.

    Args:
        weights: what `settings_of` knows, whose CLIPs are meant; or a CLIP for both tasks; or two
            with a comma between, the first of which proposes masks.

    Raises:
        InputError: there are more than two, or one has no name.
    """
    if settings := settings_of(weights):
        return {"clip": settings.clip, "classifier_clip": settings.classifier_clip}
    parts = [weights] if Path(weights).is_file() else [part.strip() for part in weights.split(",")]
    if len(parts) > 2 or not all(parts):
        raise InputError(
            f"the weights are {weights!r}; name a configuration, or one CLIP, or two with a comma "
            "between them"
        )
    return {"clip": parts[0], "classifier_clip": parts[-1]}


def checked_types(types: Sequence[str]) -> tuple[PromptType, ...]:
    """Return prompt types in the order in which they are applied.

    Raises:
        InputError: an unknown type, or none.
    """
    unknown = [name for name in types if name not in PROMPT_TYPES]
    if unknown or not types:
        raise InputError(
            f"visual prompts are {', '.join(types) or 'none'}; use one or more of "
            f"{', '.join(PROMPT_TYPES)}"
        )
    return tuple(name for name in PROMPT_TYPES if name in types)
