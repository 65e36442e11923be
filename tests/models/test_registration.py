"""`import hf_prune` is light, and transformers knows the models of several widths whatever is imported first."""

import itertools
import subprocess
import sys

import pytest

ORDERS = [
    "import hf_prune; from transformers import AutoModelForCausalLM",
    "from transformers import AutoModelForCausalLM; import hf_prune",
    "import hf_prune.models.auto_classes; from transformers import AutoModelForCausalLM",
    "from transformers import AutoConfig; import hf_prune.pipeline; from transformers import AutoModelForCausalLM",
]


@pytest.mark.parametrize("order", ORDERS)
def test_they_are_known_after_any_order_of_imports(order):
    code = f"""{order}
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
for name in ("llama", "gemma3_text", "phi3"):
    config = CONFIG_MAPPING[f"pruned_{{name}}"]
    assert MODEL_FOR_CAUSAL_LM_MAPPING[config].config_class is config
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = "import sys, hf_prune; print(*(m for m in ('torch', 'transformers') if m in sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == ""


def test_every_family_has_a_config_and_a_model_of_its_own():
    from hf_prune.models.auto_classes import classes
    from hf_prune.models.modeling_pruned import FAMILIES

    pairs = [classes(f) for f in FAMILIES]
    assert len({c for pair in pairs for c in pair}) == 2 * len(FAMILIES)
    for (config, model), name in zip(pairs, FAMILIES, strict=True):
        assert config.model_type == f"pruned_{name}" and model.config_class is config
    assert all(a is not b for a, b in itertools.combinations([m for _, m in pairs], 2))
