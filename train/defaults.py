"""Options of a recipe's values, whose help shows the defaults that the recipes themselves have."""

import click

from irv2.train.settings import (
    INHERITED,
    SETTINGS,
    WARMUP_PARTS,
    Recipe,
    finetune_recipe,
    setting_for,
    shown,
)


class RecipeOption(click.Option):
    """An option named after a field of Recipe; its help ends with that field's default."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Add the default to the help; called by click."""
        record = super().get_help_record(ctx)
        assert record is not None  # none is hidden
        assert self.name is not None
        default = default_text(self.name, is_finetuning=ctx.command.name == "finetune")
        spec, text = record
        return spec, f"{text}  [default: {default}]"


def default_text(name: str, *, is_finetuning: bool) -> str:
    """Return what the field `name` of Recipe is in `irv2 finetune`, or else in `irv2-train`."""
    return _finetune_text(name) if is_finetuning else _setting_text(name)


def _setting_text(name: str) -> str:
    if name == "arch":
        return "that of --init-from, else the paper's"
    values = {setting: _shown(name, recipe) for setting, recipe in SETTINGS.items()}
    text = values["1"]
    if len({*values.values()}) > 1:
        text = ", ".join(f"{value} ({setting})" for setting, value in values.items())
    slims = _shown(name, setting_for("1", "inception_resnet_v2_slim"))
    if slims != values["1"]:
        text += f"; TF-slim's network: {slims}"
    return f"{text}; or as --init-from" if name in INHERITED else text


def _finetune_text(name: str) -> str:
    if name == "warmup_steps":
        return f"1/{WARMUP_PARTS} of all"
    if name == "head_epochs":
        return _shown("epochs", finetune_recipe("head"))
    if name in INHERITED and name != "orientation":
        return "as CKPT"
    network, head = (_shown(name, finetune_recipe(trained)) for trained in ("all", "head"))
    if name == "feature_crops":  # which only a head has
        return head
    return network if name == "trained" or head == network else f"{network}; of a head {head}"


def _shown(name: str, recipe: Recipe) -> str:
    """Write a value as its option takes it."""
    value = recipe.to_json()[name]
    if isinstance(value, bool):
        return name if value else f"no-{name}"
    return f"{value:g}" if isinstance(value, float) else shown(value)
