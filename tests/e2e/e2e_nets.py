"""Networks whose weights hide in other places than modules of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(16, 3, 3, 3) * 0.1)
        self.matrix = nn.Parameter(torch.randn(40, 16) * 0.1)
        self.inner = nn.ModuleDict({"a": nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())})

    def forward(self, x: Tensor) -> Any:
        x = self.inner["a"](F.relu(F.conv2d(x, self.kernel, padding=1)))
        return x.mean((2, 3)) @ self.matrix.t()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.b(F.relu(self.a(x)))))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.again = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        for _ in range(3):
            x = F.relu(self.again(x))
        return self.head(x.mean((2, 3)))


class Up(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 32, 3, stride=2, padding=1), nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1)
        self.group = nn.ConvTranspose2d(16, 8, 2, groups=4)

    def forward(self, x: Tensor) -> Any:
        return self.group(F.relu(self.norm(self.up(F.relu(self.down(x))))))


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(4, 32, 5, padding=2),
            nn.BatchNorm1d(32),
            nn.ReLU(),
            nn.Conv1d(32, 32, 3, groups=4),
            nn.ReLU(),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(32, 10),
        )

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv3d(2, 16, 3, padding=1),
            nn.BatchNorm3d(16),
            nn.ReLU(),
            nn.Conv3d(16, 16, 3),
            nn.Flatten(),
            nn.Linear(128, 10),
        )

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 32, 3),
            nn.BatchNorm2d(32),
            nn.ReLU6(),
            nn.Conv2d(32, 32, 3, groups=32),
            nn.BatchNorm2d(32),
            nn.ReLU6(),
            nn.Conv2d(32, 64, 1, groups=2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )

    def forward(self, x: Tensor) -> Any:
        return self.net(x)


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 64), nn.Linear(64, 10, bias=False)

    def forward(self, x: Tensor) -> Any:
        return self.b(F.gelu(self.a(x))).mean(1)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(16, 64), nn.Linear(8, 64), nn.Linear(64, 10)

    def forward(self, left: Tensor, right: Tensor) -> Any:
        return self.head(F.relu(self.a(left) + self.b(right)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend, self.norm = nn.MultiheadAttention(32, 4, batch_first=True), nn.LayerNorm(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.norm(x + self.attend(x, x, x, need_weights=False)[0]).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.gates = nn.Embedding(200, 16), nn.LSTM(16, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.gates(self.words(x))[0][:, -1])


class Shrunk(nn.Module):
    """Halves what it read, of any size, without aliasing: Resize has that from opset 18 on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Any:
        y = F.interpolate(self.conv(x), scale_factor=0.5, mode="bilinear", antialias=True)
        return self.head(y.mean((2, 3)))


class LooseNorm(nn.Module):
    """BN that cannot be folded: before any layer, after ReLU, and where the layer is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.n0, self.c1, self.n1 = nn.BatchNorm2d(3), nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32)
        self.c2, self.n2, self.head = nn.Conv2d(32, 32, 3), nn.BatchNorm2d(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Any:
        x = self.c2(self.n1(F.relu(self.c1(self.n0(x)))))
        return self.head((x + self.n2(x)).mean((2, 3)))


class Named(nn.Module):
    """Several outputs, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Any:
        return {"z": self.a(x), "others": (self.b(x),)}


# -- networks that run, and that no tool can take as they are -------------------------------------


class Remembers(nn.Module):
    """Keeps a table for the shape that it saw last, as detection heads do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 16, 3)
        self.shape: Any = None

    def forward(self, x: Tensor) -> Any:
        y = self.b(F.relu(self.a(x)))
        if self.shape != y.shape:
            self.table, self.shape = torch.arange(y.shape[-1], dtype=torch.float32), y.shape
        return (y + self.table).view(y.shape[0], 16, -1)


class BareNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32, affine=False)
        self.b, self.head = nn.Linear(32, 64), nn.Linear(64, 10)
        self.m = nn.BatchNorm1d(64, affine=False)
        nn.init.uniform_(self.n.running_mean, -0.3, 0.3)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.n(self.a(x))).mean((2, 3))
        return self.head(F.relu(self.m(self.b(x))))


class Filter(nn.Module):
    """Holds a fixed filter, and a window that is a view of something longer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fir", torch.randn(32, 3, 3, 3) * 0.3)
        self.register_buffer("window", torch.hann_window(9)[1:])
        self.a, self.head = nn.Conv2d(32, 32, 3), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Any:
        x = F.relu(F.conv2d(x * self.window, self.fir))
        return self.head(F.relu(self.a(x)).mean((2, 3)))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        weight_norm = nn.utils.parametrizations.weight_norm
        spectral_norm = nn.utils.parametrizations.spectral_norm
        self.a = weight_norm(nn.Conv2d(3, 32, 3))
        self.b = spectral_norm(nn.Conv2d(32, 32, 3))
        self.head = weight_norm(nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.LazyConv2d(32, 3), nn.LazyConv2d(32, 3), nn.LazyLinear(10)

    def forward(self, x: Tensor) -> Any:
        return self.head(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


@dataclass
class Found:
    boxes: Tensor
    nothing: Tensor | None
    more: dict[str, Tensor]


class Keyword(nn.Module):
    """Takes keywords only, and returns a dataclass with nothing in one of its fields."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3), nn.Linear(32, 10)

    def forward(self, *, image: Tensor, scale: Tensor) -> Any:
        x = F.relu(self.b(F.relu(self.a(image)))).mean((2, 3)) * scale
        return Found(self.head(x), None, {"features": x, "again": x * 2})


class Dictionary(Keyword):
    """Takes one dictionary."""

    def forward(self, batch: dict[str, Tensor]) -> Any:  # type: ignore[override]
        return super().forward(image=batch["image"], scale=batch["scale"])


class Skips(Keyword):
    """Has an optional input between those that are given."""

    def forward(  # type: ignore[override]
        self, image: Tensor, mask: Tensor | None = None, scale: Tensor | None = None
    ) -> Any:
        assert mask is None
        assert scale is not None
        return list(super().forward(image=image, scale=scale).more.items())
