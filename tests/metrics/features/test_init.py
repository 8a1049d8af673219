"""The registry of extractors."""

import pytest

from pqdiff.metrics.features import EXTRACTORS, build_features


@pytest.mark.parametrize(("name", "kind"), EXTRACTORS.items())
def test_every_extractor_says_what_it_is(name, kind):
    assert kind.name == name
    assert kind.dim > 0
    assert kind.num_classes is None or kind.num_classes > 1
    assert all(len(digest) >= 8 for digest in kind.weights.known)
    assert kind.preparation


def test_unknown_features_are_refused():
    with pytest.raises(
        ValueError, match=r"features \('efficientnet'\) are unknown: did you mean 'efficientnet_lite0'\?"
    ):
        build_features("efficientnet")


@pytest.mark.parametrize("name", EXTRACTORS)
def test_another_file_is_refused_and_never_replaced_by_random_weights(name, tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"no weights")
    kind = EXTRACTORS[name]
    # Of CLIP only a corner: the whole network takes seconds to build.
    config = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    with pytest.MonkeyPatch.context() as patch:
        if name == "clip":
            patch.setattr(kind, "config", {**config, "image_size": 14, "patch_size": 14, "projection_dim": 4})
        with pytest.raises(
            ValueError, match=rf"SHA-256 of .*weights.pth begins with .* {next(iter(kind.weights.known))[:16]}"
        ):
            build_features(name, path)
        with pytest.raises(FileNotFoundError, match=r"path \(.*nowhere\) is not a file"):
            build_features(name, tmp_path / "nowhere")
