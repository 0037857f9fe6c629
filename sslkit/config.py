"""From `key=value` words and YAML recipes to one validated, frozen RunConfig; every mistake in one message.

Layers, weakest first: field default, the method's settings, the data set's, recipe file, command line.
Each value remembers which layer it came from.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_serializer

from sslkit import plugins
from sslkit.errors import UserError

SECTIONS = {"method": "methods", "backbone": "backbones", "data": "datasets", "augment": "augmentations"}
"""Run keys that name a component -> the kind of component; `eval_data` and `evaluators` follow below."""


class Config(BaseModel):
    """Base of every component's settings: frozen, extra keys forbidden, field docstrings are the help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def check(self) -> Iterable[str]:
        """Mistakes that only a look at the machine shows (a missing file), one sentence each, with the mend."""
        return ()


class Choice(Config):
    """A component by name, with its validated settings."""

    name: str
    options: SerializeAsAny[Config] = Config()

    def flat(self) -> dict[str, Any]:
        """{"name": ..., **options}: the form that recipes use."""
        return {"name": self.name, **self.options.model_dump(mode="json")}


class Optimizer(Config):
    """Optimizer and schedule, stepped once an optimizer step."""

    name: str = "adamw"
    """sgd, adam, adamw, lars, or timm:NAME for any other optimizer of timm."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate before scaling."""
    lr_scaling: Literal["none", "linear", "sqrt"] = "none"
    """linear: lr × batch/256 (Goyal et al. 2017); sqrt: lr × √batch (SimCLR, B.1)."""
    weight_decay: float = Field(1e-4, ge=0)
    """Decay of the weights; biases and normalisation parameters are exempt."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD and LARS."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's two decay rates."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Shape after the warm-up; cosine ends at zero."""
    warmup_epochs: float = Field(10, ge=0)
    """Linear warm-up, in epochs, but at most a tenth of the run."""
    clip_grad: float | None = Field(None, gt=0)
    """Largest norm of the whole gradient; null clips nothing."""

    def check(self) -> Iterable[str]:
        from sslkit.optim import known_optimizer

        if problem := known_optimizer(self.name):
            yield problem


class RunConfig(Config):
    """Everything that decides a run. Dotted keys (`method.temperature`) belong to the named component."""

    method: Choice
    """Self-supervised method: `sslkit list methods`."""
    backbone: Choice
    """Network to pre-train: a name of `sslkit list backbones`, timm:NAME or torchvision:NAME."""
    data: Choice
    """What to pre-train on: a folder, a .beton file, or a name of `sslkit list datasets`."""
    augment: Choice
    """View recipe: `sslkit list augmentations`; each method has its own default."""
    evaluators: tuple[Choice, ...]
    """What to measure: `sslkit list evaluators`; an empty list measures nothing."""
    eval_data: Choice | None = None
    """What to evaluate on, in the forms of `data`; null: the labelled part of `data`."""
    optimizer: Optimizer = Optimizer()
    """Optimizer and learning-rate schedule."""
    epochs: int = Field(100, ge=1)
    """Passes over the pre-training images."""
    batch_size: int = Field(256, ge=2)
    """Images a forward pass."""
    accumulate: int = Field(1, ge=1)
    """Forward passes an optimizer step; losses see one forward pass at a time."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Autocast precision; auto: bf16 on a GPU that has it, else fp32."""
    channels_last: bool = True
    """Memory format of the network; on is faster almost everywhere."""
    deterministic: bool = False
    """Only deterministic kernels on CUDA, where some are slower; the CPU's always are."""
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")
    """auto, cpu, mps, cuda or cuda:N; auto takes the first GPU."""
    loader: Literal["auto", "resident", "ffcv", "torch"] = "auto"
    """resident keeps the decoded images on the device; auto does so when they fit in a quarter of its free memory."""
    workers: int = Field(-1, ge=-1)
    """Threads or processes that decode; -1: as many as there are cores."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of weights, order and augmentation."""
    out: Path | None = None
    """Run directory; null: runs/METHOD-BACKBONE-DATA, numbered where that is taken."""
    log_every: int = Field(50, ge=1)
    """Steps between two lines of metrics; the end of an epoch always has one."""
    eval_every: int = Field(10, ge=0)
    """Epochs between two evaluations; 0: only the first and the last."""
    checkpoint_every: int = Field(10, ge=0)
    """Epochs between two checkpoints that are kept; 0: only the last."""

    @field_serializer("method", "backbone", "data", "augment", "eval_data")
    def _flat(self, choice: Choice | None) -> dict[str, Any] | None:
        return choice.flat() if choice else None

    @field_serializer("evaluators")
    def _flat_all(self, choices: tuple[Choice, ...]) -> list[dict[str, Any]]:
        return [choice.flat() for choice in choices]

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


