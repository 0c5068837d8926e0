"""Random spellings of one recurrent layer of LIF neurons, and of things that only look like it, as graph text."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

CHARGES = (
    "{v} * {d} + {x}",
    "add.Tensor({x}, mul.Tensor({d}, {v}))",
    "{v} + ({x} - {v}) / {tau}",
    "{v} - ({v} - {rest}) / {tau} + {x}",
    "{v} * {d} + {x} * {g} + {b}",
    "sub.Tensor({x}, neg({v} * {d}))",
    "({v} * {tau} + {x} * {g}) / {tau} * {d}",
)
FIRES = (
    "_to_copy(gt.Scalar({h}, {th}), dtype='float64')",
    "_to_copy(ge.Scalar({h}, {th}), dtype='float64')",
    "_to_copy(gt.Scalar({h} - {th}, 0), dtype='float64')",
    "_to_copy(ge.Scalar({h} / {th} - 1.0, 0), dtype='float64')",
    "where.self(gt.Scalar({h}, {th}), ones_like({h}), zeros_like({h}))",
    "sub.Tensor(1, _to_copy(lt.Scalar({h}, {th}), dtype='float64'))",
    "_to_copy(logical_not(le.Scalar({h}, {th})), dtype='float64')",
    "floor((sign({h} - {th}) + 1.0) / 2.0)",
    "relu(sign({h} - {th}))",
    "_to_copy(ge.Tensor({h}, abs(m[5]) + 0.125), dtype='float64')",
    "_to_copy(gt.Scalar(sigmoid({h} - {th}), 0.5), dtype='float64')",
)
RESETS = (
    "{h}",
    "{h} * sub.Tensor(1, {s})",
    "{h} - {h} * {s}",
    "{h} - {s} * {th}",
    "{h} - {s} * {r}",
    "where.self(gt.Scalar({s}, 0.5), full_like({h}, {r}), {h})",
    "where.self(gt.Scalar({s}, 0.5), {h} - {th}, {h})",
    "{h} * sub.Tensor(1, {s}) + {s} * {r}",
)
BROKEN = (
    ("h", "{h} + {h} * {h} * 0.01"),  # quadratic
    ("h", "tanh({h})"),
    ("h", "{h} - {old} * 0.125"),  # a reset that comes twice
    ("v", "{v} + {before} * 0.25"),  # a second state
    ("s", "_to_copy(gt.Tensor({h}, {old} * 0.25 + 0.5), dtype='float64')"),  # a threshold that rises with the spikes
    ("v", "where.self(gt.Scalar({old}, 0.5), zeros_like({v}), {v})"),  # refractory
    ("v", "{v} * {drift}"),  # a decay that differs from step to step
    ("h", "{h} * exp({h} * 0.01)"),
)


@dataclass(frozen=True)
class Spelling:
    """A graph's text, and what is written in it."""

    text: str
    steps: int


@st.composite
def spellings(draw: st.DrawFn, *, broken: bool = False) -> Spelling:
    """Random inputs, `[T, N, 5]`, through a layer and its neurons; the outputs are the spikes, and what was recorded."""
    steps = draw(st.integers(3 if broken else 2, 4))
    number = st.sampled_from([0.25, 0.3, 0.5, 0.7, 0.9])
    names = {
        "d": draw(st.sampled_from(["0.9", "0.5", "1.0", "0.3", "d[5]"])),
        "g": draw(number),
        "b": draw(st.sampled_from([-0.1, 0.1, 0.25])),
        "tau": draw(st.sampled_from([2.0, 1.5, 4.0])),
        "rest": draw(st.sampled_from([0.0, -0.2])),
        "th": draw(number),
        "r": draw(st.sampled_from([0.0, -0.1, 0.2])),
    }
    charge, fire, reset = (draw(st.sampled_from(forms)) for forms in (CHARGES, FIRES, RESETS))
    floor = draw(st.sampled_from([None, None, -0.4]))
    late = draw(st.booleans())
    record = draw(st.sampled_from(["", "", "h", "v"]))
    start = draw(st.sampled_from(["zeros_like({x})", "full_like({x}, 0.125)"]))
    fault = draw(st.sampled_from(BROKEN)) if broken else ("", "")
    lines = [f"x[{steps}, N, 5] ->"]
    lines += [f"x{t} = linear(select(x, 0, {t}), w[5, 5]) * 2.0" for t in range(steps)]
    lines += [f"v = {start}".format(x="x0"), "before = zeros_like(x0)", "old = zeros_like(x0)", "older = zeros_like(x0)"]
    spikes, recorded = [], []
    for t in range(steps):
        now = {**names, "x": f"x{t}", "v": "v", "h": f"h{t}", "s": f"s{t}", "old": "older", "before": "before"}
        now["drift"] = str(0.5 + 0.1 * t)

        def wrong(place: str, value: str, now: dict[str, object] = now) -> str:
            return fault[1].format(**{**now, place: f"({value})"}) if fault[0] == place else value

        if late and t:
            lines.append("v = " + reset.format(**{**now, "h": f"h{t - 1}", "s": f"s{t - 1}"}))
        lines.append(f"v = {wrong('v', 'v')}")
        lines.append(f"h{t} = " + wrong("h", charge.format(**now)))
        lines.append(f"s{t} = " + (fault[1].format(**now) if fault[0] == "s" else fire.format(**now)))
        lines.append("before = v")
        lines.append(f"older = old\nold = s{t}")
        lines.append("v = " + (f"h{t}" if late else reset.format(**now)))
        if floor is not None and not late:
            lines.append(f"v = clamp_min(v, {floor})")
        spikes.append(f"s{t}")
        recorded.append(f"h{t}" if record == "h" else "v * 1.0")
        lines.append(f"v{t} = v * 1.0")
    outputs = [f"stack([{', '.join(spikes)}])"]
    if record:
        outputs.append(f"stack([{', '.join(f'{record}{t}' for t in range(steps))}])")
    return Spelling("\n".join([*lines, ", ".join(outputs)]), steps)
