"""The login of this machine, which is not for the visitors of a Space."""

import os

from huggingface_hub import constants, get_token

from hf_prune.errors import VARIABLES, HfPruneError

GONE = os.devnull
"""A file that holds nothing, and that nothing can be put into."""


def forget_login() -> None:
    """Forget every way of holding a token, for this process and those that it starts.

    Raises:
        HfPruneError: there is one all the same.
    """
    # What exchanges a token of the machine's own, and where sign-ins are kept.
    for name in (*VARIABLES, "HF_OIDC_RESOURCE", "HF_OIDC_TOKEN"):
        os.environ.pop(name, None)
    os.environ["HF_TOKEN_PATH"] = constants.HF_TOKEN_PATH = GONE
    constants.HF_STORED_TOKENS_PATH = GONE
    try:
        left = get_token()
    except OSError:
        left = None
    if left is not None:
        raise HfPruneError("This machine has a login that cannot be taken away; visitors would use it. Log out first.")
