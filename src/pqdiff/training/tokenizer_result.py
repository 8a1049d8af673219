"""The result of training an autoencoder: a folder with card and metrics, and the upload to the Hub."""

import json

import torch

from pqdiff.data.files import updated_folder
from pqdiff.hub.cards import TokenizerEvaluation, render_tokenizer_card
from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.models.fingerprint import fingerprint
from pqdiff.training.publish import PublishOptions
from pqdiff.training.session import Session

_LIMITS = (
    "Images unlike those of the training data may be reconstructed worse. The numbers above, if there are any, are those "
    "of the data that they name. rFID and CMMD were not measured."
)


def save_tokenizer(
    session: Session,
    model: AutoencoderPQ,
    publish: PublishOptions,
    *,
    training: str,
    evaluation: TokenizerEvaluation | None = None,
) -> None:
    """Save OUTPUT_DIR/autoencoder with card and metrics, and push it. Only the main process does anything.

    Args:
        session: run that ends.
        model: autoencoder to save.
        publish: where the result goes.
        training: how it was trained, a sentence for the card.
        evaluation: last measurements, or None.
    """
    if not session.accelerator.is_main_process:
        return
    folder = session.folder.claim("autoencoder")
    (folder / "metrics.json").unlink(missing_ok=True)  # there may be no new one
    with updated_folder(folder) as temporary:
        model.save_pretrained(temporary)
        if evaluation:
            (temporary / "metrics.json").write_text(json.dumps(_document(model, evaluation), indent=2) + "\n")
        card = render_tokenizer_card(
            model,
            name=(publish.push_to_hub or session.output_dir.name).rsplit("/", 1)[-1],
            load=f'"{publish.push_to_hub or "THIS_FOLDER"}"',
            license=publish.license or "unknown",
            summary=(
                f"An image tokenizer with {model.bits_per_pixel:g} bits per pixel: transform "
                f"{model.config.transform_type}, quantizer {model.config.quantizer_type}. Trained for "
                f"{session.total_steps:,} steps of {session.layout.global_batch_size} images."
            ),
            training=training,
            evaluation=evaluation,
            limits=_LIMITS,
        )
        card.save(temporary / "README.md")
    session.say(f"saved {folder}")
    publish.push(session, folder)


def _document(model: AutoencoderPQ, evaluation: TokenizerEvaluation) -> dict:
    """Content of metrics.json."""
    return {
        "num_images": evaluation.num_images,
        "data": evaluation.data,
        "metrics": evaluation.metrics,
        "protocol": {
            "resolution": evaluation.resolution,
            "resize": "shorter side, Lanczos, center crop",
            "output": "8-bit",
            "dtype": str(model.dtype).removeprefix("torch."),
            "fingerprint": fingerprint(model),
            "torch": torch.__version__,
        },
    }
