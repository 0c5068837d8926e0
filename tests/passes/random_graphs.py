"""Random small spiking networks as graph text, for property tests of passes."""

from __future__ import annotations

from hypothesis import strategies as st

from snngraph.graph import SpikingGraph
from snngraph.testing import parse

NEURONS = (
    "decay=0.5, input_gain=0.5, threshold=0.25",
    "decay=0.75, threshold=0.5, reset='soft'",
    "decay=1.0, threshold=0.5, v_reset=-0.125, fire='>'",
    "decay=0.3, threshold=0.3, v_reset=0.3, bias=0.1",
    "decay=0.5, syn_decay=0.5, threshold=0.4",
    "decay=0.9, threshold=0.4, reset='soft', delay='with'",
    "decay=0.9, threshold=0.4, v_reset=0.0, delay='before'",
    "decay=0.5, threshold=0.3, reset='none', floor=-0.5",
    "decay=0.5, threshold=0.2, reset='soft', emit='count', level=0.5",
)

GATES = {
    "t": "sigmoid(reshape(mean({x}, [2, 3, 4]) + amax({x}, [2, 3, 4]), [{T}, -1, 1, 1, 1]))",
    "c": "sigmoid(reshape(mean({x}, [0, 3, 4]) - amax({x}, [0, 3, 4]), [1, -1, {C}, 1, 1]))",
    "s": "sigmoid(reshape(mean({x}, [0, 2]) + amax({x}, [0, 2]), [1, -1, 1, {S}, {S}]))",
    "z": "reshape(mean({x}, [0, 3, 4]), [1, -1, {C}, 1, 1])",  # of any sign
    "k": "0.75",
}
"""Scales of a neuron's input: over time, channels, pixels; the kinds that attention on membrane input has."""


@st.composite
def graph_texts(draw: st.DrawFn) -> str:
    """A network over ``[T, N, 2, 6, 6]``: convolutions with and without batch norm, pools, gates, residuals, linear layers."""
    steps = draw(st.integers(1, 4))
    static = draw(st.booleans())
    lines = [f"x[{'N' if static else f'{steps}, N'}, 2, 6, 6] ->"]
    if static:
        lines[0] = f"k[{steps}, N, 1, 1, 1], x[N, 2, 6, 6] ->"  # k gives the graph its number of steps
        lines += [f"r = expand(reshape(x, [1, -1, 2, 6, 6]), [{steps}, -1, 2, 6, 6])", "flat = reshape(r, [-1, 2, 6, 6])"]
    else:
        lines += ["flat = flatten_time(x)"]
    channels, size, last = 2, 6, "flat"
    spikes: list[tuple[str, int, int]] = []
    for k in range(draw(st.integers(1, 3))):
        out = draw(st.sampled_from([2, 3, 4]))
        bias = draw(st.sampled_from(["None", f"b{k}[{out}]"]))
        lines.append(f"c{k} = conv2d({last}, w{k}[{out}, {channels}, 3, 3], {bias}, padding=1)")
        last, channels = f"c{k}", out
        if draw(st.booleans()):
            lines.append(f"n{k} = batch_norm({last}, g{k}[{out}], e{k}[{out}], m{k}[{out}], v{k}[{out}])")
            last = f"n{k}"
        if size % 2 == 0 and draw(st.booleans()):
            lines.append(f"ap{k} = avg_pool2d({last}, [2, 2], [2, 2])")
            last, size = f"ap{k}", size // 2
        same = [s for s, c, d in spikes if c == channels and d == size]
        if bool(same) and draw(st.booleans()):
            lines.append(f"a{k} = {last} + flatten_time({same[-1]}.s)")
            last = f"a{k}"
        lines.append(f"t{k} = split_time({last})")
        last = f"t{k}"
        for gate in draw(st.lists(st.sampled_from(sorted(GATES)), max_size=3)):
            name = f"{last}{gate}"
            lines.append(f"{name} = {last} * {GATES[gate].format(x=last, T=steps, C=channels, S=size)}")
            last = name
        if draw(st.booleans()):
            lines.append(f"r{k} = relu({last})")
            last = f"r{k}"
        lines.append(f"s{k} = lif({last}, {draw(st.sampled_from(NEURONS))})")
        spikes.append((f"s{k}", channels, size))
        last = f"s{k}.s"
        if draw(st.booleans()):
            lines.append(f"q{k} = sigmoid(mean({last}, [3, 4], True) * 2.0)")
            lines.append(f"y{k} = {last} * q{k}")
            last = f"y{k}"
        lines.append(f"f{k} = flatten_time({last})")
        last = f"f{k}"
        if draw(st.booleans()) and size % 2 == 0:
            lines.append(f"p{k} = max_pool2d({last}, 2)")
            last, size = f"p{k}", size // 2
    lines.append(f"z = linear(reshape({last}, [-1, {channels * size * size}]), u[5, {channels * size * size}], ub[5])")
    lines.append(f"o = lif(split_time(z), {draw(st.sampled_from(NEURONS))})")
    end = draw(st.sampled_from(["mean(o.s, 0)", "o.s", "mean(split_time(z), 0)", "o.v"]))
    if static:
        end = f"{end}, mean(k, 0)"
    return "\n".join([*lines, f"return {end}"])


def graphs() -> st.SearchStrategy[SpikingGraph]:
    """Parsed :func:`graph_texts`."""
    return graph_texts().map(parse)
