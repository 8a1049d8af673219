"""Choose the device that a command runs on."""


def choose_device(name: str | None) -> str:
    """The device `name`, or if it is None the accelerator of this machine, or "cpu" if there is none.

    Raises:
        ValueError: if this machine has no device of that name.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device ({name}) cannot be used: {reason[:200]}") from None
    return name
