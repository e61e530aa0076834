import math

import pytest
import torch
from scipy import stats

from sslinfo.data.keyed_random import _words, normals, stream_keys, uniforms
from sslinfo.errors import UserError

# Statistical tests have fixed seeds. With ALARM as their level, each p-value below falsely alarms with 1e-4.
ALARM = 1e-4
HERE = {"seed": 3, "epoch": 1, "view": 0, "operation": "crop"}
ELSEWHERE = [{"seed": 4}, {"epoch": 2}, {"view": 1}, {"operation": "flip"}, {"operation": 0}, {"seed": -3}]


def draw(index, count=1, **changes):
    where = HERE | changes
    return uniforms(where["seed"], where["epoch"], index, where["view"], where["operation"], count)


def association(u, v, bins=8):
    """p-value of the chi-squared test that u and v in [0, 1) are independent and uniform on a grid of bins^2."""
    cells = (u * bins).floor() * bins + (v * bins).floor()
    return stats.chisquare(torch.bincount(cells.long(), minlength=bins * bins).numpy()).pvalue


def test_words_are_those_of_splitmix64():
    # The published test vector of SplitMix64 for the state 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [word % 2**64 for word in _words(torch.tensor([1234567]), 4)[0].tolist()] == expected


@pytest.mark.parametrize("changes", [{}, *ELSEWHERE], ids=str)
def test_uniforms_are_uniform(changes):
    u = draw(torch.arange(20_000), 2, **changes)
    assert u.dtype == torch.float64
    assert u.min() >= 0.0
    assert u.max() < 1.0
    for column in u.unbind(1):
        assert stats.kstest(column.numpy(), "uniform").pvalue > ALARM


def test_uniforms_use_all_their_bits():
    low = (draw(torch.arange(20_000))[:, 0] * 2**53).long() % 256
    assert stats.chisquare(torch.bincount(low, minlength=256).numpy()).pvalue > ALARM


@pytest.mark.parametrize("changes", ELSEWHERE, ids=str)
def test_streams_are_independent(changes):
    index = torch.arange(20_000)
    assert association(draw(index)[:, 0], draw(index, **changes)[:, 0]) > ALARM


def test_neighbours_and_counters_are_independent():
    u = draw(torch.arange(20_001), 2)
    assert association(u[:-1, 0], u[1:, 0]) > ALARM
    assert association(u[:, 0], u[:, 1]) > ALARM


def test_a_draw_depends_on_its_own_image_alone():
    index = torch.tensor([5, 2**40, 0, 17])
    whole = draw(index, 6)
    for row, i in enumerate(index):
        assert torch.equal(draw(i[None], 3)[0], whole[row, :3])
    assert torch.equal(draw(index.flip(0), 6), whole.flip(0))


def test_keys_do_not_collide():
    # The mixing is a bijection of the index for fixed other arguments: no two are equal, whatever the number.
    assert stream_keys(0, 0, torch.arange(200_000), 0, "crop").unique().numel() == 200_000


def test_seeds_are_taken_modulo_two_to_the_64():
    index = torch.arange(3)
    assert torch.equal(draw(index, seed=-1), draw(index, seed=2**64 - 1))


def test_normals_are_normal_and_uncorrelated():
    z = normals(0, 0, torch.arange(4000), 0, "noise", 5)
    assert z.shape == (4000, 5)
    assert z.dtype == torch.float32
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > ALARM
    # The two numbers of a Box-Muller pair: independent, so that their uniform scores fill the square.
    score = torch.special.ndtr(z.double())
    assert association(score[:, 0], score[:, 1]) > ALARM
    assert association(score[:, 1], score[:, 2]) > ALARM
    # The first numbers do not depend on how many are asked for.
    assert torch.equal(normals(0, 0, torch.arange(4000), 0, "noise", 2), z[:, :2])


def test_normals_reach_both_tails():
    # Of a million, about 63 lie beyond 4: outside of 63 +- 4.5 standard deviations with 1e-5.
    z = normals(1, 0, torch.arange(1000), 0, "noise", 1000)
    beyond = int((z.abs() > 4).sum())
    expected = 1e6 * 2 * stats.norm.sf(4)
    assert abs(beyond - expected) < 4.5 * math.sqrt(expected)
    assert z.isfinite().all()


def test_no_images():
    empty = torch.arange(0)
    assert draw(empty, 4).shape == (0, 4)
    assert normals(0, 0, empty, 0, "noise", 3).shape == (0, 3)


@pytest.mark.parametrize("index", [torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.tensor(3)])
def test_a_wrong_index_is_named(index):
    with pytest.raises(UserError, match="index must be a vector of int64"):
        draw(index)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the same bits on a GPU are not checked")
def test_a_gpu_draws_the_same_bits():
    index = torch.arange(1000)
    assert torch.equal(draw(index.cuda(), 7).cpu(), draw(index, 7))
