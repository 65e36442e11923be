"""What a class of fields says of itself to whoever asks Python: every field with its value and meaning."""

from pydantic import BaseModel

from hf_prune.recipe.fields import Group


def describe_fields(model: type[BaseModel]) -> None:
    """Write the fields of a model into its docstring; a group is described by its own."""
    rows = []
    for name, field in model.model_fields.items():
        group = field.annotation if isinstance(field.annotation, type) and issubclass(field.annotation, Group) else None
        if group:
            field.description = field.description or group.__doc__
            describe_fields(group)
            rows.append(f"{name}: {field.description.splitlines()[0]} A group: {', '.join(group.model_fields)}.")
        else:
            default = "" if field.is_required() or field.default in (None, "", ()) else f" Default: {field.default}."
            rows.append(f"{name}: {field.description}{default}")
    model.__doc__ = f"{model.__doc__}\n\n" + "\n".join(rows)
