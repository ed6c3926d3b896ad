"""Small models whose keys are weighed or masked by an input, written in many ways."""

from __future__ import annotations

import onnx
from onnx import parser

TOKENS, CHANNELS = 7, 4

CAST = "real = Cast <to = 1> (mask)"
POLICY = """
    columns = Reshape (mask, across)
    dropped = Sub (one, columns)
    own = Mul (dropped, eye)
    keep = Add (columns, own)
"""
WEIGHED = """
    peak = ReduceMax <keepdims = 1> (scores, last)
    shifted = Sub (scores, peak)
    powers = Exp (shifted)
    weighed = Mul (powers, keep)
    total = ReduceSum <keepdims = 1> (weighed, last)
"""
BOTH = """
    above = Add (weighed, eps_above)
    below = Add (total, eps_below)
    weights = Div (above, below)
"""

FORMS = {
    "policy": ("float", POLICY + WEIGHED + BOTH),
    "no epsilon in front": (
        "float",
        POLICY + WEIGHED + "below = Add (total, eps_below) weights = Div (weighed, below)",
    ),
    "no epsilon": ("float", POLICY + WEIGHED + "weights = Div (weighed, total)"),
    "no diagonal": ("float", "keep = Reshape (mask, across)" + WEIGHED + BOTH),
    "Boolean policy": ("bool", CAST + POLICY.replace("(mask", "(real") + WEIGHED + BOTH),
    "integer policy": ("int64", CAST + POLICY.replace("(mask", "(real") + WEIGHED + BOTH),
    "squared weights": ("float", "wide = Reshape (mask, across) keep = Mul (wide, wide)" + WEIGHED + BOTH),
    "of a class token": (
        "float",
        """
        rest = Slice (mask, one_int, tokens, one_int)
        sizes = Shape <end = 1> (mask)
        size = Concat <axis = 0> (sizes, unit)
        first = ConstantOfShape <value = float[1] {1.0}> (size)
        whole = Concat <axis = 1> (first, rest)
        """
        + POLICY.replace("(mask", "(whole")
        + WEIGHED
        + BOTH,
    ),
    "mask": (
        "bool",
        "wide = Reshape (mask, across) masked = Where (wide, scores, infinite) weights = Softmax <axis = -1> (masked)",
    ),
    "padding": (
        "bool",
        "wide = Reshape (mask, across) masked = Where (wide, infinite, scores) weights = Softmax <axis = -1> (masked)",
    ),
    "added mask": (
        "bool",
        """
        added = Where (mask, zero, infinite)
        wide = Reshape (added, across)
        masked = Add (scores, wide)
        weights = Softmax <axis = -1> (masked)
        """,
    ),
    "guarded mask": (
        "bool",
        """
        wide = Reshape (mask, across)
        masked = Where (wide, scores, infinite)
        plain = Softmax <axis = -1> (masked)
        bad = IsNaN (plain)
        weights = Where (bad, zero, plain)
        """,
    ),
}
REFUSED = {
    "a finite mask": (
        "bool",
        "wide = Reshape (mask, across) masked = Where (wide, scores, large) weights = Softmax <axis = -1> (masked)",
        "no infinite constant",
    ),
    "a float mask": (
        "float",
        """
        columns = Reshape (mask, across)
        off = Sub (one, columns)
        added = Mul (off, large)
        masked = Add (scores, added)
        weights = Softmax <axis = -1> (masked)
        """,
        "may be anything",
    ),
    "weights of queries": ("float", "keep = Reshape (mask, down)" + WEIGHED + BOTH, "another column"),
    "products of weights": (
        "float",
        "row = Reshape (mask, across) column = Reshape (mask, down) keep = Mul (row, column)" + WEIGHED + BOTH,
        "not what|made of several|batch elements",
    ),
    "weights in a cycle": (
        "float",
        """
        row = Reshape (mask, across)
        turned = Gather <axis = 3> (row, turns)
        flat = Reshape (turned, square)
        keep = Add (flat, zero)
        """
        + WEIGHED
        + BOTH,
        "another column",
    ),
    "a second diagonal": ("float", POLICY.replace("eye", "two") + WEIGHED + BOTH, "weighs 1 for every"),
    "a key that always counts": ("float", POLICY.replace("eye", "first_key") + WEIGHED + BOTH, "weighs 1 for every"),
    "epsilons of their own": (
        "float",
        POLICY + WEIGHED + "above = Add (weighed, ramp) weights = Div (above, total)",
        "different numbers",
    ),
    "no maximum, but an epsilon": (
        "float",
        POLICY
        + """
        powers = Exp (scores)
        weighed = Mul (powers, keep)
        total = ReduceSum <keepdims = 1> (weighed, last)
        """
        + BOTH,
        "not one of weighed exponentials",
    ),
    "weights of all batch elements": (
        "float",
        "all = ReduceMax <keepdims = 1> (mask, none) keep = Reshape (all, across)" + WEIGHED + BOTH,
        "not what|made of several|batch element",
    ),
}


