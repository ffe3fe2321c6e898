"""Where a plan finds the configuration of a model: given, in a folder, among the names of the course, or on the hub."""

import json
from dataclasses import dataclass
from pathlib import Path

from utils.errors import CourseError, closest
from utils.paths import ROOT
from utils.planner.families import FAMILIES

CLASSIFIER = "ForSequenceClassification"


@dataclass(frozen=True)
class Configuration:
    """A model's configuration.

    values: as in config.json. name: what messages call the model. remark: what its plan should say.
    """

    values: dict
    name: str
    remark: str = ""

    @property
    def model_type(self):
        """The name of the architecture in transformers, such as "bert"."""
        return self.values["model_type"]


def read_configuration(model):
    """The Configuration of `model`, with `num_labels` in its values if it is that of a classifier.

    model: a configuration, a model, a dict, a folder with config.json, a name of data/models/full_size.json (the
    organization may be left out), or an id on the Hugging Face hub, which is asked last. Raises CourseError if there is
    none.
    """
    values, name = _find(getattr(model, "config", model))
    classes = [type(model).__name__, *(values.get("architectures") or [])]
    if any(name.endswith(CLASSIFIER) for name in classes):
        values.setdefault("num_labels", len(values.get("id2label") or (0, 1)))
    remark = ""
    if values["model_type"] == "gemma3":
        values, remark = _text_part(values)
    family = FAMILIES.get(values["model_type"])
    if family and family.fills_in_configuration:
        values = _filled_in(values)
    return Configuration(values, name, remark)


def _find(model):
    """(values, name) of a configuration object, a dict, or whatever `model` names."""
    if hasattr(model, "to_dict"):
        return dict(model.to_dict()), getattr(model, "name_or_path", "") or model.model_type
    if isinstance(model, dict):
        return dict(model), model["model_type"]
    model = str(model)
    file = Path(model) / "config.json"
    if file.exists():
        return json.loads(file.read_text("utf-8")), Path(model).name
    shipped = json.loads((ROOT / "data" / "models" / "full_size.json").read_text("utf-8"))
    ids = _short_names(shipped)
    if model in ids:
        return dict(shipped[ids[model]]), ids[model]
    try:
        from transformers import AutoConfig  # not above: three seconds, and only a hub id needs it

        return AutoConfig.from_pretrained(model).to_dict(), model
    except (OSError, ValueError) as error:
        remedy = f"correct the name (closest that ships with the course: {closest(model, ids)!r}), or go online"
        raise CourseError(f"{model!r}: no configuration found, here or on the hub; {remedy}.") from error


def _short_names(shipped):
    """{name: id} for each id of the course, also without its organization or without "-it"."""
    ids = {}
    for model_id in shipped:
        ids[model_id] = model_id
        ids[model_id.split("/")[-1]] = model_id
        ids[model_id.removesuffix("-it")] = model_id
    return ids


def _text_part(values):
    """(values, remark) of the text model in a Gemma 3 that also sees."""
    text = {**values["text_config"], "model_type": "gemma3_text"}
    if "num_labels" in values:
        text["num_labels"] = values["num_labels"]
    remark = (
        "The plan is that of the text model alone, as Gemma3ForCausalLM loads it; AutoModelForCausalLM loads the "
        "vision tower as well, which is not in it."
    )
    return text, remark


def _filled_in(values):
    """`values` with what its config.json leaves out, as transformers fills it in: defaults, kinds of layers."""
    from transformers import AutoConfig

    complete = AutoConfig.for_model(**{key: value for key, value in values.items() if value is not None}).to_dict()
    if "num_labels" in values:
        complete["num_labels"] = values["num_labels"]
    return complete
