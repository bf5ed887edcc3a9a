"""The check that sizes given by a user are sizes."""


def positive(**sizes: int) -> None:
    """Raise ValueError, with its name, for the first that is below 1."""
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} is {size}; it has to be at least 1.")