BASE: dict[str, Any] = {
    "method.name": "byol",
    "backbone.name": "shufflenetv2",
    "data.name": "digits",
    "evaluators.knn": True,
    "evaluators.linear": True,
}


@dataclass(frozen=True)
class Layer:
    """Settings from one place: dotted keys and where they were written."""

    origin: str
    values: dict[str, Any]


@dataclass(frozen=True)
class Resolved:
    """A valid configuration, and where each dotted value came from (`default` where nobody said)."""

    config: RunConfig
    origins: dict[str, str]
    values: dict[str, Any]


@dataclass
class Mistakes:
    """Collects one line for each mistake; `stop()` raises them all at once."""

    lines: list[str] = field(default_factory=list)

    def add(self, key: str, message: str) -> None:
        self.lines.append(f"{key}: {message}" if key else message)

    def stop(self) -> None:
        if self.lines:
            plural = "s" if len(self.lines) > 1 else ""
            raise UserError(
                "\n".join([f"{len(self.lines)} mistake{plural} in the settings", *map(_bullet, self.lines)])
            )


def _bullet(line: str) -> str:
    return "  - " + line


def resolve(words: Iterable[str] = (), recipe: Path | None = None, new: bool = True) -> Resolved:
    """The run that `sslkit run [recipe] words...` asks for.

    `new` also checks what only a new run needs: data at hand, a free `out`. Raises UserError naming every mistake.
    """
    mistakes = Mistakes()
    layers = [read_recipe(recipe, mistakes)] if recipe else []
    layers.append(Layer("command line", parse_words(words, mistakes)))
    return resolve_layers(layers, mistakes, new)


def resolve_layers(layers: list[Layer], mistakes: Mistakes, new: bool = True) -> Resolved:
    """Merge layers over the defaults and validate; raises UserError naming every mistake."""
    asked = _merge([Layer("default", BASE), *layers])[0]
    method = _load("method", asked, mistakes)
    source = _load("data", asked, mistakes)
    advice = [
        Layer(
            f"method {asked['method.name']}",
            {"augment.name": "simclr"} if method is None else _advice(method),
        ),
        Layer(f"data set {asked['data.name']}", {} if source is None else source.advice(asked["method.name"])),
    ]
    values, origins = _merge([Layer("default", BASE), *advice, *layers])
    sections = {s: _choice(s, kind, values, mistakes) for s, kind in SECTIONS.items()}
    if values.get("eval_data.name") is not None:
        sections["eval_data"] = _choice("eval_data", "datasets", values, mistakes)
    evaluators = _evaluators(values, mistakes)
    config = _run_config(values, sections, evaluators, mistakes)
    if new:
        _look_at_components(sections, evaluators, values.get("batch_size"), mistakes)
        if config is not None:
            _look_at_machine(config, mistakes)
    mistakes.stop()
    assert config is not None
    return Resolved(config, origins, _all_values(config))


def resolve_data(source: str, words: Iterable[str]) -> Choice:
    """The data set that `data=source` means, with its own settings as words: image_size=96."""
    mistakes = Mistakes()
    values = {"data.name": source} | {f"data.{k}": v for k, v in parse_words(words, mistakes).items()}
    choice = _choice("data", "datasets", values, mistakes)
    for message in choice.options.check() if choice else ():
        mistakes.add("data", message)
    mistakes.stop()
    assert choice is not None
    return choice


def parse_words(words: Iterable[str], mistakes: Mistakes) -> dict[str, Any]:
    """`key=value` words to dotted keys; values are read as YAML, so lists, numbers, true and null work."""
    tree: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key:
            mistakes.add("", f"{word!r} is not key=value")
        elif key in tree:
            mistakes.add(key, "given twice")
        else:
            tree[key] = _parse_value(key, text, mistakes)
    return flatten(tree, mistakes)


def _parse_value(key: str, text: str, mistakes: Mistakes) -> Any:
    try:
        return yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        mistakes.add(key, f"{text!r} is not a value; quote it, as in {key}='\"...\"'")
        return None


def read_recipe(path: Path, mistakes: Mistakes) -> Layer:
    """A YAML recipe: the same keys as the command line, nested or dotted."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        mistakes.add("", f"recipe {path} cannot be read: {error}")
        tree = {}
    except yaml.YAMLError as error:
        mistakes.add("", f"recipe {path} is not YAML: {' '.join(str(error).split())}")
        tree = {}
    if not isinstance(tree or {}, dict):
        mistakes.add("", f"recipe {path} must be a mapping of settings, such as `method: byol`")
        tree = {}
    return Layer(f"recipe {path}", flatten(tree or {}, mistakes))


def flatten(tree: Mapping[str, Any], mistakes: Mistakes) -> dict[str, Any]:
    """Nested settings to dotted keys: `method: byol` becomes `method.name`, each evaluator `evaluators.<name>`."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        section = str(key)
        if section == "evaluators":
            flat |= _flatten_evaluators(value, mistakes)
        elif section in (*SECTIONS, "eval_data", "optimizer") and not isinstance(value, Mapping):
            flat[f"{section}.name"] = value if value is None else str(value)
        else:
            flat |= _leaves(section, value)
    return flat


