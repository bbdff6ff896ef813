"""The object that keeps sparse weights in a model: what it does whatever the method, mostly shown with ST-3."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import PHASES, RAMP, SPARSE, STEPS, assert_same, batch, network, sgd, smooth, start, states, train
from torch import nn

from st3 import Sparsifier, UserError
from st3.durations import Length
from st3.sparsify import PolynomialRamp
from st3.sparsify.methods import GMP, STR, RigL

# What the model is --------------------------------------------------------------------------------------------------


def test_the_model_stays_an_ordinary_module():
    model = network()
    keys = list(model.state_dict())
    optimizer = sgd(model)
    Sparsifier(model, "st3", 0.8).attach(optimizer)
    train(model, optimizer, range(3))
    assert list(model.state_dict()) == keys
    assert type(model[0]) is nn.Conv2d
    assert type(model[0].weight) is nn.Parameter
    untouched = network()
    untouched.load_state_dict(model.state_dict())
    images, _ = batch(0)
    assert torch.equal(untouched.eval()(images), copy.deepcopy(model).eval()(images))


def test_weights_are_the_models_own_and_sparse_while_the_raw_ones_are_not():
    model, optimizer, sparsifier = start("st3", 0.9)
    train(model, optimizer, range(3))
    assert list(sparsifier.weights) == ["0", "3", "4", "7", "9"]
    for name, weight in sparsifier.weights.items():
        assert weight is model.get_submodule(name).weight
        raw = sparsifier.raw_weights()[name]
        assert raw.data_ptr() != weight.data_ptr()
        assert (raw != 0).all()
    assert sparsifier.prunable == 216 + 72 + 288 + 2048 + 160
    assert sparsifier.zeros().sum() > 0.89 * sparsifier.prunable


def test_layers_are_all_that_could_be_pruned_as_they_stand():
    model, optimizer, sparsifier = start("st3", 0.7, exclude=["3"])
    assert [layer.threshold for layer in sparsifier.layers()] == [0.0] * 5
    train(model, optimizer, range(3))
    for layer, name in zip(sparsifier.layers(), ["0", "3", "4", "7", "9"], strict=True):
        weight = model.get_submodule(name).weight
        assert (layer.name, layer.shape) == (name, tuple(weight.shape))
        assert layer.pruned == (name != "3")
        assert layer.zeros == (weight == 0).sum().item()
        assert (layer.threshold > 0) == (layer.zeros > 0) == layer.pruned
    thresholds = [layer.threshold for layer in sparsifier.layers() if layer.pruned]
    assert thresholds == pytest.approx(sparsifier.thresholds().tolist())


def test_during_the_step_the_optimizer_sees_raw_weights_in_the_models_own_parameters():
    model, optimizer, sparsifier = start("st3", 0.7)
    train(model, optimizer, [0])
    homes = {name: weight.data_ptr() for name, weight in sparsifier.weights.items()}
    seen = []

    def look(*_):
        for name, weight in sparsifier.weights.items():
            assert torch.equal(weight, sparsifier.raw_weights()[name])
        seen.append(True)

    optimizer.register_step_pre_hook(look)
    train(model, optimizer, [1])
    assert seen
    assert {name: weight.data_ptr() for name, weight in sparsifier.weights.items()} == homes


def test_a_network_on_meta_has_layers_but_no_zeros():
    with torch.device("meta"):
        model = network()
    sparsifier = Sparsifier(model, GMP(every=4), RAMP, length=STEPS).attach(sgd(model))
    assert [layer.zeros for layer in sparsifier.layers()] == [0] * 5
    assert sparsifier.mask_updates() == [4, 8, 12, 16, 18]


# Which weights ------------------------------------------------------------------------------------------------------


def test_several_parameter_groups_and_frozen_weights():
    model = network()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    groups = [{"params": model[9].parameters(), "lr": 0.01}]
    groups += [{"params": [p for m in model[:9] for p in m.parameters() if p.requires_grad]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(model, "st3", 0.8).attach(optimizer)
    train(model, optimizer, range(3))
    assert torch.equal(model[0].weight, frozen)
    assert [layer.pruned for layer in sparsifier.layers()] == [False, True, True, True, True]
    assert abs(sparsifier.zeros().sum().item() - 0.8 * sparsifier.prunable) <= 1


class Tied(nn.Module):
    """Two layers share a weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(self.second(self.first(x.flatten(1)[:, :6])))