def weighed_attention(kind: str, body: str, batch: int | None = None) -> onnx.ModelProto:
    """Attention over ``x`` (batch x tokens x channels) whose ``weights`` come from ``scores`` and the input ``mask``
    (batch x tokens x 1), of the type ``kind``, by ``body``.
    """
    first = "N" if batch is None else str(batch)
    eye = _numbers("eye", [float(i == j) for i in range(TOKENS) for j in range(TOKENS)])
    two = _numbers("two", [float(j in (i, 0)) for i in range(TOKENS) for j in range(TOKENS)])
    always = _numbers("first_key", [float(j == 0) for _ in range(TOKENS) for j in range(TOKENS)])
    turns = ", ".join(str((i + j) % TOKENS) for i in range(TOKENS) for j in range(TOKENS))
    ramp = ", ".join(f"{0.01 * (i + 1):.2f}" for i in range(TOKENS))
    text = f"""
    <ir_version: 9, opset_import: ["" : 18]>
    weighed (float[{first}, {TOKENS}, {CHANNELS}] x, {kind}[{first}, {TOKENS}, 1] mask)
    => (float[{first}, {TOKENS}, {CHANNELS}] y)
    <int64[4] across = {{-1, 1, 1, {TOKENS}}}, int64[4] down = {{-1, 1, {TOKENS}, 1}},
     int64[4] split = {{-1, {TOKENS}, 2, 2}}, int64[3] joined = {{-1, {TOKENS}, {CHANNELS}}}, int64[1] last = {{-1}},
     int64[1] none = {{0}}, int64[1] one_int = {{1}}, int64[1] tokens = {{{TOKENS}}}, int64[2] unit = {{1, 1}},
     int64[4] square = {{-1, 1, {TOKENS}, {TOKENS}}}, int64[{TOKENS * TOKENS}] turns = {{{turns}}},
     float[1] one = {{1.0}}, float[1] zero = {{0.0}}, float[1] infinite = {{-inf}}, float[1] large = {{-10000.0}},
     float[1] scale = {{0.7}}, float[1] eps_above = {{0.001}}, float[1] eps_below = {{0.01}},
     float[{TOKENS}] ramp = {{{ramp}}}, {eye}, {two}, {always}>
    {{
        parted = Reshape (x, split)
        q = Transpose <perm = [0, 2, 1, 3]> (parted)
        k = Transpose <perm = [0, 2, 3, 1]> (parted)
        product = MatMul (q, k)
        scores = Mul (product, scale)
        {body}
        mixed = MatMul (weights, q)
        ordered = Transpose <perm = [0, 2, 1, 3]> (mixed)
        y = Reshape (ordered, joined)
    }}
    """
    return parser.parse_model(text)


def _numbers(name: str, values: list[float]) -> str:
    return f"float[1, 1, {TOKENS}, {TOKENS}] {name} = {{{', '.join(map(str, values))}}}"