def _leaves(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {key: value}
    return {k: v for name, child in value.items() for k, v in _leaves(f"{key}.{name}", child).items()}


def _flatten_evaluators(value: Any, mistakes: Mistakes) -> dict[str, Any]:
    flat: dict[str, Any] = {"evaluators": "replace"}
    items = [value] if isinstance(value, str) else value or []
    if isinstance(items, Mapping):
        items = [{"name": k, **(v or {})} for k, v in items.items()]
    for item in items if isinstance(items, list) else [None]:
        options = {"name": item} if isinstance(item, str) else item
        if not isinstance(options, Mapping) or "name" not in options:
            mistakes.add("evaluators", "must be a list of names, such as evaluators=[knn,linear]")
            continue
        key = f"evaluators.{options['name']}"
        flat |= {key: True} | _leaves(key, {k: v for k, v in options.items() if k != "name"})
    return flat


def _merge(layers: list[Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """Later layers win. Naming another component drops the options meant for the one it replaces."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer in layers:
        for section in (*SECTIONS, "eval_data"):
            name = layer.values.get(f"{section}.name")
            if name is not None and name != values.get(f"{section}.name"):
                values = _without(values, f"{section}.")
        if "evaluators" in layer.values:
            values = _without(values, "evaluators.")
        for key, value in layer.values.items():
            if key == "evaluators":
                continue
            if not key.startswith("evaluators."):
                values = _without(values, f"{key}.")
            values[key] = value
            origins[key] = layer.origin
    return values, {k: origins[k] for k in values}


def _without(values: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {k: v for k, v in values.items() if not k.startswith(prefix)}


def _advice(method: Any) -> dict[str, Any]:
    return {"augment.name": method.augment, **method.defaults}


def _load(section: str, values: dict[str, Any], mistakes: Mistakes) -> Any:
    """The component class of a section, or None where its name is wrong (told later, by `_choice`)."""
    try:
        return _component(section, values.get(f"{section}.name"))[1]
    except UserError:
        return None


def _component(section: str, name: Any) -> tuple[str, Any, dict[str, Any]]:
    """(registered name, component, options that the name implies): a path picks the data set that claims it."""
    kind = SECTIONS.get(section, "datasets")
    if not isinstance(name, str):
        raise UserError(f"needs a name; there are: {', '.join(plugins.names(kind))}")
    if kind == "datasets" and name not in plugins.names(kind):
        registered = _claimant(name)
        return registered, plugins.find(kind, registered), {"root": name}
    return name, plugins.find(kind, name), {}


def _claimant(text: str) -> str:
    path = Path(text).expanduser()
    if not path.exists():
        hint = plugins.suggest(text, plugins.names("datasets"))
        raise UserError(f"{text!r} is neither a path that exists nor a registered data set; {hint}")
    for name in sorted(plugins.names("datasets"), key=lambda n: n == "folder"):
        try:
            if plugins.find("datasets", name).claims(path):
                return name
        except UserError:
            continue
    raise UserError(f"{text!r} is neither a folder, a .beton file nor a data set that an installed plugin reads")


def config_class(component: Any) -> type[Config]:
    """The settings a component takes: its nested `Config`, or for a plain backbone factory the common one."""
    from sslkit.backbones.settings import BackboneConfig

    return getattr(getattr(component, "func", component), "Config", BackboneConfig)


def _choice(section: str, kind: str, values: dict[str, Any], mistakes: Mistakes) -> Choice | None:
    try:
        name, component, implied = _component(section, values.get(f"{section}.name"))
    except UserError as error:
        mistakes.add(section, str(error))
        return None
    given = {k.removeprefix(f"{section}."): v for k, v in values.items() if k.startswith(f"{section}.")}
    given.pop("name")
    options = _validate(config_class(component), nest(implied | given), section, mistakes)
    return None if options is None else Choice(name=name, options=options)


def _evaluators(values: dict[str, Any], mistakes: Mistakes) -> tuple[Choice, ...]:
    keys = [k.removeprefix("evaluators.") for k in values if k.startswith("evaluators.")]
    chosen = []
    for name in dict.fromkeys(k.partition(".")[0] for k in keys):
        section = f"evaluators.{name}"
        options = {k.removeprefix(f"{name}."): values[f"evaluators.{k}"] for k in keys if k.startswith(f"{name}.")}
        try:
            component = plugins.find("evaluators", name)
        except UserError as error:
            mistakes.add("evaluators", str(error))
            continue
        valid = _validate(config_class(component), nest(options), section, mistakes)
        if valid is not None:
            chosen.append(Choice(name=name, options=valid))
    return tuple(chosen)


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys to nested mappings: {"jitter.p": 0.5} becomes {"jitter": {"p": 0.5}}."""
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[leaf] = value
    return tree


def _run_config(
    values: dict[str, Any], sections: dict[str, Choice | None], evaluators: Any, mistakes: Mistakes
) -> RunConfig | None:
    owned = tuple(f"{s}." for s in (*SECTIONS, "eval_data", "evaluators"))
    plain = {k: v for k, v in values.items() if not k.startswith(owned)}
    if any(choice is None for choice in sections.values()):
        # Check the rest against stand-ins, so that its mistakes come in the same message.
        sections = {s: choice or Choice(name="?") for s, choice in sections.items()}
    return _validate(RunConfig, nest(plain) | sections | {"evaluators": evaluators}, "", mistakes)


C = TypeVar("C", bound=Config)


def _validate(cls: type[C], options: dict[str, Any], section: str, mistakes: Mistakes) -> C | None:
    try:
        return cls.model_validate(options)
    except ValidationError as error:
        for line in error.errors():
            where = [str(part) for part in line["loc"] if not str(part).startswith("function-")]
            mistakes.add(".".join(filter(None, [section, *where])), _in_words(line, cls, section))
        return None


def _in_words(line: Any, cls: type[Config], section: str) -> str:
    if line["type"] == "extra_forbidden":
        return f"unknown; {_suggest_key(cls, [str(p) for p in line['loc']], section)}"
    message = line["msg"].removeprefix("Value error, ")
    return f"{message[0].lower()}{message[1:]} (got {line['input']!r})"


def _suggest_key(cls: type[Config], loc: list[str], section: str) -> str:
    owner: Any = cls
    for part in loc[:-1]:
        annotation = owner.model_fields[part].annotation if part in owner.model_fields else None
        owner = annotation if isinstance(annotation, type) and issubclass(annotation, Config) else owner
    prefix = ".".join(filter(None, [section, *loc[:-1]]))
    known = [f"{prefix}.{name}" if prefix else name for name in owner.model_fields]
    close = get_close_matches(f"{prefix}.{loc[-1]}" if prefix else loc[-1], known, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(known) or 'no settings here'}"


def _look_at_components(
    sections: Mapping[str, Choice | None], evaluators: Iterable[Choice], batch_size: Any, mistakes: Mistakes
) -> None:
    """What each component finds wrong with its own settings, and data too small for the batch."""
    named = {**sections, **{f"evaluators.{e.name}": e for e in evaluators}}
    wrong = {section: list(choice.options.check()) for section, choice in named.items() if choice}
    for section, messages in wrong.items():
        for message in messages:
            mistakes.add(section, message)
    data = sections["data"]
    if data and not wrong["data"]:
        default = RunConfig.model_fields["batch_size"].default
        _compare_with_data(data, default if batch_size is None else batch_size, mistakes)


def _compare_with_data(data: Choice, batch_size: Any, mistakes: Mistakes) -> None:
    try:
        count = plugins.find("datasets", data.name)(data.options).count()
    except UserError as error:
        mistakes.add("data", str(error))
        return
    if count is not None and isinstance(batch_size, int) and batch_size > count:
        mistakes.add("batch_size", f"{batch_size} is more than the {count} images of the data; lower it")


def _look_at_machine(config: RunConfig, mistakes: Mistakes) -> None:
    for message in config.optimizer.check():
        mistakes.add("optimizer.name", message)
    if config.out and config.out.exists() and any(config.out.iterdir() if config.out.is_dir() else [1]):
        mistakes.add("out", f"{config.out} already holds something; choose another, or `sslkit resume {config.out}`")
    if missing := _device_missing(config.device):
        mistakes.add("device", missing)


def _device_missing(device: str) -> str | None:
    import torch

    if device.startswith("cuda") and not torch.cuda.is_available():
        return f"{device} is not available here; use device=cpu, or see `sslkit doctor`"
    if device == "mps" and not torch.backends.mps.is_available():
        return "mps is not available here; use device=cpu"
    return None


def _all_values(config: RunConfig) -> dict[str, Any]:
    tree = config.model_dump(mode="json")
    options = {e["name"]: {k: v for k, v in e.items() if k != "name"} for e in tree["evaluators"]}
    tree["evaluators"] = list(options)
    leaves = {k: v for key, value in tree.items() for k, v in _leaves(key, value).items()}
    return leaves | _leaves("evaluators", options)
