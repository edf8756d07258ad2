"""The methods of the table, and every number in which they differ."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """A row of the table. Widths are multiples of the width of the encoder's features.

    Attributes:
        title: In the table.
        loss: Of ``cl_kernels``.
        temperature: Of the loss.
        hidden: Widths of the head's hidden layers.
        output: Width of the embeddings; None: the same for all methods that do not say.
        last_norm: Whether a batch norm ends the head.
        predictor: Width of the predictor's hidden layer.
        momentum: Of the momentum encoder.
        rising: Whether a cosine raises it to 1.
        queue: Length of the queue in batches.
        key_parts: In how many shuffled parts keys are encoded.
        supervised: Whether the loss sees the labels of the training images.
    """

    title: str
    loss: str
    temperature: float | None = None
    hidden: tuple[float, ...] = (1,)
    output: float | None = None
    last_norm: bool = False
    predictor: float | None = None
    momentum: float | None = None
    rising: bool = False
    queue: int = 0
    key_parts: int = 1
    supervised: bool = False


# From the papers, for ImageNet and a ResNet-50 (its features are 2,048 wide), unless said.
METHODS = {
    "simclr": Method("SimCLR", "nt_xent", temperature=0.1),
    # The paper's momentum is 0.999, for 1,000 times as many steps; 0.99 is its authors' for
    # CIFAR-10. Of 65,536 keys, a twentieth of ImageNet, there are here those of 4 batches.
    "moco-v2": Method("MoCo v2", "info_nce", 0.2, momentum=0.99, queue=4, key_parts=8),
    "moco-v3": Method(
        "MoCo v3", "info_nce", 0.2, hidden=(2,), last_norm=True, predictor=2, momentum=0.99,
        rising=True,
    ),
    "supcon": Method("SupCon", "supcon", temperature=0.1, supervised=True),
    "dcl": Method("DCL", "decoupled", temperature=0.1),
    # 0.996 is for 1,000 epochs, 0.99 for 300.
    "byol": Method(
        "BYOL", "negative_cosine", hidden=(2,), predictor=2, momentum=0.99, rising=True
    ),
    "simsiam": Method(
        "SimSiam", "negative_cosine", hidden=(1, 1), output=1, last_norm=True, predictor=1 / 4
    ),
    # Its weights 25, 25 and 1 are the defaults of the loss.
    "vicreg": Method("VICReg", "vicreg", hidden=(4, 4), output=4),
}  # fmt: skip
