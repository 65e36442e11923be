"""Flags: options generated from a pydantic model."""

from typing import Annotated, Literal

import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from hf_prune.cli.flags import flags_of, with_flags
from hf_prune.recipe.fields import Group, option
from hf_prune.recipe.spelling import options_of


class Cake(Group):
    """What to eat."""

    flour: Literal["wheat", "rye", "barley", "buckwheat", "none at all"] = option("rye", "Of the cake.", "cake_flour")


class Order(BaseModel):
    """One field of every kind a recipe has."""

    name: str = Field("tea", description="What to bring.")
    how_many: int = Field(0, description="Cups.")
    share: float | None = Field(None, description="Milk.")
    size: Literal["small", "large"] = Field("small", description="Of the cup.")
    with_: tuple[str, ...] = Field(("sugar", "lemon"), description="Beside it.")
    colours: tuple[Literal["red", "blue"], ...] = Field((), description="Of the cups.")
    hot: bool = Field(False, description="Or not.")
    cake: Cake = Cake()


OPTIONS = {option.name: option for option in options_of(Order)}


@pytest.fixture
def ordered():
    """Run the command on arguments; gives the result and the values the command got."""
    app, seen = typer.Typer(rich_markup_mode=None), []

    @app.command()
    @with_flags(*flags_of(OPTIONS.values()))
    def order(
        guest: Annotated[str, typer.Argument()],
        loud: Annotated[bool, typer.Option("--loud")] = False,
        **values,
    ) -> None:
        seen.append((guest, loud, values))

    def call(*args):
        seen.clear()
        return CliRunner().invoke(app, args), (seen or [None])[0]

    return call


def test_a_flag_that_is_not_given_is_none(ordered):
    result, (guest, loud, values) = ordered("Ann")
    assert result.exit_code == 0 and (guest, loud) == ("Ann", False)
    assert set(values) == set(OPTIONS) and not any(values.values())


def test_every_kind_is_parsed(ordered):
    args = "Ann --loud --name x --how-many 3 --share 0.5 --size large --with- a --with- b --colours red --hot"
    _, (guest, loud, values) = ordered(*args.split(), "--cake-flour", "rye")
    assert (guest, loud) == ("Ann", True)
    assert values == {
        "name": "x",
        "how_many": 3,
        "share": 0.5,
        "size": "large",
        "with_": ["a", "b"],
        "colours": ["red"],
        "hot": True,
        "cake_flour": "rye",
    }
    assert ordered("Ann", "--no-hot")[1][2]["hot"] is False


def test_help_has_description_choices_and_default_zero_included(ordered):
    text = " ".join(ordered("--help")[0].output.split())
    for words in ("What to bring. [default: tea]", "Cups. [default: 0]", "<small|large>", "<red|blue>...",
                  "Beside it. [default: sugar lemon]", "--hot / --no-hot",
                  "Of the cake. One of wheat, rye, barley, buckwheat, none at all. [default: rye]"):  # fmt: skip
        assert words in text
    assert "Milk. [default" not in text and "Or not. [default" not in text


def test_a_subset_of_fields():
    assert [p.name for p in flags_of(map(OPTIONS.get, ("size", "hot")))] == ["size", "hot"]
