"""ResNet-18 and the transformer encoder in NumPy float64, from flax's parameters."""

import numpy as np


def conv(x, kernel, stride):
    """Convolution padded by half the kernel's size, ``(B, H, W, c)`` by direct sums."""
    size = kernel.shape[0]
    half = size // 2
    x = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))
    return np.einsum(
        "bhwcij,ijco->bhwo", windows[:, ::stride, ::stride], kernel, optimize=True
    )


def max_pool(x):
    """3x3 windows of stride 2 around every second pixel."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
    return windows[:, ::2, ::2].max((-2, -1))


def resnet18(params, stats, x, *, stem, norm, train):
    """Returns the encoder's ``(features (B, d), updated running statistics)``."""

    def conv_norm(params, stats, x, stride):
        x = conv(x, params["conv"]["kernel"], stride)
        if norm == "group":
            return group_norm(x, params["norm"]), {}
        x, new = batch_norm(x, params["norm"], stats["norm"], train)
        return x, {"norm": new}

    def block(params, stats, x, stride):
        new = {}

        def layer(name, x, stride):
            y, new[name] = conv_norm(params[name], stats.get(name), x, stride)
            return y

        y = np.maximum(layer("first", x, stride), 0)
        y = layer("second", y, 1)
        if "shortcut" in params:
            x = layer("shortcut", x, stride)
        return np.maximum(y + x, 0), new

    new = {}
    stride = 1 if stem == "cifar" else 2
    x, new["stem"] = conv_norm(params["stem"], stats.get("stem"), x, stride)
    x = np.maximum(x, 0)
    if stem == "imagenet":
        x = max_pool(x)
    for name in [f"block{stage}{index}" for stage in range(4) for index in range(2)]:
        stride = 2 if name in ("block10", "block20", "block30") else 1
        x, new[name] = block(params[name], stats.get(name, {}), x, stride)
    if stem == "imagenet":
        return x.mean((1, 2)), new
    batch, height, width, features = x.shape
    x = x[:, : height // 4 * 4, : width // 4 * 4]
    x = x.reshape(batch, height // 4, 4, width // 4, 4, features).mean((2, 4))
    return x.reshape(batch, -1), new


def group_norm(x, params):
    groups = x.reshape(*x.shape[:3], 32, -1)
    mean = groups.mean((1, 2, 4), keepdims=True)
    var = groups.var((1, 2, 4), keepdims=True)
    y = ((groups - mean) / np.sqrt(var + 1e-5)).reshape(x.shape)
    return y * params["scale"] + params["bias"]


def batch_norm(x, params, old, train):
    """Returns ``(normalised x, updated statistics)``."""
    used = new = old
    if train:
        used = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
        new = {name: 0.9 * old[name] + 0.1 * used[name] for name in old}
    y = (x - used["mean"]) / np.sqrt(used["var"] + 1e-5)
    return y * params["scale"] + params["bias"], new


def layer_norm(x, params):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * params["scale"] + params["bias"]


def gelu(x):
    """The approximation by tanh, arXiv:1606.08415."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attention(x, params):
    """Self-attention, one head after another."""
    out = np.broadcast_to(params["out"]["bias"], x.shape).copy()
    for head in range(params["out"]["kernel"].shape[0]):
        query, key, value = (
            x @ params[name]["kernel"][:, head] + params[name]["bias"][head]
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = scores / scores.sum(-1, keepdims=True) @ value
        out += mixed @ params["out"]["kernel"][head]
    return out


def transformer(params, tokens):
    """Features ``(B, width)`` of the encoder."""
    x = params["tokens"]["embedding"][tokens]
    x = x + params["positions"][: tokens.shape[1]]
    blocks = sorted(name for name in params if name.startswith("block"))
    for block in map(params.get, blocks):
        x = x + attention(layer_norm(x, block["norm1"]), block["attention"])
        y = layer_norm(x, block["norm2"])
        y = gelu(y @ block["mlp1"]["kernel"] + block["mlp1"]["bias"])
        x = x + y @ block["mlp2"]["kernel"] + block["mlp2"]["bias"]
    return layer_norm(x, params["norm"]).mean(1)
