"""Decoding steps of fixed shapes against plain ones.

CUDA graphs need a GPU. Here a recorder takes their place: it runs a step when it is replayed, and only on the tensors
that were there when it was recorded.
"""

from typing import ClassVar

import pytest
import torch

from nemotron.recipes.nano2.models import MODELS
from nemotron.recipes.nemotron_h import generate as generate_module
from nemotron.recipes.nemotron_h import graphs
from nemotron.recipes.nemotron_h.decoder import AttentionSlots, Decoder, MambaSlots
from nemotron.recipes.nemotron_h.generate import Sampling, generate
from nemotron.recipes.nemotron_h.graphs import StepGraphs, rounded_up
from nemotron.recipes.nemotron_h.model import NemotronH, initialize


@pytest.fixture(scope="module")
def model():
    model = NemotronH(MODELS["tiny"], dtype=torch.float64)
    initialize(model, 0)
    return model


def addresses(decoder):
    tensors = [decoder.lengths]
    for layer in decoder.layers:
        if isinstance(layer, MambaSlots):
            tensors += [layer.ssm, *layer.window]
        elif isinstance(layer, AttentionSlots):
            tensors += [layer.keys, layer.values]
    return [tensor.data_ptr() for tensor in tensors]


class GraphedDecoder(Decoder):
    """A decoder as it is on a GPU."""

    recorded: ClassVar[list[tuple[int, int]]] = []
    replayed: ClassVar[list[tuple[int, int]]] = []

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.graphs = StepGraphs(self.read_token, self.num_slots, torch.device("cpu"), self.recorder)

    def recorder(self, step, ids, positions):
        decoder, where, shape = self, addresses(self), (len(ids), positions)
        self.recorded.append(shape)

        class Recorded:
            def replay(self):
                assert addresses(decoder) == where
                decoder.replayed.append(shape)
                return step(ids, positions)

        return Recorded()


@pytest.fixture
def graphed(monkeypatch):
    monkeypatch.setattr(graphs, "MIN_POSITIONS", 8)
    monkeypatch.setattr(GraphedDecoder, "recorded", [])
    monkeypatch.setattr(GraphedDecoder, "replayed", [])

    def graphed(*arguments, **options):
        with monkeypatch.context() as patch:
            patch.setattr(generate_module, "Decoder", GraphedDecoder)
            return generate(*arguments, **options)

    return graphed


PROMPTS = [[5, 6, 7], list(range(20, 60)), [9], [9], [8] * 17, [5, 6, 7]]


@pytest.mark.parametrize("num_slots", [1, 3, 6])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_steps_of_fixed_shapes_write_the_same_tokens(model, graphed, num_slots, temperature):
    """Rows end at different steps, wait for slots, share prompts, and outgrow the room for keys."""
    sampling = Sampling(max_new_tokens=60, temperature=temperature, stop_ids=(3, 77, 200))
    seeds = range(len(PROMPTS))
    expected = generate(model, PROMPTS, sampling, seeds, num_slots=num_slots)
    found = graphed(model, PROMPTS, sampling, seeds, num_slots=num_slots)
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, rel=1e-11)
    steps = max(len(one.tokens) for one in expected)
    assert len(GraphedDecoder.replayed) > steps / 2
    assert {rows for rows, _ in GraphedDecoder.recorded} <= {1, 2, 4, num_slots}


def assert_steps_agree(*decoders):
    expected, found = ([decoder.step(torch.tensor([1, 2, 3])).clone() for _ in range(3)] for decoder in decoders)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


def test_a_long_row_that_comes_and_goes_leaves_the_graphs_of_the_others_right(model, graphed):
    """It needs more room for keys, so all tensors move; when it has ended, its slot reads nothing any more."""
    plain, graphed_decoder = Decoder(model, 4), GraphedDecoder(model, 4)
    long = tuple(range(20, 60))
    with torch.no_grad():
        for decoder in (plain, graphed_decoder):
            decoder.add([(9,), (5, 6), (7,)])
        assert_steps_agree(plain, graphed_decoder)
        for decoder in (plain, graphed_decoder):
            decoder.add([long])
            decoder.step(torch.tensor([1, 2, 3, 4]))
            decoder.keep([0, 1, 2])
        assert_steps_agree(plain, graphed_decoder)
    assert GraphedDecoder.recorded == [(4, 8), (4, 8)]
    assert graphed_decoder.lengths.tolist()[3] == 1
    rooms = {layer.keys.shape[2] for layer in graphed_decoder.layers if isinstance(layer, AttentionSlots)}
    assert rooms == {128}  # a power of two, and not twice that: the state of a prompt of 40 tokens has room for 80


def test_a_shape_is_recorded_at_its_second_step_and_replayed_from_then_on():
    ran, recorded, replayed = [], [], []

    def step(ids, positions):
        ran.append((ids.tolist(), positions))
        return torch.zeros(len(ids), 5)

    class Recorder:
        def __init__(self, step, ids, positions):
            recorded.append(positions)
            self.ids = ids

        def replay(self):
            replayed.append(self.ids.tolist())
            return torch.zeros(len(self.ids), 5)

    steps = StepGraphs(step, 6, torch.device("cpu"), Recorder)
    shape = steps.shape_for(3, 300)
    assert shape == (4, 512)
    for last in (9, 10, 11):
        assert steps(torch.tensor([7, 8, last]), shape).shape == (3, 5)
    assert (ran, recorded, replayed) == ([([7, 8, 9, 0], 512)], [512], [[7, 8, 10, 0], [7, 8, 11, 0]])
    steps.forget()
    steps(torch.tensor([1]), shape)
    assert len(ran) == 2


def test_shapes_are_powers_of_two_up_to_the_slots():
    assert [rounded_up(number) for number in (1, 2, 3, 4, 5, 1000)] == [1, 2, 4, 4, 8, 1024]
    steps = StepGraphs(lambda ids, positions: ids, 6, torch.device("cpu"), None)
    assert [steps.shape_for(rows, 1)[0] for rows in (1, 2, 3, 5, 6)] == [1, 2, 4, 6, 6]
    assert steps.shape_for(1, 1)[1] == graphs.MIN_POSITIONS


def test_without_a_recorder_every_step_runs_plainly():
    ran = []
    steps = StepGraphs(lambda ids, positions: ran.append(len(ids)) or ids[:, None], 4, torch.device("cpu"), None)
    for _ in range(3):
        steps(torch.tensor([1]), steps.shape_for(1, 1))
    assert ran == [1, 1, 1]
