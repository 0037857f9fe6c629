"""Settings of a run of seconds: SimCLR with a small head, SqueezeNet, two steps an epoch on drawn shapes."""

SHORT_RUN = {
    "method": {"name": "simclr", "hidden": 32, "dim": 16},
    "backbone": {"name": "squeezenet"},
    "data": {"name": "shapes", "n_train": 64, "n_test": 32, "image_size": 32},
    "evaluators": ["knn"],
    "batch_size": 32,
    "checkpoint_every": 1,
    "device": "cpu",
    "report": False,
    "tune": "off",
    "quiet": True,
}
