"""Tables themselves: the step on every backend, mixed batches, runs begun later, and exactness."""

import pickle

import numpy as np
import pytest

from underdraw import backends, schedulers
from underdraw.errors import InputError
from underdraw.solvers.stacking import split_state, stack_rows, stack_states
from underdraw.solvers.table import State, advance, clean_image

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (3, 4, 6, 5)
SOLVERS = {
    "ddim": schedulers.DDIMScheduler(**SD, clip_sample=True, clip_sample_range=0.9),
    "ddim-thresholded": schedulers.DDIMScheduler(**SD, thresholding=True, sample_max_value=1.5),
    "pndm": schedulers.PNDMScheduler(**SD),
    "plms": schedulers.PNDMScheduler(**SD, skip_prk_steps=True),
    "euler": schedulers.EulerDiscreteScheduler(**SD),
    "heun": schedulers.HeunDiscreteScheduler(**SD, clip_sample=True),
    "dpm2a": schedulers.KDPM2AncestralDiscreteScheduler(**SD),
    "dpm++3m": schedulers.DPMSolverMultistepScheduler(**SD, solver_order=3),
    "dpm++3s": schedulers.DPMSolverSinglestepScheduler(**SD, solver_order=3),
    "unipc": schedulers.UniPCMultistepScheduler(**SD, solver_order=3),
    "lcm": schedulers.LCMScheduler(**SD),
}


class Numpy:
    """What `advance` needs of a backend."""

    clip = staticmethod(np.clip)

    def quantile_abs(self, x, q):
        return np.quantile(np.abs(x).reshape(len(x), -1), q, axis=1)

    def cast(self, x, like):
        return x.astype(like.dtype)


