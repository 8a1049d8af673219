"""Evaluation of generated images: prompts that are right, seeds of their own, sums that processes share."""

import pytest
import torch

from pqdiff.data.images.reading import to_tensor
from pqdiff.data.scenes.scenes import SceneDataset
from pqdiff.metrics.evaluation import EvaluationRun
from pqdiff.metrics.generation import GenerationEvaluation, PromptsRight

SCENES = SceneDataset(4, 64, seed=3)


def test_renders_are_right_and_those_of_other_prompts_are_not():
    right, wrong = PromptsRight(), PromptsRight()
    for number in range(4):
        right.update(to_tensor(SCENES[number]["image"]), SCENES[number]["caption"])
        wrong.update(to_tensor(SCENES[number]["image"]), SCENES[(number + 1) % 4]["caption"])
    assert set(map(float, right.compute().values())) == {1.0}
    assert wrong.compute()["right_all"] < 0.5


def test_prompts_that_describe_no_scene_are_not_counted():
    metric = PromptsRight()
    metric.update(torch.zeros(3, 64, 64, dtype=torch.uint8), "a photo of a cat")
    assert metric.count == 0
    assert metric.compute()["right_all"].isnan()


def test_each_image_has_its_own_seed_whatever_process_generates_it():
    calls = []

    def generate(prompt, seed):
        calls.append((seed, prompt))
        return to_tensor(SCENES[seed - 10]["image"])  # seeds begin at 10

    for rank, processes in ((0, 1), (0, 2), (1, 2)):
        run = EvaluationRun({"it": GenerationEvaluation(generate, seed=10)}, rank, processes)
        run.run(SCENES)
        assert float(run.evaluations["it"].prompts["prompts"].compute()["right_all"]) == 1
    assert sorted(calls[:4]) == sorted(calls[4:])
    assert [seed for seed, _ in calls[:4]] == [10, 11, 12, 13]


def test_results_say_settings_and_what_is_missing():
    evaluation = GenerationEvaluation(lambda prompt, seed: to_tensor(SCENES[0]["image"]), description={"steps": 2})
    evaluation.add(SCENES[0]["image"], "a photo of a cat", 0)
    result = evaluation.result()
    assert result["metrics"]["right_all"] is None
    assert result["missing"]["right_all"] == "no prompt describes a scene"
    assert (result["protocol"]["name"], result["protocol"]["steps"]) == ("generation", 2)


@pytest.mark.parametrize("network", ["efficientnet_lite0"])
def test_sets_are_compared_by_features(network):
    pytest.importorskip("efficientnet_lite_pytorch")
    from pqdiff.metrics.perception import perception_metrics

    perception = perception_metrics([network], paired=False)
    evaluation = GenerationEvaluation(lambda prompt, seed: to_tensor(SCENES[seed]["image"]), 0, perception)
    for number in range(2):
        evaluation.add(SCENES[number]["image"], SCENES[number]["caption"], number)
    metrics = evaluation.result()["metrics"]
    assert metrics["fd_efficientnet_lite0"] == pytest.approx(0, abs=1e-6)
    assert metrics["right_all"] == 1
