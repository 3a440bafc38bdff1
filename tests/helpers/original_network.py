"""The original's network as its Torch7 tree, with random weights, and an interpreter of the tree.

Written from the original's model file (SEED: Network), sharing no code with irv2: the reference
for imported `.t7` files.
"""

import numpy as np
import torch
from torch import Tensor as TorchTensor
from torch.nn import functional as F
from torch7_writer import Object, Storage, Tensor, sequence


class Tree:
    """Builds the tree with weights from `seed`; `kind` is Float or Cuda."""

    def __init__(self, *, seed: int = 0, kind: str = "Cuda", num_classes: int = 1000) -> None:
        self.rng = np.random.default_rng(seed)
        self.kind = kind
        self.network = self.build(num_classes)

    def tensor(self, array: np.ndarray) -> Tensor:
        return Tensor(array.astype(np.float32), self.kind)

    def empty(self) -> Tensor:
        return self.tensor(np.empty(0))

    def module(self, type_name: str, version: int = 1, **fields: object) -> Object:
        state = {
            "output": self.empty(),
            "gradInput": self.empty(),
            "train": False,
            "_type": f"torch.{self.kind}Tensor",
        }
        return Object(type_name, state | fields, version)

    def conv(
        self,
        ins: int,
        outs: int,
        kw: int,
        kh: int,
        stride: int = 1,
        pw: int = 0,
        ph: int = 0,
        *,
        relu: bool = True,
    ) -> Object:
        """Arguments in cudnn's order: width before height."""
        std = np.sqrt(2 / (kw * kh * ins))
        convolution = self.module(
            "cudnn.SpatialConvolution",
            2,
            nInputPlane=ins,
            nOutputPlane=outs,
            kW=kw,
            kH=kh,
            dW=stride,
            dH=stride,
            padW=pw,
            padH=ph,
            groups=1,
            weight=self.tensor(std * self.rng.standard_normal((outs, ins, kh, kw), np.float32)),
        )
        batch_norm = self.module(
            "nn.SpatialBatchNormalization",
            2,
            eps=1e-5,
            momentum=0.1,
            affine=True,
            weight=self.tensor(self.rng.uniform(0.8, 1.2, outs)),
            bias=self.tensor(self.rng.normal(0, 0.1, outs)),
            running_mean=self.tensor(self.rng.normal(0, 0.1, outs)),
            running_var=self.tensor(self.rng.uniform(0.5, 1.5, outs)),
        )
        last = [self.module("cudnn.ReLU", inplace=True)] if relu else []
        return self.sequential(convolution, batch_norm, *last)

    def sequential(self, *modules: Object) -> Object:
        return self.module("nn.Sequential", modules=sequence(*modules))

    def branches(self, *modules: Object) -> Object:
        table = self.module("nn.ConcatTable", modules=sequence(*modules))
        return self.sequential(table, self.module("nn.JoinTable", dimension=2, nInputDims=4))

    def pool(self) -> Object:
        return self.module("nn.SpatialMaxPooling", kW=3, kH=3, dW=2, dH=2, padW=0, padH=0)

    def stem(self) -> list[Object]:
        return [
            self.conv(3, 32, 3, 3, 2),
            self.conv(32, 32, 3, 3),
            self.conv(32, 64, 3, 3, 1, 1, 1),
            self.branches(self.pool(), self.conv(64, 96, 3, 3, 2)),
            self.branches(
                self.sequential(self.conv(160, 64, 1, 1), self.conv(64, 96, 3, 3)),
                self.sequential(
                    self.conv(160, 64, 1, 1), self.conv(64, 64, 7, 1, 1, 3, 0),
                    self.conv(64, 64, 1, 7, 1, 0, 3), self.conv(64, 96, 3, 3),
                ),
            ),
            self.branches(self.conv(192, 192, 3, 3, 2), self.pool()),
        ]  # fmt: skip

    def residual(self, channels: int, joined: int, *paths: Object) -> Object:
        body = self.sequential(
            self.branches(*paths),
            self.conv(joined, channels, 1, 1, relu=False),
            self.module("nn.MulConstant", constant_scalar=0.1),
        )
        return self.sequential(
            self.module("nn.ConcatTable", modules=sequence(self.module("nn.Identity"), body)),
            self.module("nn.CAddTable", inplace=True),
            self.module("cudnn.ReLU", inplace=True),
        )

    def block_a(self) -> Object:
        return self.residual(
            384, 128, self.sequential(self.conv(384, 32, 1, 1)),
            self.sequential(self.conv(384, 32, 1, 1), self.conv(32, 32, 3, 3, 1, 1, 1)),
            self.sequential(
                self.conv(384, 32, 1, 1), self.conv(32, 48, 3, 3, 1, 1, 1),
                self.conv(48, 64, 3, 3, 1, 1, 1),
            ),
        )  # fmt: skip

    def block_b(self) -> Object:
        return self.residual(
            1152, 384, self.sequential(self.conv(1152, 192, 1, 1)),
            self.sequential(
                self.conv(1152, 128, 1, 1), self.conv(128, 160, 1, 7, 1, 0, 3),
                self.conv(160, 192, 7, 1, 1, 3, 0),
            ),
        )  # fmt: skip

    def block_c(self) -> Object:
        return self.residual(
            2048, 448, self.sequential(self.conv(2048, 192, 1, 1)),
            self.sequential(
                self.conv(2048, 192, 1, 1), self.conv(192, 224, 1, 3, 1, 0, 1),
                self.conv(224, 256, 3, 1, 1, 1, 0),
            ),
        )  # fmt: skip

    def build(self, num_classes: int) -> Object:
        reduction_a = self.branches(
            self.pool(), self.conv(384, 384, 3, 3, 2),
            self.sequential(
                self.conv(384, 256, 1, 1), self.conv(256, 256, 3, 3, 1, 1, 1),
                self.conv(256, 384, 3, 3, 2),
            ),
        )  # fmt: skip
        reduction_b = self.branches(
            self.pool(),
            self.sequential(self.conv(1152, 256, 1, 1), self.conv(256, 384, 3, 3, 2)),
            self.sequential(self.conv(1152, 256, 1, 1), self.conv(256, 256, 3, 3, 2)),
            self.sequential(
                self.conv(1152, 256, 1, 1), self.conv(256, 256, 3, 3, 1, 1, 1),
                self.conv(256, 256, 3, 3, 2),
            ),
        )  # fmt: skip
        view = self.module("nn.View", numElements=2048, numInputDims=3)
        view.fields["size"] = Storage(np.array([2048]), "Long")
        classifier = [
            self.module("cudnn.SpatialAveragePooling", kW=8, kH=8, dW=1, dH=1, padW=0, padH=0),
            view,
            self.module("nn.Dropout", p=0.2, v2=True, inplace=False, noise=self.empty()),
            self.module(
                "nn.Linear",
                weight=self.tensor(self.rng.uniform(-1, 1, (num_classes, 2048)) / np.sqrt(2048)),
                bias=self.tensor(self.rng.normal(0, 0.1, num_classes)),
            ),
        ]
        return self.sequential(
            *self.stem(),
            *(self.block_a() for _ in range(5)),
            reduction_a,
            *(self.block_b() for _ in range(10)),
            reduction_b,
            *(self.block_c() for _ in range(5)),
            *classifier,
        )