def noise(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def network(x, t):
    return 0.8 * np.tanh(x[..., ::-1] + np.float32(t / 1000)).astype(np.float32)


def run(table, x, draws):
    state = State(x * np.float32(table.initial_sigma))
    for call, row in enumerate(table.rows):
        output = network(state.x * np.float32(row.input_scale), row.timestep)
        state = advance(Numpy(), row, state, output, draws[call] if row.draws else None)
    return state.x


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("framework", backends.installed())
def test_one_step_function_on_every_backend(framework, name):
    backend = backends.get(framework)
    table = SOLVERS[name].make_table(5)
    state = State(backend.array(noise(0) * np.float32(table.initial_sigma)))
    plain = State(noise(0) * np.float32(table.initial_sigma))
    for call, row in enumerate(table.rows):
        fresh = noise(100 + call) if row.draws else None
        output = network(plain.x * np.float32(row.input_scale), row.timestep)
        given = None if fresh is None else backend.array(fresh)
        seen = clean_image(backend.operations, row, state.x, backend.array(output))
        wanted = clean_image(Numpy(), row, plain.x, output)
        assert np.abs(backend.to_numpy(seen) - wanted).max() <= 1e-4 * np.abs(wanted).max()
        state = advance(backend.operations, row, state, backend.array(output), given)
        plain = advance(Numpy(), row, plain, output, fresh)
    assert np.abs(backend.to_numpy(state.x) - plain.x).max() <= 2e-5 * np.abs(plain.x).max()


@pytest.mark.parametrize("framework", backends.installed())
def test_images_at_different_steps_of_different_solvers(framework):
    """Each image of the batch joins when it likes, with its own solver and number of steps, leaves
    when it is done, and comes out as if it had been alone."""
    backend = backends.get(framework)
    nn = backend.operations
    names = list(SOLVERS)
    tables = {name: SOLVERS[name].make_table(4 + i % 3) for i, name in enumerate(names)}
    shape = (1, *SHAPE[1:])
    alone = {
        name: run(tables[name], noise(i, shape), [noise(50 * i + c, shape) for c in range(40)])
        for i, name in enumerate(names)
    }
    waiting = list(enumerate(names))
    active, done = [], {}
    while active or waiting:
        if waiting and len(active) < 6:  # one joins per call
            i, name = waiting.pop(0)
            x = noise(i, shape) * np.float32(tables[name].initial_sigma)
            active.append([i, name, 0, State(backend.array(x))])
        rows = [tables[name].row(call) for _, name, call, _ in active]
        state = stack_states(backend, [each[3] for each in active])
        row = stack_rows(backend, rows, like=state.x)
        seen = backend.to_numpy(state.x * row.input_scale)
        output = np.concatenate(
            [network(seen[k : k + 1], each.timestep) for k, each in enumerate(rows)]
        )
        fresh = np.concatenate([noise(50 * i + call, shape) for i, _, call, _ in active])
        state = advance(nn, row, state, backend.array(output), backend.array(fresh))
        parts = split_state(state, [1] * len(active))
        for each, part in zip(active, parts, strict=True):
            each[2], each[3] = each[2] + 1, part
        for each in [each for each in active if each[2] == len(tables[each[1]])]:
            done[each[1]] = backend.to_numpy(each[3].x)
            active.remove(each)
    for name in names:
        assert np.abs(done[name] - alone[name]).max() <= 2e-5 * np.abs(alone[name]).max(), name


def test_rows_leave_out_what_is_zero():
    row = SOLVERS["euler"].make_table(5).row(1)
    assert [slot for slot, _ in row.x] == [0, 2]
    assert row.saved == row.accumulator == row.pushed == ()
    same = stack_rows(backends.get("torch"), [row, row])
    assert same is row


def gaussian_error(scheduler, steps):
    """Against the exact flow when all images are normal with size 0.5: the noise is linear in x.

    Up to the last σ, since the way from there to 0 is one Euler step for every solver."""
    table, spread = scheduler.make_table(steps), 0.5
    first, last = table.row(0), table.row(len(table) - 1)
    state = State(np.full((1, 1, 1, 1), np.hypot(first.alpha * spread, first.sigma)))
    for row in table.rows[:-1]:
        output = state.x * row.sigma / (row.alpha**2 * spread**2 + row.sigma**2)
        state = advance(Numpy(), row, state, output)
    return abs(float(state.x[0, 0, 0, 0]) / np.hypot(last.alpha * spread, last.sigma) - 1)


@pytest.mark.parametrize(
    ("scheduler", "order"),
    [
        (schedulers.EulerDiscreteScheduler(**SD, use_karras_sigmas=True), 1),
        (schedulers.HeunDiscreteScheduler(**SD, use_karras_sigmas=True), 2),
        (schedulers.KDPM2DiscreteScheduler(**SD, use_karras_sigmas=True), 2),
        (schedulers.LMSDiscreteScheduler(**SD, use_karras_sigmas=True), 2),
        (schedulers.DPMSolverMultistepScheduler(**SD, use_karras_sigmas=True), 2),
        (schedulers.UniPCMultistepScheduler(**SD, use_karras_sigmas=True), 2),
    ],
)
def test_solvers_converge_to_the_exact_flow(scheduler, order):
    """Four times the steps, about 4^order times less error."""
    coarse, fine = gaussian_error(scheduler, 20), gaussian_error(scheduler, 80)
    assert fine < coarse / 4 ** (order - 0.3), (coarse, fine)
    assert fine < 0.05


@pytest.mark.parametrize("name", SOLVERS)
def test_tail(name):
    table = SOLVERS[name].make_table(7)
    assert table.tail(0) is table
    for begin in range(1, len(table)):
        tail = table.tail(begin)
        assert tail.timesteps.tolist() == table.timesteps[begin:].tolist()
        known = 0
        for row in tail.rows:  # nothing is read that was not written before
            slots = {slot for terms in row[7:11] for slot, _ in terms}
            assert max([slot - 3 for slot in slots if 4 <= slot <= 7], default=0) <= known
            known += row.pushes is True
        state = State(noise(0))
        for row in tail.rows:
            state = advance(Numpy(), row, state, noise(1), noise(2))
        assert np.isfinite(state.x).all()
    for wrong in (-1, len(table)):
        with pytest.raises(InputError, match="begin"):
            table.tail(wrong)


def test_make_table_changes_nothing_and_is_shared():
    scheduler = schedulers.DPMSolverMultistepScheduler(**SD)
    before = pickle.dumps(scheduler.config)
    table = scheduler.make_table(7)
    assert scheduler.make_table(7) is table
    assert scheduler.table is None
    assert scheduler.num_inference_steps is None
    assert pickle.dumps(scheduler.config) == before
    copy = pickle.loads(pickle.dumps(scheduler))
    assert copy.make_table(7).weights.tolist() == table.weights.tolist()
    assert copy.make_table(7).tail(2).rows == table.tail(2).rows


def test_draws_stand_where_the_peer_draws():
    """Also where the factor is 0, so that a generator that lives on stands at the same place."""
    ancestral = schedulers.EulerAncestralDiscreteScheduler(**SD).make_table(4)
    assert [row.draws for row in ancestral.rows] == [True] * 4
    assert [row.draws for row in SOLVERS["lcm"].make_table(3).rows] == [True, True, False]
    assert not any(row.draws for row in schedulers.DDIMScheduler(**SD).make_table(4).rows)
    noisy = schedulers.DDIMScheduler(**SD).make_table(4, eta=1.0)
    assert all(row.draws for row in noisy.rows)
