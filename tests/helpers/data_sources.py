"""A data set from its options, and CIFAR's files in small, for tests."""

import numpy as np


def source(cls, **options):
    return cls(cls.Config(**options))


def mistakes(cls, **options):
    return list(cls.Config(**options).check())


def cifar_records(count, label_bytes, classes, seed):
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 256, (count, 32, 32, 3), np.uint8)
    labels = draw.integers(0, classes, (count, label_bytes), np.uint8)
    records = np.concatenate([labels, pixels.transpose(0, 3, 1, 2).reshape(count, -1)], axis=1)
    return records.tobytes(), pixels, labels[:, -1]


def cifar10_files():
    """{name: content} of a tiny data set, with its pixels and labels."""
    files, pixels, labels = {}, [], []
    for k in range(1, 6):
        content, p, y = cifar_records(4, 1, 10, k)
        files[f"data_batch_{k}.bin"] = content
        pixels.append(p)
        labels.append(y)
    files["test_batch.bin"] = cifar_records(3, 1, 10, 9)[0]
    files["batches.meta.txt"] = b"\n".join(b"name%d" % i for i in range(10)) + b"\n\n"
    return files, np.concatenate(pixels), np.concatenate(labels)


def write_all(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