def modules_of(tree: Object) -> list[Object]:
    """Every module of a tree, in forward order."""
    children = tree.fields.get("modules", {}).values()
    return [tree, *(module for child in children for module in modules_of(child))]


@torch.inference_mode()
def interpret(module: Object, x):
    """What Torch7 would compute in evaluate(): a tensor, or the list that a ConcatTable gives."""
    fields = module.fields
    children = list(fields.get("modules", {}).values())

    def tensor(name: str) -> TorchTensor:
        return torch.from_numpy(fields[name].array)

    match module.type_name.rpartition(".")[2]:
        case "Sequential":
            for child in children:
                x = interpret(child, x)
            return x
        case "ConcatTable":
            return [interpret(child, x) for child in children]
        case "JoinTable":
            return torch.cat(x, dim=1)
        case "CAddTable":
            return x[0] + x[1]
        case "MulConstant":
            return x * fields["constant_scalar"]
        case "Identity" | "Dropout":
            return x
        case "ReLU":
            return x.clamp(min=0)
        case "View":
            return x.reshape(len(x), fields["numElements"])
        case "Linear":
            return x @ tensor("weight").T + tensor("bias")
        case "SpatialMaxPooling":
            return F.max_pool2d(x, 3, 2)
        case "SpatialAveragePooling":
            return F.avg_pool2d(x, (fields["kH"], fields["kW"]))
        case "SpatialConvolution":
            stride, padding = (fields["dH"], fields["dW"]), (fields["padH"], fields["padW"])
            return F.conv2d(x, tensor("weight"), None, stride, padding)
        case "SpatialBatchNormalization":
            scale = tensor("weight") / (tensor("running_var") + fields["eps"]).sqrt()
            shift = tensor("bias") - tensor("running_mean") * scale
            return x * scale[:, None, None] + shift[:, None, None]
    raise AssertionError(module.type_name)
