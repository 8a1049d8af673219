"""LoRA layers of a pipeline lie beside its models, in the file that diffusers' `save_lora_weights` writes."""

from os import PathLike
from pathlib import Path

from diffusers import DiffusionPipeline
from huggingface_hub import hf_hub_download

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"  # the name that diffusers saves and loads
_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "token")


def lora_weights(place: str | PathLike, **options) -> Path | None:
    """The file of LoRA layers in a pipeline's folder or repository, if there is one.

    Args:
        place: folder or Hub id.
        options: arguments of `from_pretrained`, of which those about downloads count.
    """
    if Path(place).exists():
        return Path(place) / LORA_WEIGHTS if (Path(place) / LORA_WEIGHTS).is_file() else None
    try:
        where = {key: value for key, value in options.items() if key in _WHERE}
        return Path(hf_hub_download(str(place), LORA_WEIGHTS, **where))
    except Exception:  # there is none; a Hub that cannot be reached fails with the models
        return None


def refuse_lora_layers(pipeline: DiffusionPipeline) -> None:
    """Raise ValueError if a model of the pipeline has LoRA layers: saved with it, they would replace its own weights by
    others that nothing can load."""
    for name, model in pipeline.components.items():
        if getattr(model, "peft_config", None):
            raise ValueError(
                f"{name} has LoRA layers, which are not saved with the models: call fuse_lora() and "
                "unload_lora_weights() before, or save_lora_weights() and unload_lora_weights()"
            )
