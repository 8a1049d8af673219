"""What a diffusion model may predict, by the names of diffusers."""

# What the loss in `pqdiff.training.diffusion` can train.
TRAINED_PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

# What the schedulers of diffusers, taken together, can sample from.
PREDICTION_TYPES = (*TRAINED_PREDICTION_TYPES, "original_sample", "flow_prediction")
