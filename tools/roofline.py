"""Time of a training step on one H100, operation by operation, from what the code launches: before and after fusing.

    python tools/roofline.py          # the tables of docs/performance.md

Bytes are of a token and a layer, or of a tile of logits, in both directions; each is in the formula beside its name.
Rates are assumed, not measured: see `Assumed`.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Assumed:
    products: float = 700e12  # FLOP/s, bf16, of these shapes
    fp8_products: float = 1100e12  # tensorwise
    memory: float = 3.0e12  # bytes/s, whole rows
    halves: float = 2.0e12  # torch's element-wise kernels on halves of rows, which load no vectors
    attention_forward: float = 350e12  # FlashAttention 2, long sequences
    attention_backward: float = 270e12
    short: float = 0.35  # of attention's rate that is left at 370 tokens a pair
    launch: float = 3e-6  # seconds of device time that a small kernel takes at least
    host: float = 7e-6  # seconds of the host for a launch
    copy: float = 33e-6  # seconds that a pageable copy holds the host, the queue run dry
    peak: float = 989e12


@dataclass(frozen=True)
class Shape:
    name: str
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocabulary: int
    layers: int

    @property
    def query(self) -> int:
        return self.heads * 128

    @property
    def key(self) -> int:
        return self.kv_heads * 128

    @property
    def matrices(self) -> int:
        """Entries of a layer's weights."""
        return self.hidden * (2 * self.query + 2 * self.key) + 3 * self.hidden * self.ffn


@dataclass(frozen=True)
class Operation:
    tokens: int = 8192
    rows: int = 8  # of a step
    keys: float = 150.0  # that a query sees, MetaMath-like pairs
    scored: float = 0.76  # of the tokens


MODELS = (
    Shape("72B, 4 layers", 8192, 29568, 64, 8, 152064, 4),
    Shape("7B, 8 layers", 4096, 11008, 32, 32, 32000, 8),
)


def operations(model: Shape, row: Operation, rates: Assumed, *, fused: bool, fp8: bool = False) -> dict[str, float]:
    """Seconds of a row, by operation."""
    q, k, h, f, tokens = model.query, model.key, model.hidden, model.ffn, row.tokens
    grouped = model.heads != model.kv_heads
    slow = rates.memory if fused else rates.halves
    per_token = {  # seconds a token and layer
        # Fused: input twice as wide as the result in and the result out; then three in, two out.
        "gate": (16 if fused else 32) * f / slow,
        # Each entry in and out, both ways; as torch's operations two and a half times.
        "rotary": (8 if fused else 20) * (q + k) / slow,
        # Two norms forward (in, out) and backward (two in, one out), two residual sums and autograd's two.
        "norms, residuals": (2 * 4 + 2 * 6 + 12 + 12) * h / rates.memory,
        # Megatron's copy of grouped queries and its one gradient tensor; FlashAttention's fp32 sum and expanded heads.
        "attention's own copies": ((12 * q if grouped else 0) + 4 * (q + 2 * k) + 18 * q) / rates.memory,
        # Values alone are left to gather in the fused kernel; before keys too, added by index, with padding both ways.
        "gathers, padding": (8 * k if fused else 24 * k + 14 * q) / rates.memory,
    }
    layer = {name: seconds * tokens for name, seconds in per_token.items()}
    layer["products"] = 6 * model.matrices * tokens / (rates.fp8_products if fp8 else rates.products)
    attended = 4 * row.keys * tokens * q
    layer["attention"] = attended * (1 / rates.attention_forward + 2.5 / rates.attention_backward) / rates.short
    # The product's own reading of the fp32 sums; before, bf16 written and read, and fp32 read and written.
    layer["weight gradients into fp32"] = (4 if fused else 10) * model.matrices / rates.memory
    layer["host waits for copies"] = 0.0 if fused else 3 * rates.copy
    if fp8:
        layer["FP8 casts"] = (6 * h + 2 * k + 3 * f) * 6 * tokens / rates.memory
    found = {name: model.layers * seconds for name, seconds in layer.items()}
    found["log-probabilities"] = _logprobs(model, row, rates, fused=fused)
    entries = model.layers * model.matrices + 2 * model.vocabulary * h
    # Zeroing, scaling (until it went into the loss), the norm, AdamW on weights, masters, moments.
    found["optimizer"] = (46 if fused else 54) * entries / rates.memory / row.rows
    return found


def _logprobs(model: Shape, row: Operation, rates: Assumed, *, fused: bool) -> float:
    scores = row.tokens * row.scored
    tile_tokens, tile_vocabulary = (4096, 4096) if fused else (2048, 2048)
    tiles = scores / tile_tokens * model.vocabulary / tile_vocabulary
    logits = tile_tokens * tile_vocabulary
    product = 2 * logits * model.hidden / rates.products
    sums = 4 * (tile_tokens + tile_vocabulary) * model.hidden  # bytes of hidden's and the weight's fp32 gradients
    if fused:  # the logits' write and one read; backward the same, and the bf16 gradient out and in twice
        forward = product + 8 * logits / rates.memory + 2 * rates.launch
        backward = 3 * product + (8 + 6) * logits / rates.memory + 2 * sums / rates.memory + 4 * rates.launch
        return tiles * (forward + backward)
    forward = product + 28 * logits / rates.memory + 15 * rates.launch
    backward = 3 * product + 34 * logits / rates.memory + 4 * sums / rates.memory + 15 * rates.launch
    return tiles * max(forward + backward, 43 * rates.host)


def useful_flops(model: Shape, row: Operation) -> float:
    layers = 6 * model.matrices * row.tokens + 12 * row.keys * row.tokens * model.query
    return model.layers * layers + 6 * row.scored * row.tokens * model.hidden * model.vocabulary


def table(rates: Assumed) -> str:
    """Milliseconds of a row of 8192 tokens, before and after, and the MFU that they come to."""
    row = Operation()
    columns = [(model, fused, fp8) for model in MODELS for fp8 in (False, True) for fused in (False, True)]
    columns = [column for column in columns if not (column[2] and column[0] is not MODELS[0])]
    found = [operations(model, row, rates, fused=fused, fp8=fp8) for model, fused, fp8 in columns]
    names = list(dict.fromkeys(name for times in found for name in times))
    titles = [f"{m.name}, {'FP8' if fp8 else 'bf16'}, {'fused' if fused else 'before'}" for m, fused, fp8 in columns]
    lines = [f"| ms a row | {' | '.join(titles)} |", "| --- " + "| ---: " * len(columns) + "|"]
    for name in names:
        cells = [f"{1e3 * times[name]:.1f}" if name in times else "" for times in found]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    totals = [sum(times.values()) for times in found]
    lines.append(f"| all | {' | '.join(f'{1e3 * total:.0f}' for total in totals)} |")
    shares = [
        useful_flops(model, row) / total / rates.peak for (model, _, _), total in zip(columns, totals, strict=True)
    ]
    lines.append(f"| MFU, of the bf16 peak | {' | '.join(f'{share:.0%}' for share in shares)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(Assumed()))