def test_tied_weights_count_once():
    model = Tied()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, "st3", 0.5).attach(optimizer)
    train(model, optimizer, range(3))
    assert sparsifier.prunable == 36 + 30
    assert model.second.weight is model.first.weight
    assert abs(sparsifier.zeros().sum().item() - 33) <= 1


class Attends(nn.Module):
    """Images as sequences of rows."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(10, 2, batch_first=True, **options)
        self.head = nn.Linear(10, 5)

    def forward(self, images):
        rows = images.mean(1)
        mixed, _ = self.attention(rows, rows, rows, need_weights=False)
        return self.head(mixed.mean(1))


@pytest.mark.parametrize("method", ["st3", GMP(every=1), RigL(every=2, until=8)], ids=["st3", "gmp", "rigl"])
def test_the_input_projections_of_attention_are_pruned_like_others(method):
    model = Attends()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, method, 0.7).attach(optimizer)
    assert sparsifier.pruned_layers == ["attention.in_proj", "attention.out_proj", "head"]
    losses = train(model, optimizer, [0, 1] * 5)
    assert sparsifier.prunable == 300 + 100 + 50
    assert abs(sparsifier.zeros().sum().item() - 0.7 * 450) <= 1
    assert (model.attention.in_proj_weight == 0).sum() == sparsifier.layers()[0].zeros > 0
    assert sum(losses[-2:]) < sum(losses[:2])
    untouched = Attends()
    untouched.load_state_dict(model.state_dict())
    assert torch.equal(untouched(batch(0)[0]), model(batch(0)[0]))


def test_flops_target_in_training():
    places = {"0": 64, "3": 36, "4": 36, "7": 1, "9": 1}
    macs = {name: place * network().get_submodule(name).weight.numel() for name, place in places.items()}
    model = network()
    for name in "034":  # these lose their weights, and with few of them most MACs
        nn.init.normal_(model.get_submodule(name).weight, std=0.01)
    optimizer = sgd(model, lr=0.01)
    sparsifier = Sparsifier(model, "st3", 0.8, target="flops", macs=macs).attach(optimizer)
    train(model, optimizer, range(3))
    removed = sum(layer.zeros * places[layer.name] for layer in sparsifier.layers())
    assert abs(removed - 0.8 * sum(macs.values())) <= max(places.values())
    assert sparsifier.reaches(0.8)  # of the MACs: of the weights it is another fraction
    assert sparsifier.zeros().sum() < 0.79 * sparsifier.prunable


# How far it has come ------------------------------------------------------------------------------------------------


def test_a_target_is_reached_when_the_schedule_and_the_zeros_are_there():
    model, optimizer, sparsifier = start(GMP(every=4), RAMP)
    reached = []
    for step in range(STEPS):
        train(model, optimizer, [step])
        reached.append((sparsifier.reaches(0.8), sparsifier.reaches(0.4)))
    assert [one for one, _ in reached] == [False] * 18 + [True] * 12
    first = [other for _, other in reached].index(True)
    assert first == 8  # the update at which the zeros pass 40 %: the schedule passes them in step 6 already
    assert RAMP.value(6) < 0.4 < RAMP.value(8)


def test_zeros_may_miss_the_target_by_half_a_point():
    model, optimizer, sparsifier = start("st3", 0.8)
    assert not sparsifier.reaches(0.1)
    train(model, optimizer, [0])
    assert sparsifier.reaches(0.8)
    flat = model[7].weight.detach()
    zeroed = (flat.view(-1) == 0).nonzero().flatten()
    flat.view(-1)[zeroed[: int(0.004 * sparsifier.prunable)]] = 1.0  # as if the method had kept them
    assert sparsifier.reaches(0.8)
    flat.view(-1)[zeroed[: int(0.006 * sparsifier.prunable)]] = 1.0
    assert not sparsifier.reaches(0.8)


def test_the_step_says_where_the_schedule_is():
    model, optimizer, sparsifier = start("st3", RAMP)
    assert (sparsifier.step, sparsifier.sparsity) == (0, 0.0)
    for step in range(8):
        train(model, optimizer, [step])
        assert (sparsifier.step, sparsifier.sparsity) == (step + 1, RAMP.value(step))


def test_only_methods_with_an_outcome_say_so():
    assert start(STR(threshold_init=-3.0), 0.8)[2].sparsity_is_outcome
    assert not start("st3", 0.8)[2].sparsity_is_outcome


def test_the_length_of_training_is_a_number_of_steps_or_epochs_of_them():
    by_steps = Sparsifier(network(), "gmp", RAMP, length=60)
    by_epochs = Sparsifier(network(), "gmp", RAMP, length=Length(steps_per_epoch=20, epochs=3))
    assert by_steps.length == Length(60)
    assert by_epochs.length.steps == 60
    assert by_steps.mask_updates() == by_epochs.mask_updates() == list(range(4, 19))


# What kind of step comes next ---------------------------------------------------------------------------------------


def kinds(method, schedule) -> list:
    """Before each step, and after the last."""
    model, optimizer, sparsifier = start(method, schedule)
    found = []
    for step in range(STEPS):
        found.append(sparsifier.next_step())
        train(model, optimizer, [step])
    return [*found, sparsifier.next_step()]


def groups(found: list) -> list[list[int]]:
    """Steps of the same kind, in the order of their first."""
    return [[step for step, kind in enumerate(found) if kind == each] for each in dict.fromkeys(found)]


def test_steps_are_of_one_kind_while_the_same_is_done():
    """Dense; dense, but projected at the end; sparse from its beginning to its end."""
    assert groups(kinds("st3", RAMP)) == [[0, 1, 2, 3], [4], list(range(5, 31))]
    assert groups(kinds("st3", 0.8)) == [[0], list(range(1, 31))]
    assert groups(kinds("st3", 0.0)) == [list(range(31))]


def test_a_step_in_which_masks_change_is_like_no_other():
    updates = [4, 8, 12, 16, 20]
    found = kinds(RigL(every=4, until=22), 0.8)
    assert [step for step, kind in enumerate(found) if kind is None] == updates
    assert len(set(found) - {None}) == 1
    found = kinds(GMP(every=4), RAMP)
    assert [step for step, kind in enumerate(found) if kind is None] == [4, 8, 12, 16, 18]


def test_each_sparse_phase_has_raw_weights_of_its_own():
    found = kinds("st3", PHASES)
    dense, sparse = [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23], [[5, 6, 7, 8], [15, 16, 17, 18], list(range(25, 31))]
    by_kind = groups(found)
    assert dense in by_kind
    assert all(each in by_kind for each in sparse)


def test_a_loaded_state_has_a_new_kind_only_where_it_needs_new_memory():
    model, optimizer, sparsifier = start("st3", RAMP)
    train(model, optimizer, [0])
    dense = copy.deepcopy(sparsifier.state_dict())
    train(model, optimizer, range(1, 8))
    sparse, kind = copy.deepcopy(sparsifier.state_dict()), sparsifier.next_step()
    raw = sparsifier.raw_weights()["0"].data_ptr()
    train(model, optimizer, [8])
    sparsifier.load_state_dict(sparse)
    assert sparsifier.next_step() == kind
    assert sparsifier.raw_weights()["0"].data_ptr() == raw
    sparsifier.load_state_dict(dense)
    assert sparsifier.next_step() != kind
    sparsifier.load_state_dict(sparse)
    assert sparsifier.next_step() not in (kind, None)


def test_a_loop_that_counts_skipped_steps_tells_its_own_number():
    _, _, sparsifier = start("st3", PolynomialRamp(final=0.8, start=3, end=6))
    dense = sparsifier.next_step()
    assert sparsifier.next_step(20) != dense
    assert sparsifier.step == 20
    assert sparsifier.next_step(2) == dense


def test_counting_a_step_moves_the_schedule_and_nothing_else():
    """As before the replay of a captured step, in which no hook runs."""
    model, optimizer, sparsifier = start("st3", RAMP)
    train(model, optimizer, range(6))
    before = copy.deepcopy(states(model, optimizer))
    sparsifier.count_step()
    assert (sparsifier.step, sparsifier.sparsity) == (7, RAMP.value(6))
    assert_same(states(model, optimizer), before)
    projected = sparsifier.project(sparsifier.raw_weights())  # by the value that a replay finds on the device
    zeros = sum((w == 0).sum().item() for w in projected.values())
    assert abs(zeros - RAMP.value(6) * sparsifier.prunable) <= 1


# States that are restored -------------------------------------------------------------------------------------------


def test_loading_pretrained_weights_before_the_ramp_is_fine():
    model, optimizer, _ = start("st3", RAMP)
    other = network()
    nn.init.ones_(other[7].weight)
    train(model, optimizer, [0])
    model.load_state_dict(other.state_dict())
    train(model, optimizer, [1])
    assert (model[7].weight > 0.5).all()


def test_a_checkpoint_restores_after_a_step_that_raised():
    model, optimizer, sparsifier = start("st3", PolynomialRamp(final=0.9, start=2, end=6))
    train(model, optimizer, range(2))
    saved = copy.deepcopy((model.state_dict(), sparsifier.state_dict()))
    assert not saved[1]["raw"]  # dense so far
    train(model, optimizer, range(2, 5))
    optimizer.param_groups[0]["lr"] = "high"
    with pytest.raises(TypeError):
        train(model, optimizer, [5])
    model.load_state_dict(saved[0])
    sparsifier.load_state_dict(saved[1])
    assert_same(dict(model.state_dict()), dict(saved[0]))


def test_it_follows_a_model_that_was_converted_once_its_state_is_loaded_again():
    model, optimizer, sparsifier = start("st3", 0.5)
    train(model, optimizer, range(3))
    state = sparsifier.state_dict()
    model.double()
    optimizer = sgd(model)
    sparsifier.detach()
    sparsifier.load_state_dict(state)
    sparsifier.attach(optimizer)
    train(model, optimizer, range(3, 6), torch.float64)
    assert {w.dtype for w in sparsifier.raw_weights().values()} == {torch.float64}
    assert abs(sparsifier.zeros().sum().item() - 0.5 * sparsifier.prunable) <= 1


def test_a_state_of_other_layers_is_refused():
    model, optimizer, sparsifier = start("st3", 0.5)
    train(model, optimizer, [0])
    for other in (start("st3", 0.5, exclude=["9"])[2], Sparsifier(Attends(), "st3", 0.5)):
        with pytest.raises(UserError, match="belongs to other layers"):
            other.load_state_dict(sparsifier.state_dict())


def test_attached_again_it_goes_on():
    whole = start("st3", RAMP)
    expected = train(*whole[:2], range(12))
    model, optimizer, sparsifier = start("st3", RAMP)
    losses = train(model, optimizer, range(7))
    sparsifier.detach()
    sparsifier.attach(optimizer)
    assert losses + train(model, optimizer, range(7, 12)) == expected


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "st4"}, "method=st4 does not exist: choose one of st3, st3_sigma"),
        ({"schedule": 1.0}, r"\[0, 1\)"),
        ({"include": ["conv*"]}, "no Conv2d or Linear layer is named like 'conv"),
        ({"include": ["3"], "exclude": ["[0-9]"]}, "include and exclude leave no layer to prune"),
        ({"exclude": "3"}, "is a list of patterns"),
        ({"target": "params"}, "target=params"),
        ({"target": "flops"}, "needs macs"),
        ({"target": "flops", "macs": {"0": 1, "3": 1, "4": 1, "7": 1}}, "needs macs of every pruned layer, also 9"),
        ({"target": "flops", "macs": {"0": 9, "3": 9, "4": 9, "7": 9, "9": 0}}, r"9, which has no MACs: exclude=\[9\]"),
        ({"method": "gmp", "schedule": RAMP}, r"depends on the length of the training: Sparsifier\(…, length=…\)"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(UserError, match=message) as caught:
        Sparsifier(network(), **options)
    assert "\n" not in str(caught.value)


def test_refused_models():
    with pytest.raises(UserError, match="nothing to prune"):
        Sparsifier(nn.BatchNorm2d(3))
    with pytest.raises(UserError, match="float32"):
        Sparsifier(network().half())
    with pytest.raises(UserError, match="not a plain parameter"):
        Sparsifier(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))
    model = network()
    model[9].double()
    with pytest.raises(UserError, match=r"weight of 9 is torch\.float64"):
        Sparsifier(model)


def test_refused_attachments():
    model = network()
    sparsifier = Sparsifier(model)
    with pytest.raises(UserError, match="does not hold the weight of 0"):
        sparsifier.attach(torch.optim.SGD(model[9].parameters(), lr=0.1))
    optimizer = sgd(model)
    sparsifier.attach(optimizer)
    with pytest.raises(UserError, match="attached already"):
        sparsifier.attach(optimizer)


def test_weights_changed_behind_its_back_are_noticed():
    model, optimizer, _ = start("st3", 0.9)
    train(model, optimizer, [0])
    model.load_state_dict(network().state_dict())
    with pytest.raises(UserError, match="changed or moved outside"):
        train(model, optimizer, [1])


def test_two_parameters_in_one_memory_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data = model[0].weight.data
    with pytest.raises(UserError, match="weights of 0 and 1 are two parameters in one memory"):
        Sparsifier(model)


# Closures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("named", [False, True], ids=["by place", "by name"])
@pytest.mark.parametrize("method", ["st3", "gmp", "rigl"])
def test_a_closure_sees_the_sparse_weights_and_may_clip(method, named):
    """As Lightning steps: forward, backward and clipping are inside of the closure. Equal to doing them before."""
    schedule = SPARSE if method == "rigl" else RAMP
    plain, optimizer, _ = start(method, schedule)
    losses = train(plain, optimizer, range(STEPS), clip=0.1)

    model, optimizer, sparsifier = start(method, schedule)
    for number in range(STEPS):
        images, labels = batch(number)

        def closure():
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)  # noqa: B023
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            return loss

        loss = optimizer.step(closure=closure) if named else optimizer.step(closure)
        assert loss.item() == losses[number]
    assert_same(dict(model.state_dict()), dict(plain.state_dict()))
    assert sparsifier.step == STEPS


def test_an_optimizer_that_calls_its_closure_again_is_refused():
    model = smooth()
    optimizer = torch.optim.LBFGS(model.parameters())
    Sparsifier(model, "st3", 0.8).attach(optimizer)

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(batch(0)[0]), batch(0)[1])
        loss.backward()
        return loss

    with pytest.raises(UserError, match=r"closure twice in a step, as LBFGS does: choose another one"):
        optimizer.step(closure)


# The step's gradient ------------------------------------------------------------------------------------------------


def test_accumulated_and_clipped_gradients_are_those_that_the_raw_weights_get():
    """A masked gradient is masked at the weight itself, before anything else looks at it."""
    model, optimizer, sparsifier = start(GMP(every=1), 0.8)
    train(model, optimizer, [0])
    images, labels = batch(1)
    optimizer.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    for weight in sparsifier.weights.values():
        assert (weight.grad[weight == 0] == 0).all()
        assert (weight.grad[weight != 0] != 0).any()
