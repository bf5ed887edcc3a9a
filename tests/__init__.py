import vpeft  # noqa: F401  the torchvision guard comes before any import of torchvision
