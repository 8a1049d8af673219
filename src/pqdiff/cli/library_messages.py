"""What diffusers, transformers and huggingface_hub print about themselves."""

import sys


def silence_libraries(quiet: bool) -> None:
    """Stop log messages and progress bars of the libraries. Call it before pipelines are imported or models loaded.

    Args:
        quiet: whether to hide the progress of downloads as well. It is always hidden where stderr is not a terminal.
    """
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    if quiet or not sys.stderr.isatty():
        disable_progress_bars()
