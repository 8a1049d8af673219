"""The autoencoder that a run begins with, and its groups of weights."""

import pytest

from pqdiff import AutoencoderPQ
from pqdiff.data.scenes.scenes import SceneDataset
from pqdiff.training.autoencoders import ModelOptions, build_autoencoder, extended, weight_groups
from tests.tiny import tiny_autoencoder
from tests.training.pqgan import MODEL


def test_every_parameter_is_in_the_group_of_its_part():
    model = AutoencoderPQ(**MODEL, refiner_config={"channels": 8, "blocks": 1})
    groups = {name: {id(p) for p in parameters} for name, parameters in weight_groups(model).items()}
    patch, conv = model.transform.parts
    assert groups["linear"] == {id(p) for p in patch.parameters()}
    assert groups["encoder"] == {id(p) for part in (conv.encoder, conv.quant_conv) for p in part.parameters()}
    behind = (conv.post_quant_conv, conv.decoder, model.refiner)
    assert groups["decoder"] == {id(p) for part in behind for p in part.parameters()}
    assert groups["codebooks"] == {id(p) for p in model.quantizer.parameters()}
    assert sum(map(len, groups.values())) == len(list(model.parameters()))


def test_the_closed_form_has_the_classes_that_the_model_asks_for():
    options = ModelOptions(
        "closed_form", "f8-d8-s4-k16", {"quantizer_type": "classified_product", "quantizer_config": {"bases": 2}}
    )
    images = (SceneDataset(8, 64)[i]["image"] for i in range(8))
    model = build_autoencoder(options, images, resolution=64, seed=0)
    assert model.quantizer.bases == 2
    assert model.quantizer.log_scales.std() > 0


def test_changes_that_weights_of_the_initial_model_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"of the initial model is .* in the changed one"):
        extended(tiny_autoencoder(), {"transform_config": {"mid_channels": 4}})
